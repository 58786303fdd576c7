"""The money of several channels, processes and servers under crashes, lies and races: nothing ever breaks a rule.

After every step: the four invariants of the account; no limit passed; what the store holds reads back equal. Where
the server is honest, what we count as spent is never less than what it charged, whatever was lost on the way.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

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
    TIGHT,
    TOKEN,
    Flight,
    Probe,
    Process,
    date_of,
    peek,
    run,
    scope_of,
)
from tests.properties.world import World

DRAINING, CLOSING, CLOSED = ChannelStatus.DRAINING, ChannelStatus.CLOSING, ChannelStatus.CLOSED
OPEN, ASIDE, FAILED = ChannelStatus.OPEN, ChannelStatus.ASIDE, ChannelStatus.FAILED
SCOPES = (scope_of(), scope_of(payer="c"))

prices = st.integers(1, 15)
lies = st.one_of(
    st.tuples(st.just(200), st.none(), st.one_of(st.none(), st.integers(0, 400), st.just(2**128 - 1))),
    st.tuples(
        st.just(402),
        st.sampled_from(["insufficient-balance", "delta-too-small", "verification-failed", "expired"]),
        st.none(),
    ),
    st.just((500, None, None)),
)
deposits = st.sampled_from([40, 300, 2_000])
FATES = ("arrives", "whole", "cut", "no receipt", "lost", "never left", "drop")
EVERYTHING = [
    *(*FATES, "arrives", "arrives", "whole", "whole", "lost"),
    *(
        "pay",
        "pay",
        "pay",
        "pay ahead",
        "pay, reserve",
        "raise",
        "commit",
        "commit",
        "one",
        "one",
        "probe",
        "probe",
    ),
]
Lie = tuple[int, str | None, int | None]
Opening = tuple[PaymentScope, bool, int, int]
Script = list[tuple[str, int, int, Lie]]


def scripts(actions: list[str]) -> st.SearchStrategy[Script]:
    """What happens; to which channel or request; at what price; what a server that lies would say."""
    step = st.tuples(st.sampled_from(actions), st.integers(0, 5), prices, lies)
    return st.lists(step, min_size=2, max_size=12)


class AccountMachine(World):
    """What may happen. The store: in memory here, durable in the subclass."""

    @initialize(
        first=st.tuples(st.sampled_from(SCOPES), st.just(True), prices, deposits),
        second=st.none() | st.tuples(st.sampled_from(SCOPES), st.booleans(), prices, deposits),
        tight=st.integers(0, 3),
    )
    def begin(self, first: Opening, second: Opening | None, tight: int) -> None:
        """Most runs are about channels that are open: begin with some."""
        self._start()
        self.caps = CAPS if tight else TIGHT
        for scope, honest, price, deposit in (first, second) if second else (first,):
            channel_id = self._propose(
                self.processes[0], scope, honest, price, deposit if tight else min(deposit, 300)
            )
            self.servers[channel_id].landed = True
            for status in (ChannelStatus.SENT, OPEN):
                self._become_open(self.processes[0], channel_id, status)

    # -- processes

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
        if not self.healthy():
            self._start()
        if data.draw(st.integers(0, 3)):
            self._claim_all(data.draw(st.sampled_from(self.healthy())))

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
            process.start_commit(channel_id, raised, self.caps.raise_moves(raised, date_of(self.now)))
        self._finish(process, channel_id)

    @rule(data=st.data(), another=st.booleans())
    def change_owner(self, data: st.DataObject, another: bool) -> None:
        """Some channel is given back; somebody, perhaps somebody new, takes what is free."""
        if another and len(self.living()) < 4:
            self._start()
        if owned := self.owned(OPEN, DRAINING, *PENDING_OPEN):
            self._hand_over(*data.draw(st.sampled_from(owned)))
        if data.draw(st.integers(0, 3)):
            self._claim_all(data.draw(st.sampled_from(self.healthy())))

    def _claim_all(self, process: Process) -> None:
        for channel_id in sorted(self.authorised):
            if channel_id not in process.channels:
                self._claim(process, channel_id)

    def _claim(self, process: Process, channel_id: str) -> None:
        record = peek(self.reader.find(channel_id))
        assert record is not None
        if record.status in FINAL:
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

    def _hand_over(self, process: Process, channel_id: str) -> None:
        if not process.channels[channel_id].holds:
            run(self.loop, process.release(channel_id))
            self.probes = [one for one in self.probes if one.process is not process]

    # -- opening

    @rule(data=st.data(), opening=st.tuples(st.sampled_from(SCOPES), st.booleans(), prices, deposits))
    def open(self, data: st.DataObject, opening: Opening) -> None:
        """The next step of an opening that is on its way, or a new one."""
        pending = self.owned(*PENDING_OPEN)
        if not pending or data.draw(st.integers(0, 3)) == 0:
            self._propose(data.draw(st.sampled_from(self.healthy())), *opening)
            return
        process, channel_id = data.draw(st.sampled_from(pending))
        if process.channels[channel_id].status is ChannelStatus.PROPOSED and data.draw(st.booleans()):
            self._send_opening(process, channel_id)
        else:
            self._chain_decides(process, channel_id)

    def _send_opening(self, process: Process, channel_id: str) -> None:
        process.start_commit(channel_id, change=lambda one: replace(one, status=ChannelStatus.SENT))
        if not self._finish(process, channel_id):
            return
        channel = process.channels[channel_id]
        if channel.free:  # else it was doubted after a crash: the opening goes without a request
            request = f"r{next(self.numbers)}"
            flight = process.hold(channel_id, request, channel.free, self.now, self.server_now + LIFE_MS)
            self.left(replace(flight, opens=True))

    def _chain_decides(self, process: Process, channel_id: str) -> None:
        """Landed: open. Else, once nothing can bring it any more: failed, and its counters come back."""
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

    @precondition(lambda self: self.owned(OPEN, busy=True) or self.flights)
    @rule(script=scripts(EVERYTHING))
    def traffic(self, script: Script) -> None:
        """A stretch of ordinary life, each step of it followed by the invariants."""
        for action, which, price, lie in script:
            self._act(action, which, price, lie)
            self.holds()

    @precondition(lambda self: self.owned(OPEN))
    @rule(script=scripts(["pay", "pay", "pay", "commit", "arrives", "whole", "lost"]))
    def rush_hour(self, script: Script) -> None:
        """Many requests at once."""
        self.traffic(script)

    @precondition(lambda self: self.owned(OPEN))
    @rule(
        script=scripts(
            [
                "one",
                "one",
                "one",
                "pay, reserve",
                "one, lost",
                "one, lost",
                "one, without receipt",
                "probe",
                "probe",
            ]
        )
    )
    def quiet_hour(self, script: Script) -> None:
        """One after the other, and now and then a question."""
        self.traffic(script)

    @precondition(lambda self: self.flights)
    @rule(lie=lies)
    def everything_arrives(self, lie: Lie) -> None:
        """What was given up long ago, too. Nobody waits for the answers yet."""
        for flight in list(self.flights):
            if flight.answer is None:
                self._arrive(flight, lie)

    def _act(self, action: str, which: int, price: int, lie: Lie) -> None:
        if action in FATES:
            if self.flights:
                self._on_the_wire(self.flights[which % len(self.flights)], action, lie)
            return
        if action == "commit":
            if commits := self.commits_open():
                self._finish_and_send(*commits[which % len(commits)])
            return
        channels = self.owned(OPEN, busy=True)
        if not channels:
            return
        process, channel_id = channels[which % len(channels)]
        match action:
            case "pay":
                self._pay(process, channel_id, price, 0, False)
            case "pay ahead":
                self._pay(process, channel_id, price, 3 * price, False)
            case "pay, reserve":
                self._pay(process, channel_id, price, 0, False, reserve=5 * price)
            case "raise":
                self._pay(process, channel_id, price, 0, True)
            case "probe":
                self._probe(process, channel_id, 7 * price, at_once=True)
            case "one":
                self._one(process, channel_id, price, lie, "whole")
            case "one, lost":
                self._one(process, channel_id, price, lie, "lost")
            case "one, without receipt":
                self._one(process, channel_id, price, lie, "no receipt")

    def _one(self, process: Process, channel_id: str, price: int, lie: Lie, fate: str) -> None:
        """One request from its commit (where it needs one) to its end."""
        self._pay(process, channel_id, price, 0, False)
        if channel_id in process.commits:
            self._finish_and_send(process, channel_id)
        flights = [one for one in self.waiting() if one.channel_id == channel_id and one.answer is None]
        if flights:
            if fate != "lost":
                self._arrive(flights[-1], lie)
            self._ends(flights[-1], fate)

    # -- the wire

    def _on_the_wire(self, flight: Flight, fate: str, lie: Lie) -> None:
        """In any order and however late; also when nobody waits for the answer any more."""
        waits = flight in self.waiting()
        if not waits and fate == "drop":
            self.flights.remove(flight)
        elif flight.answer is None and (fate in ("arrives", "whole", "drop") or not waits):
            self._arrive(flight, lie)
        elif waits:
            self._ends(flight, fate)

    def _ends(self, flight: Flight, fate: str) -> None:
        """What whoever waits for it sees."""
        process, now, answer = flight.process, self.now, flight.answer
        match fate:
            case "whole" | "cut" if answer is not None:
                self._answered(flight, fate == "cut")
            case "no receipt" if answer is not None and answer[0] == 200:
                # A 500 after the charge, or a receipt that something on the way dropped.
                self.flights.remove(flight)
                process.end(flight, Ending.UNDELIVERED, now)
            case "lost" | "answer lost":
                # Timeout or reset: the request may be dead, or arrive later.
                process.end(flight, Ending.UNKNOWN, now)
                flight.client_waits = False
                if answer is not None:
                    self.flights.remove(flight)
            case "never left" if answer is None and not flight.lowered:
                self.flights.remove(flight)
                process.end(flight, Ending.FREE, now)

    # -- asking the server

    @precondition(lambda self: self.owned(OPEN, DRAINING, busy=True))
    @rule(data=st.data(), lie=st.integers(0, 500), at_once=st.booleans())
    def probe(self, data: st.DataObject, lie: int, at_once: bool) -> None:
        self._probe(*data.draw(st.sampled_from(self.owned(OPEN, DRAINING, busy=True))), lie, at_once=at_once)

    def _probe(self, process: Process, channel_id: str, lie: int, *, at_once: bool) -> None:
        channel, server = process.channels[channel_id], self.servers[channel_id]
        if channel.holds or process.durable[channel_id] < channel.issued:
            return
        server.seen = max(server.seen, channel.issued)
        if not server.honest:
            server.acc = server.spent = server.seen
        elif server.check(channel.issued):
            return
        spent = server.spent if server.honest else lie
        probe = Probe(channel_id, process, channel.seq, self.now, channel.issued, spent)
        if at_once:
            process.probed(probe, self.now)
        else:
            self.probes.append(probe)

    @precondition(lambda self: self.probes)
    @rule(data=st.data())
    def probe_answered(self, data: st.DataObject) -> None:
        probe = data.draw(st.sampled_from(self.probes))
        self.probes.remove(probe)
        if probe.process.alive and probe.channel_id in probe.process.channels:
            probe.process.probed(probe, self.now)

    # -- closing

    @precondition(lambda self: self.owned(OPEN, DRAINING, ASIDE, CLOSING))
    @rule(data=st.data(), aside=st.booleans(), probed=st.booleans())
    def close(self, data: st.DataObject, aside: bool, probed: bool) -> None:
        """The next step of a close, or the first."""
        closing = self.owned(CLOSING) or self.owned(DRAINING, ASIDE)
        if not closing and data.draw(st.integers(0, 3)) == 0:  # rarely: there should be life to end
            closing = self.owned(OPEN)
        if not closing:
            return
        process, channel_id = data.draw(st.sampled_from(closing))
        channel, server = process.channels[channel_id], self.servers[channel_id]
        match channel.status:
            case ChannelStatus.OPEN:
                status = ASIDE if aside else DRAINING
                process.start_commit(channel_id, change=lambda one: replace(one, status=status))
            case ChannelStatus.CLOSING:
                self._chain_closes(process, channel_id)
            case _ if not channel.holds:
                amount = server.spent if probed and server.honest else channel.issued
                process.start_commit(
                    channel_id, change=lambda one: replace(one, status=CLOSING, close_amount=amount)
                )

    def _chain_closes(self, process: Process, channel_id: str) -> None:
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

    # -- meanwhile

    @rule(
        data=st.data(),
        what=st.sampled_from(
            [
                *(50, 1_000, 31_000, LIFE_MS + UNKNOWN_MARGIN_MS, LONGEST_MS, budgets.DAY_MS),
                *("back a minute", "back three days", "right again", "settle"),
            ]
        ),
    )
    def meanwhile(self, data: st.DataObject, what: int | str) -> None:
        """Time passes, the local clock jumps, a server settles on the chain what it was authorised."""
        match what:
            case int():
                self.server_now += what
            case "back a minute":
                self.skew = -60_000
            case "back three days":
                self.skew = -3 * budgets.DAY_MS
            case "right again" if self.skew:
                # What is on the wire is dropped: no local clock can tell how long it has been there.
                self.skew = 0
                self.flights = [one for one in self.flights if one.client_waits]
            case "settle":
                server = self.servers[data.draw(st.sampled_from(sorted(self.servers)))]
                server.settled = server.acc


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
