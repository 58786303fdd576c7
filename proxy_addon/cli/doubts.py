"""Which requests are behind what is uncertain on a channel, by the ledger's lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from proxy_addon.cli.lines import Entry
from proxy_addon.cli.sums import UNCERTAIN

_CLEARED = frozenset({"ended", "probe", "reconciled"})


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that may have been charged. Base units."""

    t: str  # as the ledger writes it
    amount: int
    outcome: str  # "unknown" | "undelivered" | "unfinished" | "written-off" | "assumed"
    request: str
    method: str
    host: str
    path: str
    reason: str
    retry_of: str

    def as_json(self) -> dict[str, Any]:
        return {
            "t": self.t,
            "request": self.request or None,
            "method": self.method or None,
            "host": self.host,
            "path": self.path or None,
            "amount": str(self.amount),
            "outcome": self.outcome,
            "reason": self.reason or None,
            "retry_of": self.retry_of or None,
        }


def doubts(entries: Iterable[Entry]) -> dict[str, list[Doubt]]:
    """By channel, oldest first: all since nothing was uncertain on it for the last time.

    What a server's word has cleared in part stays listed: its sum does not say which of them it was.
    """
    found: dict[str, list[Doubt]] = {}
    sent: dict[tuple[str, str, str], Doubt] = {}
    for entry in entries:
        channel, kind = entry.text("channel"), entry.text("kind")
        key = (entry.journal, channel, entry.text("request"))
        mine = found.setdefault(channel, [])
        if kind == "closed" or (kind in _CLEARED and entry.text("uncertain_now") == "0"):
            mine.clear()
        match kind:
            case "sent":
                sent[key] = _doubt(entry, "unfinished", entry.units("amount"))
            case "voucher" if key in sent:  # of a stream, beside it
                sent[key] = replace(sent[key], amount=sent[key].amount + entry.units("amount"))
            case "ended":
                sent.pop(key, None)
                amount = entry.units("uncertain")  # the rest of a stream
                if entry.text("outcome") in UNCERTAIN:
                    amount = entry.units("amount")
                if amount:
                    mine.append(_doubt(entry, _outcome(entry), amount))
            case "written-off":
                mine.append(_doubt(entry, "written-off", entry.units("amount")))
            case "assumed-spent":
                mine.append(_doubt(entry, "assumed", entry.units("uncertain")))
            case _:
                pass
    for (_, channel, _), one in sent.items():  # on its way, or its process died
        found[channel].append(one)
    return {channel: sorted(some, key=lambda one: one.t) for channel, some in found.items() if some}


def _outcome(entry: Entry) -> str:
    outcome = entry.text("outcome")
    return outcome if outcome in UNCERTAIN else "undelivered"


def _doubt(entry: Entry, outcome: str, amount: int) -> Doubt:
    return Doubt(
        t=entry.text("t"),
        amount=amount,
        outcome=outcome,
        request=entry.text("request"),
        method=entry.text("method"),
        host=entry.text("host"),
        path=entry.text("path"),
        reason=entry.text("reason"),
        retry_of=entry.text("retry_of"),
    )
