"""What people read: tables, amounts, times; and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import click

from store.amounts import Token

if TYPE_CHECKING:
    from proxy_addon.config import Settings

_GAP: Final = "  "


def printable(text: str) -> str:
    """`text` without what could drive a terminal: servers choose some of what we show."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def short_id(channel_id: str) -> str:
    """``0x1234…cdef`` is told apart by eye; `channels show` takes the part before the dots."""
    return f"{channel_id[:10]}…{channel_id[-4:]}" if len(channel_id) > 20 else channel_id


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Columns as wide as what is in them; those in `right` are flush right."""
    cells = [tuple(header), *(tuple(printable(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = (
        _GAP.join(
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(header, row, widths, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def echo_json(value: Any, *, indent: int | None = 2) -> None:
    click.echo(json.dumps(value, indent=indent, ensure_ascii=False))


def utc(ms: int) -> str:
    """``2026-01-31 12:00:00Z``; empty for a time that was never set."""
    return "" if ms <= 0 else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def token_named(settings: Settings | None, address: str, symbol: str = "") -> Token:
    """How to show a token when its chain is not known: a ledger line names the token only."""
    for chain in settings.chains if settings is not None else ():
        assert settings is not None
        found = settings.token(chain, address)
        if found.decimals or not found.symbol.startswith("base units"):
            return found
    return Token(address, f"base units of {symbol or address}", 0)
