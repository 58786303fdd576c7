"""What must be true after every kill, of what is on record and what the world has seen. Says in words what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from proxy_addon.demo.paid_api import PRICE
from store import account, budgets
from store.account import IllegalMove
from store.lifecycle import FINAL, PENDING_OPEN, REUSABLE, ChannelStatus
from store.records import Channel
from tests.crash.jobs import MOST_PER_STREAM, Report
from tests.crash.world import World


class Kind(StrEnum):
    REGRESSION = "regressions"  # less is authorised than was, or than has left
    LOST = "lost deposits"
    UNCOUNTED = "charges not counted"
    BROKEN = "broken sums"
    LIMIT = "limits passed"
    STUCK = "not resumed"
    TROUBLE = "trouble"  # what no kill may lead to, or the harness itself


@dataclass(frozen=True)
class Violation:
    kind: Kind
    text: str


@dataclass
class Auditor:
    """Remembers one wallet's records from one process to the next."""

    world: World
    before: dict[str, Channel] = field(default_factory=dict)

    def audit(self, report: Report) -> list[Violation]:
        found = [Violation(kind, text) for kind, text in self._look(report)]
        self.before = {channel.channel_id: channel for channel in report.channels}
        return found

    def _look(self, report: Report) -> Iterator[tuple[Kind, str]]:
        records = {channel.channel_id: channel for channel in report.channels}
        for text in self.world.wrong:
            yield Kind.TROUBLE, text
        self.world.wrong.clear()
        for channel_id, voucher in self.world.vouchers.items():
            record = records.get(channel_id)
            if record is None:
                yield Kind.LOST, f"{channel_id} got a voucher of {voucher}, and is not on record"
            elif voucher > record.authorised:
                yield Kind.REGRESSION, f"{channel_id} got a voucher of {voucher} over {record.authorised}"
        for channel_id in self.world.openings:
            if channel_id not in records:
                yield Kind.LOST, f"the opening of {channel_id} has left, and is not on record"
        for channel_id, deposit in self.world.on_chain.items():
            record = records.get(channel_id)
            if record is None:
                yield Kind.LOST, f"{channel_id} was opened on the chain, and is not on record"
            elif deposit and record.status in FINAL:
                yield Kind.LOST, f"{channel_id} has {deposit} in it, and is {record.status} on record"
        for line in self.world.lines:
            # The first voucher is its first unit's, and what others have left over on the channel.
            if line.highest - line.first > MOST_PER_STREAM - PRICE:
                yield Kind.LIMIT, f"one WebSocket got vouchers from {line.first} to {line.highest}"
        for channel in report.channels:
            yield from self._channel(channel, report)
        yield from self._sums(report)

    def _channel(self, channel: Channel, report: Report) -> Iterator[tuple[Kind, str]]:
        name, before = channel.channel_id, self.before.get(channel.channel_id)
        if before is not None and (channel.authorised < before.authorised or channel.epoch < before.epoch):
            yield Kind.REGRESSION, f"{name} went back from {before} to {channel}"
        for one in (channel, report.folded.get(name, channel)):
            try:
                account.check(one)
            except IllegalMove as error:
                yield Kind.BROKEN, str(error)
            if one.authorised != one.paid + one.uncertain + one.held + one.free:
                yield Kind.BROKEN, f"the parts of {name} are another sum: {one}"
        folded = report.folded.get(name, channel)
        if folded.holds and name in report.folded:
            yield Kind.BROKEN, f"{name} was recovered with requests in flight: {folded}"
        if channel.status is ChannelStatus.CLOSED:  # what the chain says, whatever was known before
            captured = self.world.captured.get(name)
            if (channel.captured, channel.paid) != (captured, captured):
                yield Kind.BROKEN, f"{name} was captured {captured} by the chain; on record: {channel}"
            return
        book = self.world.api.payee.accounts.get(name)
        counted = folded.paid + folded.uncertain + folded.held
        left = self.world.vouchers.get(name, 0)
        if left > folded.issued and channel.status is not ChannelStatus.FAILED:
            yield Kind.REGRESSION, f"{name} got a voucher of {left}, and it is taken for reserved: {folded}"
        if book is not None and book.spent > counted and channel.status is not ChannelStatus.FAILED:
            yield Kind.UNCOUNTED, f"{name} was charged {book.spent}, and {counted} are counted: {folded}"

    def _sums(self, report: Report) -> Iterator[tuple[Kind, str]]:
        counters = report.counters
        authorised = sum(
            channel.authorised for channel in report.channels if channel.status is not ChannelStatus.FAILED
        )
        refunded = _sum(counters, budgets.REFUNDED)
        for family in budgets.RAISED:
            counted = _sum(counters, family) + (refunded if family == budgets.LIFETIME else 0)
            if counted != authorised:
                yield Kind.BROKEN, f"{family} says {counted}, and {authorised} are authorised"
        for family, limit in report.limits.items():
            for key, value in counters.items():
                if key.startswith(family) and value > limit:
                    yield Kind.LIMIT, f"{key} is {value}, over {limit}"
        opened = sum(channel.status is not ChannelStatus.FAILED for channel in report.channels)
        if _sum(counters, "opens/") != opened:
            yield Kind.BROKEN, f"{_sum(counters, 'opens/')} openings are counted, {opened} on record"
        deposited = sum(deposit for deposit in self.world.on_chain.values())
        if _sum(counters, "deposits/") < deposited:
            yield Kind.BROKEN, f"{deposited} are in escrow, {_sum(counters, 'deposits/')} are counted"


def _sum(counters: Mapping[str, int], family: str) -> int:
    return sum(value for key, value in counters.items() if key.startswith(family))


@dataclass(frozen=True)
class Expectation:
    """Of the first request after a kill: is it to be served, and may it open a channel?"""

    served: bool
    opens: bool

    @classmethod
    def of(cls, report: Report, on_chain: Mapping[str, int]) -> Expectation:
        found = [report.folded.get(one.channel_id, one) for one in report.channels]
        found = [one for one in found if one.scope.origin == report.origin]
        alive = [one for one in found if one.status in REUSABLE]
        landing = any(one.status in PENDING_OPEN and one.channel_id in on_chain for one in alive)
        if landing or any(one.status is ChannelStatus.OPEN and _has_room(one) for one in alive):
            return cls(served=True, opens=False)
        failing = sum(one.status in PENDING_OPEN for one in alive)
        return cls(served=len(alive) - failing < MOST_CHANNELS, opens=True)


MOST_CHANNELS = 8


def _has_room(channel: Channel) -> bool:
    need = max(PRICE, channel.min_delta)
    return channel.free >= PRICE or channel.authorised + need - channel.free <= channel.ceiling
