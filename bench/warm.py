"""Warm requests: throughput and CPU time against plain mitmdump; and what a paid call costs upstream and in the store.

All variants of a group run in one go, in short rounds, one after the other; a ratio is taken within a round, so that
what else the machine does meets both sides. Plain mitmdump asks for `/checked`, which costs the upstream as much as
a paid request does: on two cores, the upstream's work is on the clock of whoever has none of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

import lmdb

from bench.proxies import Proxy
from bench.rows import Row, of_rounds
from bench.world import World

CONNECTIONS: Final = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Round:
    """What one proxy did in one round."""

    rate: float  # requests a second
    cpu: float  # µs of the proxy's CPU a request

    @classmethod
    def of(cls, found: dict[str, float], cpu: Sequence[float]) -> Round:
        return cls(found["count"] / found["seconds"], sum(cpu) / found["count"] * 1e6)


def measure(world: World, proxy: Proxy, url: str, connections: int, seconds: float) -> Round:
    warm = max(2, 32 // connections)
    found = world.run(proxy.port, url, connections=connections, seconds=seconds, warm=warm, pids=proxy.pids)
    return Round.of(found, found["cpu"])


def throughput(world: World) -> list[Row]:
    rounds, seconds = (3, 0.7) if world.quick else (7, 2.0)
    homes = [world.home(), world.home()]
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(world.plain())
        ours = stack.enter_context(world.ours(homes[0]))
        script = stack.enter_context(world.script(homes[1]))
        contests = [
            ("paid", f"warm-paid-{count}", count, ours, f"{world.base}/paid", f"{world.base}/checked")
            for count in CONNECTIONS
        ]
        contests += [
            ("unpaid", "unpaid-16", 16, ours, f"{world.unlisted}/free", f"{world.unlisted}/free"),
            ("paid", "script-paid-16", 16, script, f"{world.base}/paid", f"{world.base}/checked"),
            ("unpaid", "script-unpaid-16", 16, script, f"{world.unlisted}/free", f"{world.unlisted}/free"),
        ]
        for one in (ours, script):  # opens the channel, and gives `/checked` something to check
            world.run(one.port, f"{world.base}/paid", connections=1, requests=20)
        found: dict[str, list[tuple[Round, Round]]] = {}
        for number in range(rounds):
            for _, name, count, proxy, url, plain_url in contests:
                pair = [(proxy, url), (plain, plain_url)]
                # In turns, so that neither side always has the other's leftovers.
                order = pair if number % 2 == 0 else pair[::-1]
                took = {one.kind: measure(world, one, at, count, seconds) for one, at in order}
                found.setdefault(name, []).append((took[proxy.kind], took[plain.kind]))
    for home in homes:
        world.agree(home)
    rows = [row for one in contests for row in _rows(one[1], one[0], one[2], one[3].kind, found[one[1]])]
    return [*rows, disk(world.scratch("disk"))]


_GOALS: Final = {"warm-paid": 1.25, "unpaid": 1.4, "script-paid": 0.85, "script-unpaid": 0.97}


def _rows(name: str, what: str, count: int, kind: str, rounds: list[tuple[Round, Round]]) -> list[Row]:
    goal = _GOALS[name.rpartition("-")[0]]
    rates = [one.rate / other.rate for one, other in rounds]
    cpus = [one.cpu / other.cpu for one, other in rounds]
    rate, plain_rate = (median(one[side].rate for one in rounds) for side in (0, 1))
    cpu, plain_cpu = (median(one[side].cpu for one in rounds) for side in (0, 1))
    return [
        of_rounds(
            f"{name}-throughput",
            f"{what} requests a second, {count} at a time: {kind} / plain",
            rates,
            goal=goal,
            better="more",
            unit="×",
            note=f"{rate:.0f}/s to {plain_rate:.0f}/s",
        ),
        of_rounds(
            f"{name}-cpu",
            f"CPU per {what} request, {count} at a time: {kind} / plain",
            cpus,
            goal=1 / goal,
            better="less",
            unit="×",
            note=f"{cpu:.0f} µs to {plain_cpu:.0f} µs",
        ),
    ]


def disk(folder: Path) -> Row:
    """What a payment waits for that needs a commit of its own: an LMDB transaction of 40 bytes that is on the disk."""
    folder.mkdir()
    took = []
    with lmdb.open(str(folder), map_size=1 << 20) as env:
        for number in range(100):
            began = time.perf_counter()
            with env.begin(write=True) as txn:
                txn.put(b"key", b"%040d" % number)
            took.append((time.perf_counter() - began) * 1000)
    return of_rounds("warm-disk", "one durable commit of LMDB, alone, on this disk", took, unit="ms")


def per_call(world: World) -> list[Row]:
    """Upstream requests, signatures and commits for each paid call, counted by the upstream and by LMDB."""
    rows = []
    for count in (1, 64):
        home = world.home()
        requests = (200 if count == 1 else 2000) // (2 if world.quick else 1)
        with world.ours(home) as proxy:
            url = f"{world.base}/paid"
            world.run(proxy.port, url, connections=1, requests=5)  # the channel is open, the challenge known
            counted = [(world.stats()["requests"], world.account(home)["vouchers"], home.commits())]
            found = world.run(proxy.port, url, connections=count, requests=requests)
            counted.append((world.stats()["requests"], world.account(home)["vouchers"], home.commits()))
        world.agree(home)
        upstream, vouchers, commits = (
            (after - before) / found["count"] for before, after in zip(*counted, strict=True)
        )
        at = f"{count} at a time"
        note = f"{found['count']} calls"
        goal = 1.0 if count == 1 else 0.1
        rows += [
            Row(
                f"requests-{count}",
                f"upstream requests per warm paid call, {at}",
                upstream,
                1.01 if count == 1 else 1.10,
                "less",
                note=note,
            ),
            Row(f"signatures-{count}", f"signatures per paid call, {at}", vouchers, goal, "less", note=note),
            Row(
                f"commits-{count}",
                f"commits per paid call, {at}",
                commits,
                1.02 if count == 1 else goal,
                "less",
                note=note,
            ),
        ]
    return rows
