"""Many processes that spend against one limit of the day, and are killed and started again while they do.

Not one base unit over the limit; and none below it that could not be had.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from store.lifecycle import ChannelStatus
from tests.crash.books import Auditor, Kind, Violation
from tests.crash.jobs import NEVER, Job, Report, Spend
from tests.crash.world import World
from tests.crash.zygote import Zygote

FIRST_PORT = 20_000
MEAN_PRICE = 1_130  # of those that `Life.spend` chooses from
MOMENT_S = 0.01
SHARE = 0.7
"""Of what all would spend without the limit: so it is reached by all of them."""


@dataclass
class Spending:
    """What a campaign has spent, and what it found."""

    processes: int
    payments: int  # asked for by each
    limit: int = 0
    counted: int = 0  # by the day's counter
    authorised: int = 0
    channels: int = 0
    kills: int = 0
    answers: Counter[str] = field(default_factory=Counter)  # "200", or the reason why not
    violations: list[Violation] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return not self.violations and self.counted == self.limit == self.authorised

    def lines(self) -> Iterator[str]:
        answers = ", ".join(f"{name} {count}" for name, count in sorted(self.answers.items()))
        yield f"{self.processes} processes × {self.payments} payments, {self.channels} channels: {answers}"
        yield f"kills: {self.kills}"
        yield f"limit of the day: {self.limit}; counted {self.counted}, authorised {self.authorised} (base units)"
        yield f"over the limit: {max(0, self.counted - self.limit, self.authorised - self.limit)}"
        yield f"of the limit not to be had: {max(0, self.limit - self.authorised)}"
        yield f"other violations: {len(self.violations)}"
        yield f"seconds: {self.seconds:.1f}"


class _Slot:
    """One of the processes: as many lives as it takes to ask for all its payments."""

    def __init__(self, number: int, spending: Spending, seed: str) -> None:
        self.number, self.spending = number, spending
        self.random = random.Random(f"slot {seed}/{number}")
        self.seed = f"{seed}/{number}"
        self.left = spending.payments

    async def told(self, body: Any) -> None:
        match body:
            case ("spent", _, status, reason):
                self.left -= 1
                self.spending.answers["200" if status == 200 else str(reason)] += 1
            case ("trouble", text):
                self.spending.violations.append(Violation(Kind.TROUBLE, f"process {self.number}: {text}"))

    async def run(self, zygote: Zygote, world: World, directory: Path) -> None:
        lives = 0
        while self.left > 0:
            lives += 1
            job = self.job(world, directory, f"{self.seed}/{lives}", self.left)
            child = await zygote.fork(job)
            left, dies_after = self.left, max(1, int(self.random.expovariate(5 / self.spending.payments)))

            async def told(body: Any, child: Any = child, limit: int = left - dies_after) -> None:
                await self.told(body)
                if 0 < self.left <= limit:
                    moment = self.random.random() * MOMENT_S
                    asyncio.get_running_loop().call_later(moment, child.kill)

            serving = asyncio.ensure_future(world.serve(child, told))
            killed = await child.ended == -9
            await serving
            self.spending.kills += killed and self.left > 0
            if not killed:
                text = f"process {self.number} ended with {child.ended.result()}"
                self.spending.violations.append(Violation(Kind.TROUBLE, text))
                return

    def job(
        self, world: World, directory: Path, seed: str, payments: int, *, to_the_end: bool = False
    ) -> Job:
        return Job(
            directory=directory,
            key=world.key,
            seed=seed,
            kill=NEVER,
            resume=False,
            spend=Spend(FIRST_PORT + self.number, payments, self.spending.limit, to_the_end),
        )


async def spend_all(seed: int, processes: int, payments: int) -> Spending:
    """The campaign: all at once, then what is left to the last base unit, then a look at the books."""
    started = time.monotonic()
    spending = Spending(processes, payments)
    whole = processes * payments * MEAN_PRICE
    spending.limit = int(whole * SHARE) + random.Random(seed).randrange(1, 1000)
    world = World(f"budget {seed}", deposit=2 * whole)
    directory = Path(tempfile.mkdtemp(prefix="bursar-budget-"))
    slots = [_Slot(number, spending, str(seed)) for number in range(processes)]
    try:
        async with Zygote() as zygote:
            await asyncio.gather(*(slot.run(zygote, world, directory) for slot in slots))
            last = _Slot(0, spending, f"{seed}/last")
            for to_the_end in (True, False):  # the second one audits
                last.left = 0
                await _quietly(zygote, world, last, directory, to_the_end, spending)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    spending.seconds = time.monotonic() - started
    return spending


async def _quietly(
    zygote: Zygote, world: World, slot: _Slot, directory: Path, to_the_end: bool, spending: Spending
) -> None:
    auditor = Auditor(world)

    async def told(body: Any) -> None:
        await slot.told(body)
        if isinstance(body, Report):
            spending.violations += auditor.audit(body)
            spending.counted = sum(v for k, v in body.counters.items() if k.startswith("total-day/"))
            alive = [one for one in body.channels if one.status is not ChannelStatus.FAILED]
            spending.authorised = sum(one.authorised for one in alive)
            spending.channels = len(alive)

    job = slot.job(world, directory, f"{slot.seed}/{to_the_end}", 0, to_the_end=to_the_end)
    child = await zygote.fork(job)
    await world.serve(child, told)
    await child.ended
