"""What ledger lines add up to, and whether the store agrees. Pure.

Paid is what a receipt proves, until the close of the channel proves what was captured; the difference is the
adjustment. What may have been charged is counted apart, and so is what was sent without a line of its end: it
is on its way, or its process died.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from proxy_addon.cli.lines import Entry
from store.lifecycle import ChannelStatus
from store.records import Channel

UNCERTAIN: Final = frozenset({"uncertain", "undelivered", "unknown"})


@dataclass(slots=True)
class TokenSum:
    """Of one token; base units, and how many requests they were for."""

    token: str
    symbol: str = ""
    paid: int = 0
    paid_requests: int = 0
    uncertain: int = 0
    uncertain_requests: int = 0
    unfinished: int = 0
    unfinished_requests: int = 0
    adjusted: int = 0  # what closes proved to be paid beside (or less than) what receipts had shown
    deposited: int = 0
    refunded: int = 0
    fees: int = 0


@dataclass(slots=True)
class Doubt:
    """What is uncertain of one channel."""

    token: str
    amount: int = 0
    requests: int = 0


@dataclass(slots=True)
class Sums:
    tokens: dict[str, TokenSum] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    channels: set[str] = field(default_factory=set)  # that something was sent on
    refusals: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # message -> times
    shadowed: int = 0
    doubts: dict[str, Doubt] = field(default_factory=dict)  # by channel
    paid_by_channel: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    closing: dict[str, int] = field(default_factory=dict)  # what of it a close has adjusted, by channel

    def token(self, entry: Entry) -> TokenSum:
        address = entry.text("token")
        found = self.tokens.setdefault(address, TokenSum(address))
        found.symbol = found.symbol or entry.text("symbol")
        return found


def add_up(entries: Iterable[Entry]) -> Sums:
    sums = Sums()
    sent: dict[tuple[str, str, str], Entry] = {}
    told: set[str] = set()  # transactions whose fee is counted
    deposits: set[str] = set()  # and those whose deposit is
    imports: set[tuple[str, int, int]] = set()
    for entry in entries:
        key = (entry.journal, entry.text("channel"), entry.text("request"))
        amount = entry.units("amount")
        if entry.text("uncertain_now"):
            _clear(sums, entry, entry.units("uncertain_now"))
        match entry.text("kind"):
            case "sent":
                sent[key] = entry
                sums.channels.add(entry.text("channel"))
            case "ended":
                sent.pop(key, None)
                _add_ending(sums, entry, amount)
            case "opened" | "topped-up" if entry.text("tx") in deposits:
                pass  # a crash may leave two lines of one transaction
            case "opened" | "topped-up" as kind:
                deposits.add(entry.text("tx") or f"{entry.journal}/{entry.line.number}")
                if kind == "opened":
                    sums.opened.append(entry.text("channel"))
                sums.token(entry).deposited += amount
            case "closed":
                _add_closing(sums, entry)
            case "reconciled":
                _adjust(sums, entry)
            case "imported":
                _add_import(sums, entry, imports)
            case "decision" if entry.text("outcome") == "refused":
                sums.refusals[entry.text("message").removeprefix("not paid: ")] += 1
            case "decision" if entry.text("outcome") == "shadow":
                sums.shadowed += 1
            case _:
                pass
        fee, tx = entry.units("fee"), entry.text("tx")
        if fee and (not tx or tx not in told):  # a crash may leave two lines of one transaction
            sums.token(entry).fees += fee
            told.add(tx)
    for entry in sent.values():
        token = sums.token(entry)
        token.unfinished += entry.units("amount")
        token.unfinished_requests += 1
    return sums


def _add_ending(sums: Sums, entry: Entry, amount: int) -> None:
    outcome = entry.text("outcome")
    if outcome == "paid":
        token = sums.token(entry)
        token.paid += amount
        token.paid_requests += 1
        sums.paid_by_channel[entry.text("channel")] += amount
        if rest := entry.units("uncertain"):  # of a metered stream, what its events do not account for
            _doubt(sums, entry, rest)
    elif outcome in UNCERTAIN:
        _doubt(sums, entry, amount)


def _doubt(sums: Sums, entry: Entry, amount: int) -> None:
    token = sums.token(entry)
    token.uncertain += amount
    token.uncertain_requests += 1
    doubt = sums.doubts.setdefault(entry.text("channel"), Doubt(token.token))
    doubt.amount += amount
    doubt.requests += 1


def _add_closing(sums: Sums, entry: Entry) -> None:
    """The chain has said what was paid: nothing of the channel is uncertain any more."""
    channel_id = entry.text("channel")
    if channel_id in sums.closing:  # a crash may leave two lines of one close
        return
    sums.closing[channel_id] = entry.signed("adjustment")
    _adjust(sums, entry)
    sums.token(entry).refunded += entry.units("refunded")
    sums.closed.append(entry.text("channel"))
    _clear(sums, entry, 0)


def _add_import(sums: Sums, entry: Entry, told: set[tuple[str, int, int]]) -> None:
    """What another store has paid is in that store's ledger: it counts for the channel, and in no sum of ours."""
    step = (entry.text("channel"), entry.units("paid_before"), entry.units("paid"))
    if step not in told:  # a crash may leave two lines of one import
        told.add(step)
        sums.paid_by_channel[step[0]] += step[2] - step[1]


def _adjust(sums: Sums, entry: Entry) -> None:
    """So much more (or less) is paid than the receipts of whole answers have shown."""
    adjustment = entry.signed("adjustment")
    sums.token(entry).adjusted += adjustment
    sums.paid_by_channel[entry.text("channel")] += adjustment


def _clear(sums: Sums, entry: Entry, left: int) -> None:
    """At most `left` is uncertain on the channel from here on: a receipt, a probe or a close has told."""
    doubt = sums.doubts.get(entry.text("channel"))
    if doubt is None or left >= doubt.amount:
        return
    token = sums.tokens[doubt.token]
    token.uncertain -= doubt.amount - left
    doubt.amount = left
    if not left:
        token.uncertain_requests -= doubt.requests
        doubt.requests = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """A channel whose lines and record do not say the same was paid."""

    channel_id: str
    ledger: int
    store: int | None  # None: the store does not know the channel
    doubted: bool  # the record counts the difference as uncertain: a power cut came between

    @property
    def text(self) -> str:
        if self.store is None:
            return f"channel {self.channel_id}: the ledger has {self.ledger} paid, the store does not know it"
        told = f"channel {self.channel_id}: the ledger has {self.ledger} paid, the store {self.store}"
        return f"{told}; the difference is counted as uncertain there" if self.doubted else told


def differences(
    paid: Mapping[str, int],
    channels: Iterable[Channel],
    only: str = "",
    *,
    closing: Mapping[str, int] = MappingProxyType({}),
) -> list[Difference]:
    """Where ledger and store disagree, in base units. `channels` must be folded up to the last line read.

    `closing` is what of `paid` a close has adjusted: a process may have died between that line and the record.
    """
    records = {channel.channel_id: channel for channel in channels if channel.channel_id.startswith(only)}
    found: list[Difference] = []
    for channel_id in sorted({*paid, *records}):
        ledger = paid.get(channel_id, 0)
        record = records.get(channel_id)
        if record is not None and record.status is not ChannelStatus.CLOSED:
            ledger -= closing.get(channel_id, 0)
        if record is None:
            found.append(Difference(channel_id, ledger, None, doubted=False))
        elif ledger != record.paid:
            doubted = 0 < ledger - record.paid <= record.uncertain
            found.append(Difference(channel_id, ledger, record.paid, doubted=doubted))
    return found
