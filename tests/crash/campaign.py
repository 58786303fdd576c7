"""Kills, one after the other: a payer is started, recovers, goes on, and is killed; then its books are looked at."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.crash.acts import USUAL
from tests.crash.books import Auditor, Expectation, Kind, Violation
from tests.crash.jobs import NEVER, Job, Kill, Report, Totals
from tests.crash.points import TABLE, Point
from tests.crash.world import World
from tests.crash.zygote import Child, Zygote

KILLS_PER_WALLET = 40
TWINS = 0.1  # so many of the random kills are of two processes on one store
AT_POINTS = 0.45  # and so many of the others at a point of the table
ALONE = frozenset({"start", "recover", "stop"})
"""Acts whose points are passed once, and with nothing else before, or after."""
VERIFY_EACH = 10
HUNG_S = 60.0
MOMENT_S = 0.08
"""A payer is killed from outside within so long after its first request was served."""


Acts = tuple[tuple[str, ...], ...]


@dataclass
class Tally:
    """What a campaign has done, and what it found."""

    kills: Counter[str] = field(default_factory=Counter)  # by how: point, passage, question, moment, end
    at: Counter[str] = field(default_factory=Counter)  # by point
    violations: list[str] = field(default_factory=list)
    harmed: set[int] = field(default_factory=set)  # numbers of wallets
    by_kind: Counter[Kind] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)  # credentials, by action
    worlds: int = 0
    paid: int = 0
    resumed: int = 0
    sockets: int = 0  # WebSockets on which a credential was taken
    units: int = 0  # charged over them
    home: int = 0  # base units that came back from the escrow in the end
    seconds: float = 0.0

    @property
    def killed(self) -> int:
        return sum(self.kills.values())

    @property
    def ok(self) -> bool:
        return not self.violations

    def add(self, where: str, found: Iterable[Violation]) -> None:
        """`where` begins with the seed and the wallet's number, with a slash between."""
        for one in found:
            self.harmed.add(int(re.split(r"[/ ,]", where)[1]))
            self.by_kind[one.kind] += 1
            self.violations.append(f"{where}: {one.kind}: {one.text}")

    def lines(self) -> Iterator[str]:
        how = ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items()))
        yield f"kills: {self.killed} ({how}) of {self.worlds} wallets"
        yield f"crash points covered: {len(self.at)} of {len(TABLE)}"
        yield from (f"{kind}: {self.by_kind[kind]}" for kind in Kind)
        yield f"resumed: {self.resumed}; requests paid: {self.paid}"
        acts = ", ".join(f"{name} {count}" for name, count in sorted(self.seen.items()))
        yield f"credentials that arrived: {acts}"
        yield f"WebSockets paid: {self.sockets}; units charged over them: {self.units}"
        yield f"base units that came home: {self.home}"
        yield f"seconds: {self.seconds:.1f}"


@dataclass(frozen=True)
class End:
    """How a process is to end: by itself at a point, or from outside, at a question of its own or at any moment."""

    how: str
    kill: Kill = NEVER
    frame: int = 0
    moment: float | None = None  # seconds after its first request was served

    def __str__(self) -> str:
        return f"{self.how} {self.kill if self.kill.nth else self.frame or self.moment}"


NO_END = End("audit")


class Watch:
    """Hears what one process says, and judges it. One that is not alone on its store is judged by the next."""

    def __init__(self, wallet: Wallet, where: str, *, alone: bool) -> None:
        self._wallet, self._where, self._alone = wallet, where, alone
        self._expected: Expectation | None = None
        self._opened = 0
        self._troubles: set[str] = set()
        self.reported = asyncio.Event()
        self.resumed = asyncio.Event()
        self.done = False
        self.totals: Totals | None = None  # as the ledger has them

    async def __call__(self, body: Any) -> None:
        world, tally = self._wallet.world, self._wallet.tally
        match body:
            case Report():
                if self._alone:
                    self.add(*self._wallet.auditor.audit(body))
                    await world.decide(body)
                    self._expected = Expectation.of(body, world.on_chain)
                    self._opened = len(world.openings)
                self.reported.set()
            case ("resumed", status, reason):
                tally.resumed += status == 200
                if self._expected is not None and not self._wallet.twins:
                    again = len(world.openings) - self._opened
                    self.add(*_resumed(self._expected, status, reason, again))
                self.resumed.set()
            case Totals():
                self.totals = body
            case ("trouble", text) if text not in self._troubles:
                self._troubles.add(text)
                self.add(Violation(Kind.TROUBLE, text))
            case ("done",):
                self.done = True

    def add(self, *found: Violation) -> None:
        self._wallet.tally.add(self._where, found)


