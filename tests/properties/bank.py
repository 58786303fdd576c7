"""Servers, processes and wires for the account machine: small enough to be believed, real where money is decided.

The store, the journal and the account's moves are the project's own. A `Process` does what the payer does with
them, in the payer's order, one step at a time, so that a crash fits between any two. A `Server` writes down every
voucher that it ever saw, and what it truly charged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

from proxy_addon.core.policy import Caps
from store import account, budgets
from store.account import UNKNOWN_MARGIN_MS, Ended, Ending, IllegalMove, Probed, Sent
from store.amounts import Token
from store.channels import ChannelStore, Fenced
from store.contract import Backend, StoreUnavailable, Transaction
from store.journal import Journal, moves_after
from store.lifecycle import ChannelStatus
from store.records import Channel, CounterMove, PaymentScope, PendingTransaction

T = TypeVar("T")

TOKEN = Token("0x" + "20c0" + "0" * 36, "pathUSD", 6)
LIFE_MS = 300_000  # of a challenge
LONGEST_MS = 3_600_000
CAPS = Caps(
    token=TOKEN,
    host="api.example.com:443",
    rule="policy.hosts[0]",
    per_request=200,
    host_day=3_000,
    total_day=4_000,
    lifetime=9_000,
    max_deposit=2_000,
    deposit=200,
    opens_per_day=6,
    deposits_per_day=9_000,
    channels_per_scope=3,
    authorise_ahead=30,
    escrow_total=7_000,
)


def scope_of(origin: str = "https://api.example.com:443", payer: str = "a") -> PaymentScope:
    return PaymentScope(
        family="tempo-session",
        version="v2",
        chain="eip155:4217",
        escrow="0x" + "4d50" + "0" * 36,
        token=TOKEN.address,
        payee="0x" + "b" * 40,
        payer="0x" + payer * 40,
        voucher_signer="0x" + payer * 40,
        discriminator="0x" + "0" * 40,
        origin=origin,
    )


def proposed(channel_id: str, scope: PaymentScope, **fields: object) -> Channel:
    """A channel as `payer` proposes it; `fields` override."""
    base = Channel(
        channel_id=channel_id,
        scope=scope,
        descriptor={"payer": scope.payer, "payee": scope.payee, "salt": "0x" + "1" * 64},
        resource="https://api.example.com/paid",
        status=ChannelStatus.PROPOSED,
        pending=PendingTransaction("open", "0x76aa", "0x" + "e" * 64, 1_800_000_000, 100),
    )
    return replace(base, **fields)  # type: ignore[arg-type]


class Died(BaseException):
    """The process was killed inside a call to the store."""


class Face:
    """One process's view of a store that several share: a real backend below, an owner and a fate of its own."""

    def __init__(self, inner: Backend, owners: set[str], name: str) -> None:
        self._inner, self._owners, self._name = inner, owners, name
        self.fate: str | None = None  # "lost" | "landed": the next commit kills the process
        owners.add(name)

    @property
    def owner_id(self) -> str:
        return self._name

    def alive(self, owner_id: str) -> bool:
        return owner_id in self._owners

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        match self.fate:
            case None:
                return await self._inner.transact(work)
            case "lost":
                raise Died
            case "full":
                raise StoreUnavailable("the disk is full")
            case _:
                try:
                    await self._inner.transact(work)
                finally:
                    raise Died

    async def view(self, work: Callable[[Transaction], T]) -> T:
        return await self._inner.view(work)

    async def close(self) -> None:
        self._owners.discard(self._name)


