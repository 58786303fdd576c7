"""What several targets hold their parsers to."""

from __future__ import annotations

import re
from typing import Final

from store.amounts import UINT128_MAX

LOGGED: Final = 600
_HEX: Final = re.compile(r"0x(?:[0-9a-f]{2})*")


def loggable(text: str) -> None:
    """What may come to a log: one line of what can be printed, and not for ever."""
    assert text.isprintable(), f"not printable: {text!r}"
    assert len(text) <= LOGGED, f"{len(text)} characters: {text[:100]!r}"


def amount(value: int | None, limit: int = UINT128_MAX) -> None:
    assert value is None or (type(value) is int and 0 <= value <= limit), value


def exact(value: int | None) -> None:
    """A count that every JSON reader takes for the same number."""
    amount(value, 2**53 - 1)


def lower_hex(value: str | None, size: int | None = None) -> None:
    """`size` bytes, in the one form in which they are compared."""
    if value is not None:
        assert _HEX.fullmatch(value), value
        assert size is None or len(value) == 2 + 2 * size, value