class Wallet:
    """One wallet, one store, one world: through as many processes as there are kills."""

    def __init__(
        self, zygote: Zygote, seed: str, directory: Path, tally: Tally, sabotage: str | None
    ) -> None:
        self.zygote, self.seed, self.directory, self.tally = zygote, seed, directory, tally
        self.sabotage = sabotage
        self.world = World(seed)
        self.auditor = Auditor(self.world)
        self.number = 0
        self.twins = False  # are two processes under way?
        self.totals: Totals | None = None  # as the ledger had them, when it was last looked at

    async def live(
        self, end: End, acts: Acts = (), *, jitter: float = 0.0, resume: bool = True, alone: bool = True
    ) -> str:
        """One process, to its end; the point it was killed at, or how else it ended."""
        job, watch = self._job(end, acts, resume=resume, alone=alone)
        child = await self.zygote.fork(job)
        ended = await self._end(child, job, watch, end, jitter)
        self.totals = watch.totals
        return ended

    def _job(self, end: End, acts: Acts, *, resume: bool = True, alone: bool = True) -> tuple[Job, Watch]:
        self.number += 1
        job = Job(
            directory=self.directory,
            key=self.world.key,
            seed=f"{self.seed}/{self.number}",
            acts=acts,
            kill=end.kill,
            sabotage=self.sabotage,
            resume=resume,
            verify=end is NO_END or self.number % VERIFY_EACH == 0,
        )
        return job, Watch(self, f"{job.seed} ({end}; acts {acts})", alone=alone)

    async def _end(self, child: Child, job: Job, watch: Watch, end: End, jitter: float) -> str:
        serving = asyncio.ensure_future(self.world.serve(child, watch, frame=end.frame, jitter=jitter))
        outside = asyncio.ensure_future(_kill_later(child, watch, end.moment))
        try:
            async with asyncio.timeout(HUNG_S):
                code = await asyncio.shield(child.ended)
        except TimeoutError:
            watch.add(Violation(Kind.STUCK, f"it went on for over {HUNG_S} s"))
            child.ask_where()
            await asyncio.sleep(1)
            child.kill()
            code = await child.ended
        outside.cancel()
        await serving
        if code != -9:
            watch.add(Violation(Kind.TROUBLE, f"it ended with {code}"))
        ended = "end" if watch.done else end.how
        if job.killed_at.exists():
            ended = end.how
            point = job.killed_at.read_text()
            self.tally.at[point] += 1
            job.killed_at.unlink()
        else:
            point = ended
        if end is not NO_END:
            self.tally.kills[ended] += 1
        return point

    async def at(self, point: Point) -> str:
        """Killed at this very point."""
        from_start = point.act in ("start", "recover")
        end = End("point", Kill(point.name, 1, from_start=from_start))
        return await self.live(end, () if from_start else ((point.act,),))

    async def at_random(self, choose: random.Random) -> int:
        """Killed wherever it may be; how many were."""
        jitter = choose.choice((0.0, 0.0, 0.003))
        if choose.random() < TWINS:
            await self.two(choose, jitter)
            return 2
        if choose.random() < AT_POINTS:
            point = choose.choice(TABLE)
            if point.act in ALONE:
                await self.at(point)
                return 1
            kill = Kill(point.name, choose.choice((1, 1, 1, 1, 2, 3)))
            acts: Acts = ((point.act, *some_acts(choose)[0][:1]),)
            await self.live(End("point", kill), acts, jitter=jitter)
        else:
            await self.live(any_end(choose), some_acts(choose), jitter=jitter)
        return 1

    async def two(self, choose: random.Random, jitter: float) -> None:
        """Two processes at once, on the same channels; the second begins while the first is at work. Both die."""
        self.twins = True
        plans = [(any_end(choose), some_acts(choose)) for _ in range(2)]
        jobs = [
            self._job(end, acts, alone=alone) for (end, acts), alone in zip(plans, (True, False), strict=True)
        ]
        first = await self.zygote.fork(jobs[0][0])
        one = asyncio.ensure_future(self._end(first, *jobs[0], plans[0][0], jitter))
        reported = asyncio.ensure_future(jobs[0][1].reported.wait())
        await asyncio.wait([reported, one], return_when=asyncio.FIRST_COMPLETED)
        reported.cancel()
        second = await self.zygote.fork(jobs[1][0])
        await self._end(second, *jobs[1], plans[1][0], jitter)
        await one
        self.twins = False

    async def settle(self) -> None:
        """Bring everything home, and see that it is all there. No kill."""
        for _ in range(2):  # the second one audits what the first has done
            await self.live(NO_END, (("close-all",),), resume=False)
        where = f"{self.seed}, in the end"
        left = {name: deposit for name, deposit in self.world.on_chain.items() if deposit}
        if left:
            self.tally.add(where, [Violation(Kind.LOST, f"still in escrow: {left}")])
        if self.totals != self.world.totals:
            text = f"the ledger has {self.totals}, the chain {self.world.totals}"
            self.tally.add(where, [Violation(Kind.BROKEN, text)])
        records = self.auditor.before.values()
        self.tally.home += sum(channel.refunded or 0 for channel in records)
        self.tally.paid += sum(one.charged > 0 for one in self.world.api.log)
        self.tally.sockets += len(self.world.lines)
        self.tally.units += sum(line.units for line in self.world.lines)
        self.tally.seen.update(self.world.seen)