@dataclass
class Server:
    """The payee's account of one channel. Honest: as mppx. Else it takes what it can and says what it likes."""

    honest: bool
    deposit: int
    landed: bool = False
    acc: int = 0
    spent: int = 0
    settled: int = 0
    seen: int = 0  # the highest voucher it was ever shown
    charges: list[tuple[str, int]] = field(default_factory=list)

    def check(self, voucher: int) -> str | None:
        if voucher > self.deposit:
            return "amount-exceeds-deposit"
        if voucher <= self.settled or voucher < self.acc:
            return "verification-failed"
        self.acc = voucher
        return None

    def handle(self, flight: Flight, now: int) -> tuple[int, str | None, int | None]:
        """→ status, problem, receipt."""
        self.seen = max(self.seen, flight.voucher)
        self.landed = self.landed or flight.opens
        if now > flight.expires_at:
            return 402, "expired", None
        refused = self.check(flight.voucher)
        if refused:
            return 402, refused, None
        if self.acc - self.spent < flight.price:
            return 402, "insufficient-balance", None
        self.spent += flight.price
        self.charges.append((flight.request_id, flight.price))
        return 200, None, self.spent


@dataclass(eq=False)
class Flight:
    """One attempt of a request, on its way to the server or back."""

    channel_id: str
    process: Process
    request_id: str
    price: int
    voucher: int
    expires_at: int
    opens: bool = False
    lowered: int = 0
    answer: tuple[int, str | None, int | None] | None = None
    client_waits: bool = True


@dataclass(eq=False)
class Probe:
    channel_id: str
    process: Process
    seq: int
    sent_at: int
    voucher: int
    spent: int


@dataclass
class Commit:
    """Taken in memory, not yet known to be durable."""

    target: Channel
    counters: tuple[CounterMove, ...]
    raised: int
    change: Callable[[Channel], Channel] | None
    request: tuple[str, int, int] | None  # who waits: request id, price, and how much higher its voucher is


