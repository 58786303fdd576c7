"""The money of several channels, processes and servers under crashes, lies and races: nothing ever breaks a rule.

After every step: the four invariants of the account; no limit passed; what the store holds reads back equal. Where
the server is honest, what we count as spent is never less than what it charged, whatever was lost on the way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from store import budgets
from store.account import UNKNOWN_MARGIN_MS, Ending
from store.channels import ChannelBusy
from store.contract import Backend
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus
from store.lmdb_store import LmdbBackend
from store.records import PaymentScope
from tests.properties.bank import (
    CAPS,
    LIFE_MS,
    LONGEST_MS,
    TOKEN,
    Probe,
    date_of,
    run,
    scope_of,
)
from tests.properties.world import World

DRAINING, CLOSING, CLOSED = ChannelStatus.DRAINING, ChannelStatus.CLOSING, ChannelStatus.CLOSED
OPEN, ASIDE, FAILED = ChannelStatus.OPEN, ChannelStatus.ASIDE, ChannelStatus.FAILED
SCOPES = (scope_of(), scope_of(payer="c"))
prices = st.integers(1, 40)
lies = st.one_of(
    st.tuples(st.just(200), st.none(), st.one_of(st.none(), st.integers(0, 400), st.just(2**128 - 1))),
    st.tuples(
        st.just(402),
        st.sampled_from(["insufficient-balance", "delta-too-small", "verification-failed", "expired"]),
        st.none(),
    ),
    st.just((500, None, None)),
)


class AccountMachine(World):
    """Several processes on one store. `kind` of the store: see the subclasses."""

    # -- small helpers

    # -- processes

    @initialize(
        openings=st.lists(
            st.tuples(st.sampled_from(SCOPES), st.booleans(), prices, st.sampled_from([40, 120, 300])),
            min_size=1,
            max_size=3,
        )
    )
    def first(self, openings: list[tuple[PaymentScope, bool, int, int]]) -> None:
        """Most runs are about channels that are open: begin with some."""
        self._start()
        self._start()
        for opening in openings:
            channel_id = self._propose(self.processes[0], *opening)
            self.servers[channel_id].landed = True
            for status in (ChannelStatus.SENT, OPEN):
                self._become_open(self.processes[0], channel_id, status)

    @precondition(lambda self: len(self.living()) < 3)
    @rule()
    def start(self) -> None:
        self._start()

    @precondition(lambda self: self.living())
    @rule(
        data=st.data(),
        how=st.sampled_from(["kill", "kill", "kill", "power", "lock"]),
        landed=st.booleans(),
        torn=st.integers(0, 60),
        keep=st.floats(0, 1),
    )
    def disaster(self, data: st.DataObject, how: str, landed: bool, torn: int, keep: float) -> None:
        process = data.draw(st.sampled_from(self.living()))
        match how:
            case "kill":
                self._kill_one(process, landed, torn)
            case "power":
                self._power_cut(keep, landed)
            case _:
                # A zombie: it runs, but the others take it for dead. It signs nothing from now on.
                process.zombie = True
                self.owners.discard(process.name)
        if not any(not one.zombie for one in self.living()):
            self._start()

    @precondition(lambda self: any(one.zombie and one.channels for one in self.living()))
    @rule(data=st.data(), raised=st.integers(0, 10))
    def zombie_writes(self, data: st.DataObject, raised: int) -> None:
        """Its commits count until another process has claimed the channel, and never after that."""
        process = data.draw(st.sampled_from([one for one in self.living() if one.zombie and one.channels]))
        channel_id = data.draw(st.sampled_from(sorted(process.channels)))
        channel = process.channels[channel_id]
        if channel_id not in process.commits:
            if channel.status is not OPEN or channel.authorised + raised > channel.ceiling:
                return
            process.start_commit(channel_id, raised, CAPS.raise_moves(raised, date_of(self.now)))
        self._finish(process, channel_id)

    # -- owning and giving back

    @precondition(lambda self: self.authorised and any(not one.zombie for one in self.living()))
    @rule(data=st.data())
    def claim(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from([one for one in self.living() if not one.zombie]))
        channel_id = data.draw(st.sampled_from(sorted(self.authorised)))
        record = run(self.loop, self.reader.find(channel_id))
        assert record is not None
        if record.status in FINAL or channel_id in process.channels:
            return
        if record.owner is not None and record.owner in self.owners:
            assert record.owner != process.name
            with pytest.raises(ChannelBusy):
                run(self.loop, process.claim(channel_id, self.now))
            return
        claimed = run(self.loop, process.claim(channel_id, self.now))
        assert claimed.epoch == record.epoch + 1
        assert claimed.owner == process.name
        assert not claimed.holds
        if record.owner is None:
            kept = replace(claimed, owner=None, epoch=record.epoch, folded=record.folded)
            assert kept == record

    @precondition(lambda self: self.owned(OPEN, DRAINING, *PENDING_OPEN))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        process, channel_id = data.draw(st.sampled_from(self.owned(OPEN, DRAINING, *PENDING_OPEN)))
        if not process.channels[channel_id].holds:
            run(self.loop, process.release(channel_id))
            self.probes = [one for one in self.probes if one.process is not process]

    # -- opening

    @precondition(lambda self: any(not one.zombie for one in self.living()))
    @rule(
        data=st.data(),
        scope=st.sampled_from(SCOPES),
        honest=st.booleans(),
        price=prices,
        deposit=st.sampled_from([40, 120, 300]),
    )
    def propose(
        self, data: st.DataObject, scope: PaymentScope, honest: bool, price: int, deposit: int
    ) -> None:
        self._propose(
            data.draw(st.sampled_from([one for one in self.living() if not one.zombie])),
            scope,
            honest,
            price,
            deposit,
        )

    @precondition(lambda self: self.owned(ChannelStatus.PROPOSED))
    @rule(data=st.data())
    def send_opening(self, data: st.DataObject) -> None:
        process, channel_id = data.draw(st.sampled_from(self.owned(ChannelStatus.PROPOSED)))
        process.start_commit(channel_id, change=lambda one: replace(one, status=ChannelStatus.SENT))
        if not self._finish(process, channel_id):
            return
        channel = process.channels[channel_id]
        if channel.free:  # else it was doubted after a crash: the opening goes without a request
            request = f"r{next(self.numbers)}"
            flight = process.hold(channel_id, request, channel.free, self.now, self.server_now + LIFE_MS)
            self.left(replace(flight, opens=True))

    @precondition(lambda self: self.owned(*PENDING_OPEN))
    @rule(data=st.data())
    def chain_decides(self, data: st.DataObject) -> None:
        """Landed: open. Else, once nothing can bring it any more: failed, and its counters come back."""
        process, channel_id = data.draw(st.sampled_from(self.owned(*PENDING_OPEN)))
        server, channel = self.servers[channel_id], process.channels[channel_id]
        if channel.status is ChannelStatus.PROPOSED:
            process.start_commit(channel_id, change=lambda one: replace(one, status=ChannelStatus.UNKNOWN))
            self._finish(process, channel_id)
        elif server.landed:
            self._become_open(process, channel_id, OPEN)
        elif not any(one.channel_id == channel_id and one.opens for one in self.flights):
            assert channel.pending is not None
            counters = budgets.reversed_moves(channel.pending.counters)
            process.start_commit(
                channel_id,
                counters=counters,
                change=lambda one: replace(one, status=FAILED, holds={}, held=0),
            )
            if self._finish(process, channel_id):
                self.authorised[channel_id] = 0

    # -- paying

    @precondition(lambda self: self.owned(OPEN))
    @rule(data=st.data(), price=prices, count=st.integers(1, 4), lie=lies)
    def burst(self, data: st.DataObject, price: int, count: int, lie: Any) -> None:
        """Some requests at once on one raise; some of them come back at once."""
        process, channel_id = data.draw(st.sampled_from(self.owned(OPEN)))
        self._pay(process, channel_id, price * count, 0, False)
        if channel_id in process.commits:
            process.commits[channel_id].request = None
            self._finish(process, channel_id)
        while channel_id in process.channels and process.channels[channel_id].free >= price and count:
            count -= 1
            self._pay(process, channel_id, price, 0, False)
        for flight in [one for one in self.flights if one.answer is None and one.client_waits][-3:]:
            if data.draw(st.booleans()):
                self._arrive(flight, lie)
                if flight in self.waiting() and data.draw(st.booleans()):
                    self._answered(flight, False)

    @precondition(lambda self: self.owned(OPEN))
    @rule(data=st.data(), price=prices, lie=lies, cut=st.booleans())
    def alone(self, data: st.DataObject, price: int, lie: Any, cut: bool) -> None:
        """One request, there and back, with its commit where it needs one."""
        process, channel_id = data.draw(st.sampled_from(self.owned(OPEN)))
        self._pay(process, channel_id, price, 0, False)
        if channel_id in process.commits:
            self._finish_and_send(process, channel_id)
        flights = [one for one in self.waiting() if one.channel_id == channel_id and one.answer is None]
        for flight in flights[-1:]:
            self._arrive(flight, lie)
            self._answered(flight, cut)

    @precondition(lambda self: self.owned(OPEN, busy=True))
    @rule(data=st.data(), price=prices, ahead=st.sampled_from([0, 0, 20]), forced=st.booleans())
    def pay(self, data: st.DataObject, price: int, ahead: int, forced: bool) -> None:
        self._pay(*data.draw(st.sampled_from(self.owned(OPEN, busy=True))), price, ahead, forced)

    @precondition(lambda self: self.commits_open())
    @rule(data=st.data())
    def finish_commit(self, data: st.DataObject) -> None:
        self._finish_and_send(*data.draw(st.sampled_from(self.commits_open())))

    # -- the wire

    @precondition(lambda self: any(one.answer is None for one in self.flights))
    @rule(data=st.data(), lie=lies)
    def arrive(self, data: st.DataObject, lie: tuple[int, str | None, int | None]) -> None:
        """At the server, in any order and however late; also when nobody waits for the answer any more."""
        self._arrive(data.draw(st.sampled_from([one for one in self.flights if one.answer is None])), lie)

    @precondition(lambda self: any(one.answer for one in self.waiting()))
    @rule(data=st.data(), cut=st.booleans())
    def answered(self, data: st.DataObject, cut: bool) -> None:
        self._answered(data.draw(st.sampled_from([one for one in self.waiting() if one.answer])), cut)

    @precondition(lambda self: any(one.answer and one.answer[0] == 200 for one in self.waiting()))
    @rule(data=st.data())
    def answered_without_receipt(self, data: st.DataObject) -> None:
        """A 500 after the charge, or a receipt that some proxy dropped."""
        flights = [one for one in self.waiting() if one.answer and one.answer[0] == 200]
        flight = data.draw(st.sampled_from(flights))
        self.flights.remove(flight)
        flight.process.end(flight, Ending.UNDELIVERED, self.now)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data())
    def lost(self, data: st.DataObject) -> None:
        """Timeout or reset: the request may be dead, or arrive later."""
        flight = data.draw(st.sampled_from(self.waiting()))
        flight.process.end(flight, Ending.UNKNOWN, self.now)
        flight.client_waits = False
        if flight.answer is not None:
            self.flights.remove(flight)

    @precondition(lambda self: any(one.answer is None for one in self.waiting()))
    @rule(data=st.data())
    def never_left(self, data: st.DataObject) -> None:
        flight = data.draw(st.sampled_from([one for one in self.waiting() if one.answer is None]))
        if flight.lowered:
            return  # its first attempt did leave
        self.flights.remove(flight)
        flight.process.end(flight, Ending.FREE, self.now)

    @precondition(lambda self: self.flights)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        """The network lost it; whoever waits finds out by a timeout."""
        flight = data.draw(st.sampled_from(self.flights))
        if not flight.client_waits:
            self.flights.remove(flight)

    # -- asking the server

    @precondition(lambda self: self.owned(OPEN, DRAINING, busy=True))
    @rule(data=st.data(), lie=st.integers(0, 500))
    def probe(self, data: st.DataObject, lie: int) -> None:
        process, channel_id = data.draw(st.sampled_from(self.owned(OPEN, DRAINING, busy=True)))
        channel, server = process.channels[channel_id], self.servers[channel_id]
        if channel.holds or process.durable[channel_id] < channel.authorised:
            return
        server.seen = max(server.seen, channel.authorised)
        if not server.honest:
            server.acc = server.spent = server.seen
        elif server.check(channel.authorised):
            return
        spent = server.spent if server.honest else lie
        self.probes.append(Probe(channel_id, process, channel.seq, self.now, channel.authorised, spent))

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def probe_answered(self, data: st.DataObject) -> None:
        probe = data.draw(st.sampled_from(self.probes))
        self.probes.remove(probe)
        if probe.process.alive and probe.channel_id in probe.process.channels:
            probe.process.probed(probe, self.now)

    @precondition(lambda self: self.servers)
    @rule(data=st.data())
    def server_settles(self, data: st.DataObject) -> None:
        server = self.servers[data.draw(st.sampled_from(sorted(self.servers)))]
        server.settled = server.acc

    # -- closing

    @precondition(lambda self: self.owned(OPEN))
    @rule(data=st.data(), aside=st.booleans())
    def drain(self, data: st.DataObject, aside: bool) -> None:
        process, channel_id = data.draw(st.sampled_from(self.owned(OPEN)))
        status = ASIDE if aside else DRAINING
        process.start_commit(channel_id, change=lambda one: replace(one, status=status))

    @precondition(lambda self: self.owned(DRAINING, ASIDE))
    @rule(data=st.data(), probed=st.booleans())
    def begin_close(self, data: st.DataObject, probed: bool) -> None:
        process, channel_id = data.draw(st.sampled_from(self.owned(DRAINING, ASIDE)))
        channel, server = process.channels[channel_id], self.servers[channel_id]
        if channel.holds:
            return
        amount = server.spent if probed and server.honest else channel.authorised
        process.start_commit(channel_id, change=lambda one: replace(one, status=CLOSING, close_amount=amount))

    @precondition(lambda self: self.owned(CLOSING))
    @rule(data=st.data())
    def chain_closes(self, data: st.DataObject) -> None:
        process, channel_id = data.draw(st.sampled_from(self.owned(CLOSING)))
        channel, server = process.channels[channel_id], self.servers[channel_id]
        amount = channel.close_amount
        assert amount is not None
        server.seen = max(server.seen, amount)
        captured = max(server.spent, server.settled) if server.honest else max(server.seen, server.settled)
        process.start_commit(
            channel_id,
            counters=budgets.refund_moves(TOKEN.address, channel.authorised - captured),
            change=lambda one: replace(
                one, status=CLOSED, captured=captured, refunded=server.deposit - captured
            ),
        )
        self._finish(process, channel_id)

    # -- time

    @rule(ms=st.sampled_from([50, 1_000, 31_000, LIFE_MS + UNKNOWN_MARGIN_MS, LONGEST_MS, budgets.DAY_MS]))
    def time_passes(self, ms: int) -> None:
        self.server_now += ms

    @rule(ms=st.sampled_from([1_000, 120_000, budgets.DAY_MS, 3 * budgets.DAY_MS]))
    def clock_jumps_back(self, ms: int) -> None:
        self.skew = -ms

    @precondition(lambda self: self.skew)
    @rule()
    def clock_is_right_again(self) -> None:
        """Forward: what is on the wire is dropped, since no local clock can tell how long it has been there."""
        self.skew = 0
        for flight in [one for one in self.flights if not one.client_waits]:
            self.flights.remove(flight)

    # -- what must hold after every step


class LmdbAccountMachine(AccountMachine):
    """The same on the durable store."""

    async def backend(self, directory: Path) -> Backend:
        return await LmdbBackend.open(directory)


class TestMemory(AccountMachine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        max_examples=settings().max_examples // 2, stateful_step_count=settings().stateful_step_count
    )


class TestLmdb(LmdbAccountMachine.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        max_examples=settings().max_examples // 8, stateful_step_count=settings().stateful_step_count
    )
