"""The world of the account machine: its state, what can be done in it, and what must hold after every step."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hypothesis.stateful import RuleBasedStateMachine, invariant

from store import account, budgets
from store.account import UNKNOWN_MARGIN_MS, Ending
from store.channels import ChannelStore, Fenced, LimitExceeded, ScopeFull
from store.charging import ClockWentBack
from store.codec import decode_channel, encode_channel
from store.contract import Backend
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus
from store.memory_store import MemoryBackend
from store.records import Channel, PaymentScope
from tests.properties import steps
from tests.properties.bank import (
    CAPS,
    LIFE_MS,
    LONGEST_MS,
    Died,
    Face,
    Flight,
    Probe,
    Process,
    Server,
    date_of,
    peek,
    proposed,
    run,
    scope_of,
    step_for,
)

DRAINING, CLOSING, CLOSED = ChannelStatus.DRAINING, ChannelStatus.CLOSING, ChannelStatus.CLOSED
OPEN, ASIDE, FAILED = ChannelStatus.OPEN, ChannelStatus.ASIDE, ChannelStatus.FAILED
SCOPES = (scope_of(), scope_of(payer="c"))
START = 20_000 * budgets.DAY_MS - 400_000  # minutes before midnight


class World(RuleBasedStateMachine):
    """Several processes on one store, several servers, and what is on the way between them."""

    async def backend(self, directory: Path) -> Backend:
        return MemoryBackend()

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="bursar-bank-"))
        self.ledger = self.directory / "ledger"
        self.loop = asyncio.new_event_loop()
        self.inner = run(self.loop, self.backend(self.directory / "store"))
        self.owners: set[str] = set()
        self.reader = ChannelStore(Face(self.inner, self.owners, "reader"))
        self.numbers = itertools.count(1)
        self.processes: list[Process] = []
        self.servers: dict[str, Server] = {}
        self.flights: list[Flight] = []
        self.probes: list[Probe] = []
        self.authorised: dict[str, int] = {}  # by the commits that the policy allowed, and by nothing else
        self.last_seen: dict[str, int] = {}
        self.server_now, self.skew = START, 0
        self.boot = "boot-0"
        self.caps = CAPS
        self.checked: dict[str, Channel] = {}

    @property
    def now(self) -> int:
        """The local clock."""
        return self.server_now + self.skew

    def living(self) -> list[Process]:
        return [one for one in self.processes if one.alive]

    def healthy(self) -> list[Process]:
        """Those that know that they live, and do."""
        return [one for one in self.living() if not one.zombie]

    def owned(self, *statuses: ChannelStatus, busy: bool = False) -> list[tuple[Process, str]]:
        """Channels in the memory of a process that may act on them."""
        return [
            (process, channel_id)
            for process in self.living()
            if not process.zombie
            for channel_id, channel in process.channels.items()
            if channel.status in statuses and (busy or channel_id not in process.commits)
        ]

    def waiting(self) -> list[Flight]:
        return [
            flight
            for flight in self.flights
            if flight.client_waits
            and flight.process.alive
            and flight.channel_id in flight.process.channels
            and flight.request_id in flight.process.channels[flight.channel_id].holds
        ]

    def left(self, flight: Flight) -> None:
        self.flights.append(flight)

    def commits_open(self) -> list[tuple[Process, str]]:
        return [
            (process, channel_id)
            for process in self.living()
            if not process.zombie
            for channel_id in process.commits
        ]

    def _start(self) -> None:
        number = next(self.numbers)
        self.processes.append(Process(number, self.inner, self.owners, self.ledger, self.boot))

    def _die_in(self, process: Process, channel_id: str, fate: str) -> None:
        """Killed between the start of a commit and its return: it is there, or it is not."""
        commit = process.commits[channel_id]
        process.face.fate = fate
        before = peek(self.reader.find(channel_id))
        with contextlib.suppress(Died, Fenced, LimitExceeded, ClockWentBack):
            run(self.loop, process.finish_commit(channel_id))
        after = peek(self.reader.find(channel_id))
        assert before is not None
        assert after is not None
        if fate == "lost":
            assert after == before
        elif after != before:
            self.authorised[channel_id] += commit.raised

    def _kill(self, process: Process, fates: Iterator[str]) -> None:
        for channel_id in list(process.commits):
            self._die_in(process, channel_id, next(fates))
        process.die(self.owners)
        for flight in self.flights:
            if flight.process is process:
                flight.client_waits = False
        self.probes = [one for one in self.probes if one.process is not process]

    def _kill_one(self, process: Process, landed: bool, torn: int) -> None:
        """Same boot: the journal stays, perhaps with a line that was cut and whose credential never left."""
        self._kill(process, itertools.repeat("landed" if landed else "lost"))
        if torn and process.journal.path.stat().st_size:
            last = process.journal.path.read_bytes().splitlines()[-1]
            with process.journal.path.open("ab") as file:
                file.write(last[:torn])

    def _power_cut(self, keep: float, landed: bool) -> None:
        """Everything dies; of every journal some first part is left, or nothing."""
        for process in self.living():
            self._kill(process, itertools.repeat("landed" if landed else "lost"))
        for path in self.ledger.glob("*.jsonl"):
            data = path.read_bytes()
            path.write_bytes(data[: int(len(data) * keep)])
        self.boot = f"boot-{next(self.numbers)}"

    def _propose(self, process: Process, scope: PaymentScope, honest: bool, price: int, deposit: int) -> str:
        channel_id = f"0x{next(self.numbers):064x}"
        counters = self.caps.open_moves(deposit, price, date_of(self.now))
        base = proposed(channel_id, scope)
        assert base.pending is not None
        channel = replace(
            base,
            authorised=price,
            opened_at=self.now,
            folded=process.journal.mark,
            pending=replace(base.pending, deposit=deposit, counters=counters),
        )
        of_scope = peek(self.reader.of_scope(scope))
        pending = sum(one.status in PENDING_OPEN for one in of_scope)
        usable = sum(one.status in PENDING_OPEN | {OPEN} for one in of_scope)
        try:
            channel = run(
                self.loop, process.store.propose(channel, counters, max_channels=self.caps.channels_per_scope)
            )
        except ScopeFull:
            assert pending or usable >= self.caps.channels_per_scope
            return ""
        except LimitExceeded:
            return ""
        except ClockWentBack as error:
            assert self.now // budgets.DAY_MS == error.day < error.newest - 1  # noqa: PT017
            return ""
        assert not pending
        assert usable < self.caps.channels_per_scope
        self.authorised[channel_id] = price
        self.servers[channel_id] = Server(honest, deposit)
        process.own(channel)
        return channel_id

    def _become_open(self, process: Process, channel_id: str, status: ChannelStatus) -> None:
        deposit = self.servers[channel_id].deposit

        def change(one: Channel) -> Channel:
            opened = replace(one, status=status, deposit=deposit, pending=None)
            return opened if status is OPEN else replace(one, status=status)

        process.start_commit(channel_id, change=change)
        self._finish(process, channel_id)

    def _pay(
        self, process: Process, channel_id: str, price: int, ahead: int, forced: bool, reserve: int = 0
    ) -> None:
        channel = process.channels[channel_id]
        request = f"r{next(self.numbers)}"
        step = step_for(channel, price)
        if step <= channel.reserved and not channel.equal_refused and not forced:
            expires_at = self.server_now + LIFE_MS
            self.left(process.hold(channel_id, request, price, self.now, expires_at, step))
            return
        if channel_id in process.commits:
            return
        step = max(0, price - channel.spare) + ahead
        step = max(step, channel.min_delta if step or forced or channel.equal_refused else 0)
        raised = max(0, step - channel.reserved) + reserve
        if channel.authorised + raised > channel.ceiling:
            return
        counters = self.caps.raise_moves(raised, date_of(self.now))
        process.start_commit(channel_id, raised, counters, request=(request, price, step))

    def _finish(self, process: Process, channel_id: str) -> bool:
        commit = process.commits[channel_id]
        record = peek(self.reader.find(channel_id))
        counters = peek(self.reader.counters())
        assert record is not None
        try:
            run(self.loop, process.finish_commit(channel_id))
        except Fenced:
            assert record.owner != process.name or record.epoch != commit.target.epoch
            return False
        except LimitExceeded as error:
            move = error.move
            assert move.limit is not None
            assert error.used + move.amount > move.limit  # noqa: PT017
            assert peek(self.reader.find(channel_id)) == record
            assert peek(self.reader.counters()) == counters
            return False
        except ClockWentBack as error:
            assert error.day < error.newest - 1  # noqa: PT017
            assert peek(self.reader.counters()) == counters
            return False
        assert record.owner == process.name
        assert record.epoch == commit.target.epoch
        self.authorised[channel_id] += commit.raised
        final = commit.target.status in FINAL
        written = replace(commit.target, holds={}, held=0) if final else commit.target
        assert peek(self.reader.find(channel_id)) == written
        return True

    def _finish_and_send(self, process: Process, channel_id: str) -> None:
        request = process.commits[channel_id].request
        if not self._finish(process, channel_id) or request is None:
            return
        channel = process.channels.get(channel_id)
        if channel is None or channel.status is not OPEN:
            return
        name, price, step = request
        step = min(step, channel.reserved)  # another request may have taken some of it meanwhile
        if channel.spare + step >= price:
            expires_at = self.server_now + LIFE_MS
            self.left(process.hold(channel_id, name, price, self.now, expires_at, step))

    def _arrive(self, flight: Flight, lie: tuple[int, str | None, int | None]) -> None:
        server = self.servers[flight.channel_id]
        if server.honest:
            flight.answer = server.handle(flight, self.server_now)
        else:
            server.seen = max(server.seen, flight.voucher)
            server.landed = server.landed or flight.opens
            server.acc = server.spent = server.seen
            flight.answer = lie
        if not flight.client_waits:
            self.flights.remove(flight)

    def _answered(self, flight: Flight, cut: bool) -> None:
        assert flight.answer is not None
        self.flights.remove(flight)
        process, now = flight.process, self.now
        match flight.answer:
            case (200, _, int() as spent):
                ending = Ending.UNDELIVERED if cut else Ending.PAID
                process.end(flight, ending, now, spent, accepted=True)
            case (402, problem, _):
                self._refused(flight, problem)
            case _:
                process.end(flight, Ending.UNDELIVERED, now)

    def _refused(self, flight: Flight, problem: str | None) -> None:
        process, channel = flight.process, flight.process.channels[flight.channel_id]
        if problem == "verification-failed" and flight.voucher < channel.issued and flight.lowered < 6:
            self.left(process.resend(flight))  # repair a: the same hold, no new money
            return
        insufficient = problem == "insufficient-balance"
        process.end(flight, Ending.FREE, self.now, accepted=insufficient)
        channel = process.channels[flight.channel_id]
        if problem == "delta-too-small":
            channel = account.learn_delta(channel, flight.voucher, self.caps.per_request)
        elif insufficient and flight.voucher == channel.issued:
            assert not self.servers[flight.channel_id].honest, "our account was too rosy for an honest server"
            channel = account.write_off(channel, channel.spare, self.now)
        process.channels[flight.channel_id] = channel

    @invariant()
    def holds(self) -> None:
        steps.taken[type(self).__name__] += 1
        records = {one.channel_id: one for one in peek(self.reader.all())}
        counters = peek(self.reader.counters())
        assert records.keys() == self.authorised.keys()
        for channel_id, record in records.items():
            self._record(record)
            server = self.servers[channel_id]
            assert server.seen <= record.authorised <= record.ceiling, "invariant 1"
            assert record.authorised >= self.last_seen.get(channel_id, 0), "invariant 3: authorised fell"
            self.last_seen[channel_id] = record.authorised
            if record.status is not FAILED:
                assert record.authorised == self.authorised[channel_id], "invariant 4: raised by no commit"
        for flight in self.flights:
            assert flight.voucher <= records[flight.channel_id].authorised, "invariant 1: on the wire"
        self._counters(records, counters)
        for process in self.living():
            for channel_id, channel in process.channels.items():
                self._record(channel)
                if self.checked.get(channel_id) is not channel:
                    assert decode_channel(encode_channel(channel)) == channel
                    self.checked[channel_id] = channel
                if records[channel_id].owner == process.name and records[channel_id].epoch == channel.epoch:
                    assert channel.authorised == records[channel_id].authorised
                    self._honest(channel)
        for record in records.values():
            if record.owner is None:
                self._honest(record)

    def _record(self, channel: Channel) -> None:
        account.check(channel)
        assert channel.authorised == channel.paid + channel.uncertain + channel.held + channel.free
        assert min(channel.paid, channel.uncertain, channel.held, channel.spare) >= 0, "invariant 2"
        assert channel.reserved >= 0, "invariant 2"
        assert channel.accepted <= channel.issued

    def _counters(self, records: dict[str, Channel], counters: dict[str, int]) -> None:
        total = sum(one.authorised for one in records.values() if one.status is not FAILED)
        sums = dict.fromkeys((*budgets.RAISED, budgets.REFUNDED, budgets.ESCROW, "opens/", "deposits/"), 0)
        limits = {
            "host-day/": self.caps.host_day,
            "total-day/": self.caps.total_day,
            "lifetime/": self.caps.lifetime,
            "opens/": self.caps.opens_per_day,
            "deposits/": self.caps.deposits_per_day,
            budgets.ESCROW: self.caps.escrow_total or 0,
        }
        for key, used in counters.items():
            family = key.partition("/")[0] + "/"
            sums[family] += used
            assert 0 <= used <= limits.get(family, 2**128), f"{key} passed its limit"
        assert sums["host-day/"] == total, "invariant 3"
        assert sums["total-day/"] == total, "invariant 3"
        assert sums["lifetime/"] + sums["refunded/"] == total, "invariant 3"
        assert sums["escrow/"] == sum(map(budgets.locked, records.values())), "what is in escrow"
        assert sums["opens/"] == sum(one.status is not FAILED for one in records.values())

    def _honest(self, channel: Channel) -> None:
        """Its owner lives, or it was given back: everything is folded."""
        server = self.servers[channel.channel_id]
        assert server.seen <= channel.issued, "a voucher left that is still taken for reserved"
        if server.honest and channel.status not in FINAL:
            counted = channel.paid + channel.uncertain + channel.held
            assert counted >= server.spent, f"counted {counted}, but {server.spent} were charged"

    def teardown(self) -> None:
        try:
            if self.processes:
                self._come_to_rest()
        finally:
            for process in self.living():
                process.journal.close()
            run(self.loop, self.inner.close())
            self.loop.close()
            shutil.rmtree(self.directory, ignore_errors=True)

    def _come_to_rest(self) -> None:
        """At rest a probe tells the truth about an honest server's channel, to the unit."""
        for process in self.living():
            self._kill(process, itertools.repeat("lost"))
        self.server_now += LIFE_MS + LONGEST_MS + 2 * UNKNOWN_MARGIN_MS + 1
        self.skew, self.flights = 0, []
        self._start()
        process = self.processes[-1]
        for channel_id, server in self.servers.items():
            record = peek(self.reader.find(channel_id))
            assert record is not None
            if record.status is not OPEN or not server.honest:
                continue
            channel = run(self.loop, process.claim(channel_id, self.now))
            # What crashed last is eligible only now; with the clock that once ran ahead, later still.
            at = max(self.now, channel.eligible_at)
            if server.check(channel.issued) is None:
                probe = Probe(channel_id, process, channel.seq, at, channel.issued, server.spent)
                process.probed(probe, at + 1)
                channel = process.channels[channel_id]
                assert channel.paid + channel.uncertain == server.spent
        self.holds()
