"""What one proxy paid, told on stderr when `bursar exec` ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy_addon.cli.lines import read_journal
from proxy_addon.cli.output import printable, token_named
from proxy_addon.cli.sums import Sums, TokenSum, add_up

if TYPE_CHECKING:
    from proxy_addon.config import Settings

_MOST_REASONS = 3


def summary_lines(settings: Settings, ledger: Path | None) -> list[str]:
    """For people."""
    sums = add_up(()) if ledger is None else add_up(read_journal(ledger))
    lines: list[str] = []
    for one in sums.tokens.values():
        lines += _token_lines(settings, one, sums)
    for message, times in list(sums.refusals.items())[:_MOST_REASONS]:
        lines.append(f"not paid{f' ({times} times)' if times > 1 else ''}: {printable(message)}")
    if (more := len(sums.refusals) - _MOST_REASONS) > 0:
        lines.append(f"not paid, for {more} more reasons: see bursar ledger")
    if sums.shadowed:
        lines.append(f"shadow mode: would have paid for {_counted(sums.shadowed, 'request')}")
    return [f"bursar: {line}" for line in lines or ["nothing was paid"]]


def summary_json(settings: Settings, ledger: Path | None) -> list[str]:
    """For programs: one line."""
    sums = add_up(()) if ledger is None else add_up(read_journal(ledger))
    return [json.dumps(sums_as_json(settings, sums), ensure_ascii=False)]


def sums_as_json(settings: Settings, sums: Sums) -> dict[str, Any]:
    return {
        "tokens": [_token_json(settings, one) for one in sums.tokens.values()],
        "channels": sorted(sums.channels),
        "opened": sums.opened,
        "closed": sums.closed,
        "refused": [{"message": message, "times": times} for message, times in sums.refusals.items()],
        "shadowed": sums.shadowed,
    }


def _token_lines(settings: Settings, one: TokenSum, sums: Sums) -> list[str]:
    token = token_named(settings, one.token, one.symbol)
    lines: list[str] = []
    if one.paid_requests:
        where = _counted(len(sums.channels), "channel")  # of all tokens: a second one is rare
        lines.append(f"paid {token.show(one.paid)} for {_counted(one.paid_requests, 'request')} on {where}")
    if one.uncertain_requests:
        lines.append(
            f"uncertain {token.show(one.uncertain)} ({_counted(one.uncertain_requests, 'request')}):"
            " may have been charged, and is counted as spent until it is known"
        )
    if one.unfinished_requests:
        lines.append(
            f"unfinished {token.show(one.unfinished)} ({_counted(one.unfinished_requests, 'request')}):"
            " sent, with no end on record yet"
        )
    if one.deposited:
        fees = f", network fees {token.show(one.fees)}" if one.fees else ""
        opened = f"opened {_counted(len(sums.opened), 'channel')}, " if sums.opened else ""
        lines.append(
            f"{opened}deposited {token.show(one.deposited)}{fees};"
            " what is left comes back with bursar channels close"
        )
    return lines


def _token_json(settings: Settings, one: TokenSum) -> dict[str, Any]:
    token = token_named(settings, one.token, one.symbol)
    return {
        "token": one.token,
        "symbol": one.symbol,
        "paid": str(one.paid),
        "paid_human": token.show(one.paid),
        "paid_requests": one.paid_requests,
        "uncertain": str(one.uncertain),
        "uncertain_requests": one.uncertain_requests,
        "unfinished": str(one.unfinished),
        "unfinished_requests": one.unfinished_requests,
        "adjusted": str(one.adjusted),
        "deposited": str(one.deposited),
        "refunded": str(one.refunded),
        "fees": str(one.fees),
    }


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
