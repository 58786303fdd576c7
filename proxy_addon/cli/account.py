"""One channel, told in full: its account, its history, and what comes next."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from proxy_addon.cli.lines import Entry, Pick, read_ledger
from proxy_addon.cli.output import utc
from proxy_addon.cli.records import Ownership, View
from store.amounts import Token
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus
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
    "accepted",
    "settled",
    "fees",
)
_EVENTS: Final = frozenset(
    {
        *("opened", "open-failed", "topped-up", "top-up-failed", "set-aside", "recovered"),
        *("close-sent", "close-requested", "fee", "closed"),
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


def next_step(view: View, token: Token, history: History, now: int) -> str:
    """What happens to the channel's money from here, and what to do for it. `now` in ms."""
    channel = view.channel
    short = channel.channel_id[:10]
    left = token.show(channel.ceiling - channel.paid - channel.uncertain)
    if view.ownership is Ownership.LEFT:
        doubt = f", with {token.show(channel.uncertain)} uncertain" if channel.uncertain else ""
        return f"its process died: the next proxy or command that uses it recovers it{doubt}"
    until = utc(channel.pending.valid_before * 1000) if channel.pending is not None else ""
    match channel.status:
        case ChannelStatus.FAILED:
            return f"nothing: {channel.note or 'its opening failed'}; the deposit never left"
        case ChannelStatus.CLOSED:
            return f"nothing: {token.show(channel.refunded or 0)} came back"
        case status if status in PENDING_OPEN:
            return f"opening: the chain decides, until a block past {until}"
        case ChannelStatus.ASIDE:
            return (
                f"set aside ({channel.note}): bursar channels close {short} brings up to {left} back; where the server"
                " does not help, with --force"
            )
        case ChannelStatus.DRAINING:
            return f"a close was begun: bursar channels close {short} goes on with it, for {left}"
        case ChannelStatus.CLOSING if channel.close_amount is not None:
            return (
                f"a close of {token.show(channel.close_amount)} was signed: bursar channels close {short} asks the"
                " server and the chain again"
            )
        case ChannelStatus.CLOSING:
            if not history.ready_at:
                return (
                    f"closing by force: bursar channels close --force {short} says from when on to withdraw"
                )
            when = "now" if now >= history.ready_at * 1000 else f"after {utc(history.ready_at * 1000)}"
            return f"closing by force: withdraw {when} with bursar channels close --force {short}"
        case _:
            pass
    if channel.pending is not None:
        return f"a top-up of {token.show(channel.pending.deposit)}: the chain decides, until a block past {until}"
    if view.ownership is Ownership.IN_USE:
        return (
            f"in use by a running proxy, which gives it back when it is idle; then close to get {left} back"
        )
    doubt = ""
    if channel.uncertain:
        doubt = f" (and what of the {token.show(channel.uncertain)} uncertain was not charged)"
    return f"idle: close to get {left} back{doubt}: bursar channels close {short}"


def details(view: View, token: Token, history: History) -> list[tuple[str, str]]:
    """Name and value of each line, for people."""
    channel, scope = view.channel, view.channel.scope
    pairs = [
        ("channel", channel.channel_id),
        ("status", channel.status + (f" ({view.ownership})" if view.ownership else "")),
        ("next", next_step(view, token, history, time.time_ns() // 1_000_000)),
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
    pairs += [("opened", utc(channel.opened_at)), ("updated", utc(channel.updated_at))]
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