def any_end(choose: random.Random) -> End:
    draw = choose.random()
    if draw < 0.4:
        nth = 1 + int(choose.expovariate(1 / 70))
        return End("passage", Kill(None, nth, from_start=choose.random() < 0.4))
    if draw < 0.7:
        return End("question", frame=choose.randrange(2, 30))
    return End("moment", moment=choose.random() * MOMENT_S)


def some_acts(choose: random.Random) -> Acts:
    return tuple(
        tuple(choose.choice(USUAL) for _ in range(choose.choice((1, 1, 1, 2, 3))))
        for _ in range(choose.choice((1, 1, 2)))
    )


async def _kill_later(child: Child, watch: Watch, moment: float | None) -> None:
    if moment is not None:
        await watch.resumed.wait()
        await asyncio.sleep(moment)
        child.kill()


def _resumed(expected: Expectation, status: int, reason: str | None, opened: int) -> Iterator[Violation]:
    if expected.served and status != 200:
        yield Violation(Kind.STUCK, f"the next request got {status} ({reason})")
    if opened and not expected.opens:
        yield Violation(Kind.STUCK, f"the next request opened a channel, with status {status} ({reason})")


@asynccontextmanager
async def wallet(
    zygote: Zygote, seed: str, tally: Tally, sabotage: str | None = None
) -> AsyncIterator[Wallet]:
    directory = Path(tempfile.mkdtemp(prefix="bursar-crash-"))
    try:
        yield Wallet(zygote, seed, directory, tally, sabotage)
        tally.worlds += 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def every_point(zygote: Zygote, seed: str, tally: Tally) -> None:
    """Each named point once; what is not reached is a violation."""
    async with wallet(zygote, seed, tally) as one:
        for point in TABLE:
            reached = await one.at(point)
            if reached != point.name:
                tally.add(seed, [Violation(Kind.TROUBLE, f"{point.name} was not reached, but {reached}")])
        await one.settle()


async def random_kills(zygote: Zygote, seed: str, kills: int, tally: Tally) -> None:
    choose = random.Random(f"kills {seed}")
    async with wallet(zygote, seed, tally) as one:
        while kills > 0:
            kills -= await one.at_random(choose)
        await one.settle()


async def campaign(
    seed: int,
    kills: int,
    *,
    only: int | None = None,
    lanes: int = 2,
    say: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Every named point once, then random kills, as many wallets at a time as there are `lanes`.

    `only`: one wallet of the campaign, to repeat what it found.
    """
    started, tally = time.monotonic(), Tally()
    sizes = [min(kills, len(TABLE))]
    while (left := kills - sum(sizes)) > 0:
        sizes.append(min(left, KILLS_PER_WALLET))
    todo = iter([one for one in enumerate(sizes) if only in (None, one[0])])

    async def lane(zygote: Zygote) -> None:
        for number, size in todo:
            if number == 0:
                await every_point(zygote, f"{seed}/0", tally)
            else:
                await random_kills(zygote, f"{seed}/{number}", size, tally)
            say(tally)

    async with Zygote() as zygote:
        await asyncio.gather(*(lane(zygote) for _ in range(lanes)))
    tally.seconds = time.monotonic() - started
    return tally
