"""One channel, told in full: its account, its history, and what comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proxy_addon.cli.lines import Entry, Pick, read_ledger
from proxy_addon.cli.next_steps import Outlook, next_step
from proxy_addon.cli.output import utc
from proxy_addon.cli.records import View
from store.amounts import Token
from store.lifecycle import FINAL
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.config import Settings

AMOUNTS: Final = (
    "deposit",
    "authorised",
    "paid",
    "uncertain",
    "held",
    "free",
    "reserved",
    "accepted",
    "settled",
    "fees",
)
_EVENTS: Final = frozenset(
    {
        *("opened", "open-failed", "topped-up", "top-up-failed", "set-aside", "recovered"),
        *("written-off", "reconciled"),
        *("close-sent", "close-requested", "close-noticed", "fee", "closed"),
        *("watchdog", "adopted", "revived"),
        *("imported", "moved", "assumed-spent"),
    }
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a channel, beside its requests."""

    at: str  # as the ledger writes it
    kind: str
    message: str
    tx: str
    ready_at: int  # Unix seconds; of a requested close


@dataclass(frozen=True, slots=True)
class History:
    """What all processes' ledgers say of one channel."""

    sent: int  # requests; one that was sent again counts once
    ended: dict[str, int]  # by outcome
    events: tuple[Event, ...]

    @property
    def ready_at(self) -> int:
        """When the deposit can be withdrawn, if a close was requested on the chain; else 0."""
        return max((event.ready_at for event in self.events), default=0)


def history_of(settings: Settings, channel_id: str) -> History:
    pick = Pick(channel=channel_id)
    return add_up(entry for entry in read_ledger(settings.store.ledger) if pick.takes(entry))


def add_up(entries: Iterable[Entry]) -> History:
    sent: set[tuple[str, str]] = set()
    ended: Counter[str] = Counter()
    events = []
    for entry in entries:
        kind = entry.text("kind")
        if kind == "sent":
            sent.add((entry.journal, entry.text("request")))
        elif kind == "ended":
            ended[entry.text("outcome")] += 1
        elif kind in _EVENTS:
            message = entry.text("message") or entry.text("amount_human")
            event = Event(entry.text("t"), kind, message, entry.text("tx"), entry.units("ready_at"))
            events.append(event)
    return History(len(sent), dict(sorted(ended.items())), tuple(events))


def details(view: View, token: Token, history: History, outlook: Outlook) -> list[tuple[str, str]]:
    """Name and value of each line, for people."""
    channel, scope = view.channel, view.channel.scope
    pairs = [
        ("channel", channel.channel_id),
        ("status", channel.status + (f" ({view.ownership})" if view.ownership else "")),
        ("next", next_step(view, token, history.ready_at, outlook)),
        ("host", scope.origin),
        ("resource", channel.resource),
        ("method", f"{scope.family}/{scope.version} on {scope.chain}"),
        ("payee", scope.payee),
        ("payer", scope.payer),
        ("token", f"{scope.token} ({token.symbol})"),
        ("escrow", scope.escrow),
        *((name, token.show(getattr(channel, name))) for name in AMOUNTS),
    ]
    if channel.captured is not None:
        pairs.append(("captured", token.show(channel.captured)))
    if channel.refunded is not None:
        pairs.append(("refunded", token.show(channel.refunded)))
    if channel.close_amount is not None:
        pairs.append(("close for", token.show(channel.close_amount)))
    if channel.uncertain and channel.status not in FINAL:
        pairs.append(
            ("decided", f"the uncertain cannot become charged any more from {utc(channel.eligible_at)}")
        )
    if channel.pending is not None:
        pairs.append(("pending", f"{channel.pending.kind} {channel.pending.tx_hash}"))
    pairs += [("transaction", one) for one in channel.transactions]
    if channel.note:
        pairs.append(("note", channel.note))
    pairs += [("opened", utc(channel.opened_at)), ("last used", utc(channel.updated_at))]
    ended = ", ".join(f"{number} {outcome}" for outcome, number in history.ended.items())
    flight = f", {len(channel.holds)} in flight" if channel.holds else ""
    pairs.append(("requests", f"{history.sent} sent{flight}" + (f": {ended}" if ended else "")))
    pairs += [
        ("history", f"{one.at[:19].replace('T', ' ')}Z  {one.kind}: {one.message}") for one in history.events
    ]
    return pairs


def as_json(history: History) -> dict[str, Any]:
    return {
        "requests": {"sent": history.sent, **history.ended},
        "events": [
            {"t": one.at, "kind": one.kind, "message": one.message, "tx": one.tx or None}
            for one in history.events
        ],
    }


def fields(channel: Channel) -> dict[str, str]:
    """The account's amounts, in base units."""
    return {name: str(getattr(channel, name)) for name in AMOUNTS}