class Process:
    """One run of the proxy: its lock, its journal, the channels that it has in memory."""

    def __init__(self, number: int, inner: Backend, owners: set[str], ledger: Path, boot: str) -> None:
        self.name = f"process-{number:04d}"
        self.alive = True
        self.zombie = False
        self.face = Face(inner, owners, self.name)
        self.store = ChannelStore(self.face)
        self.ledger, self.boot = ledger, boot
        self.journal = Journal(ledger, self.name, boot)
        self.channels: dict[str, Channel] = {}
        self.durable: dict[str, int] = {}
        self.commits: dict[str, Commit] = {}

    # -- owning

    def recover(self, now: int) -> Callable[[Channel], Channel]:
        def run(channel: Channel) -> Channel:
            mark = channel.folded
            if mark is not None and mark.boot_id == self.boot and mark.journal == channel.owner:
                try:
                    return account.fold(channel, moves_after(self.ledger, mark, channel.channel_id))
                except IllegalMove:
                    raise AssertionError("a journal of this boot must fold") from None
            return account.doubt_everything(channel, now + LONGEST_MS + UNKNOWN_MARGIN_MS)

        return run

    async def claim(self, channel_id: str, now: int) -> Channel:
        channel = await self.store.claim(channel_id, self.recover(now), mark=self.journal.mark)
        self.own(channel)
        return channel

    def own(self, channel: Channel) -> None:
        self.channels[channel.channel_id] = channel
        self.durable[channel.channel_id] = channel.authorised

    async def release(self, channel_id: str) -> None:
        await self.store.release(replace(self.channels[channel_id], folded=self.journal.mark))
        del self.channels[channel_id], self.durable[channel_id]

    # -- moving

    def hold(
        self, channel_id: str, request_id: str, price: int, now: int, expires_at: int, step: int = 0
    ) -> Flight:
        """`step`: the voucher is so much higher than the last, out of what is reserved."""
        channel = account.issue(self.channels[channel_id], step)
        channel, held = account.hold(
            channel,
            request_id,
            price,
            voucher=channel.issued,
            sent_at=now,
            expires_at=expires_at,
            fingerprint="f",
        )
        self.journal.append({"kind": "sent"}, channel_id=channel_id, move=Sent(held))
        self.channels[channel_id] = channel
        assert held.voucher <= self.durable[channel_id], "a voucher was signed before it was durable"
        return Flight(channel_id, self, request_id, price, held.voucher, expires_at)

    def resend(self, flight: Flight) -> Flight:
        channel, held = account.restamp(
            self.channels[flight.channel_id],
            flight.request_id,
            voucher=self.channels[flight.channel_id].issued,
            expires_at=flight.expires_at,
        )
        self.journal.append({"kind": "sent"}, channel_id=flight.channel_id, move=Sent(held))
        self.channels[flight.channel_id] = channel
        assert held.voucher <= self.durable[flight.channel_id]
        return replace(flight, voucher=held.voucher, lowered=flight.lowered + 1, answer=None)

    def end(
        self, flight: Flight, ending: Ending, now: int, spent: int | None = None, accepted: bool = False
    ) -> None:
        channel = self.channels[flight.channel_id]
        voucher = channel.holds[flight.request_id].voucher
        if spent is not None:
            # As far as it can be true: the fold, which sees a raise on its way as done, must not hear more.
            spent = min(spent, channel.issued)
        move = Ended(flight.request_id, ending, now, spent, voucher if accepted else 0)
        self.journal.append({"kind": "ended"}, channel_id=flight.channel_id, move=move)
        self.channels[flight.channel_id] = account.end(channel, move)

    def probed(self, probe: Probe, now: int) -> None:
        spent = min(probe.spent, self.channels[probe.channel_id].issued)
        move = Probed(probe.seq, probe.sent_at, now, spent, probe.voucher)
        self.journal.append({"kind": "probed"}, channel_id=probe.channel_id, move=move)
        self.channels[probe.channel_id] = account.probed(self.channels[probe.channel_id], move)

    # -- committing, in two steps

    def start_commit(
        self,
        channel_id: str,
        raised: int = 0,
        counters: tuple[CounterMove, ...] = (),
        change: Callable[[Channel], Channel] | None = None,
        request: tuple[str, int, int] | None = None,
    ) -> None:
        target = replace(self.channels[channel_id], folded=self.journal.mark)
        if change is not None:
            target = change(target)
        target = account.raise_authorised(target, raised)
        self.commits[channel_id] = Commit(target, counters, raised, change, request)

    async def finish_commit(self, channel_id: str) -> Commit:
        commit = self.commits.pop(channel_id)
        final = commit.target.status in (ChannelStatus.CLOSED, ChannelStatus.FAILED)
        try:
            if final:
                await self.store.delete(commit.target, commit.counters)
            else:
                await self.store.set(commit.target, commit.counters)
        except Fenced:
            self.forget(channel_id)
            raise
        if final:
            self.forget(channel_id)
            return commit
        channel = self.channels[channel_id]
        if commit.change is not None:
            channel = commit.change(channel)
        self.own(account.raise_authorised(channel, commit.raised))
        return commit

    def forget(self, channel_id: str) -> None:
        self.channels.pop(channel_id, None)
        self.durable.pop(channel_id, None)
        self.commits.pop(channel_id, None)

    def die(self, owners: set[str]) -> None:
        self.alive = False
        owners.discard(self.name)
        self.channels.clear()
        self.commits.clear()
        self.journal.close()


def step_for(channel: Channel, price: int) -> int:
    """How much higher the voucher has to be for one more request of `price`."""
    missing = max(0, price - channel.spare)
    return max(missing, channel.min_delta) if missing else 0


def date_of(now: int) -> str:
    return budgets.iso_date(now // budgets.DAY_MS)


TIGHT = replace(
    CAPS, host_day=150, total_day=200, lifetime=400, opens_per_day=3, deposits_per_day=700, escrow_total=650
)
"""Limits that are reached within a few requests."""


def peek(reading: Coroutine[None, None, T]) -> T:
    """The result of a read, which both backends give without a turn of the loop."""
    try:
        reading.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise AssertionError("a read had to wait")


def run(loop: asyncio.AbstractEventLoop, work: Awaitable[T]) -> T:
    async def outer() -> T:
        return await work

    return loop.run_until_complete(outer())
