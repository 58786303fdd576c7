"""Event streams: how late events are, what an open stream costs, what a voucher a second for each costs."""

from __future__ import annotations

import os
import time
from typing import Final

from bench.load import cpu_seconds
from bench.processes import Failed, Process, memory_kib
from bench.proxies import Proxy
from bench.rows import Row, of_rounds
from bench.world import World

AT_ONCE: Final = 20
GAP_MS: Final = 20
IDLE_MS: Final = 600_000


def _readers(world: World) -> Process:
    return Process.module("bench.readers", log=world.folder / "readers.log")


def _many(world: World, full: int) -> int:
    return int(os.environ.get("STREAMS") or (50 if world.quick else full))


def delays(world: World) -> list[Row]:
    """20 streams at once through ours, and without a proxy, in turns: when did the client have what was written?

    Plain mitmdump holds a stream back until it has ended, unless it is told otherwise; there is nothing to compare.
    """
    rounds, events = (3, 20) if world.quick else (7, 75)
    home = world.home(channels=2 * AT_ONCE)  # each of them may be metered, and has a channel of its own
    first, late, notes = [], [], []
    upstream = int(world.base.rpartition(":")[2])
    with world.ours(home) as ours, _readers(world) as readers:
        world.run(ours.port, f"{world.base}/paid", connections=1, requests=5)
        query = f"n={events}&gap={GAP_MS}"
        readers.ask(
            {"what": "events", "streams": AT_ONCE, "port": ours.port, "url": f"{world.base}/events?{query}"}
        )
        for _ in range(rounds):
            task = {"what": "events", "streams": AT_ONCE}
            one = readers.ask({**task, "port": ours.port, "url": f"{world.base}/events?{query}"})
            direct = f"{world.base}/free-events?{query}"
            other = readers.ask({**task, "port": upstream, "url": direct, "direct": True})
            for found in (one, other):
                if found["events"] != AT_ONCE * events:
                    raise Failed(f"{AT_ONCE} streams of {events} events had {found['events']}")
            first.append((one["first_p50"] - other["first_p50"]) / GAP_MS)
            late.append((one["p99"] - other["p99"]) / GAP_MS)
            notes.append((one, other))
    world.agree(home)
    one, other = notes[len(notes) // 2]
    at = f"of {AT_ONCE} paid streams, behind a direct connection's, in events ({GAP_MS} ms)"
    return [
        of_rounds(
            "stream-first",
            f"first event {at}",
            first,
            goal=1.0,
            better="less",
            unit="events",
            note=f"{one['first_p50']:.2f} ms to {other['first_p50']:.2f} ms after it was written",
        ),
        of_rounds(
            "stream-late",
            f"events {at}, 99th percentile",
            late,
            goal=1.0,
            better="less",
            unit="events",
            note=f"{one['p99']:.2f} ms to {other['p99']:.2f} ms after they were written",
        ),
    ]


def held(world: World) -> list[Row]:
    """Streams that are open and quiet: memory of each, with its channel."""
    streams = _many(world, 200)
    home = world.home(channels=2 * streams)
    with world.ours(home) as ours:
        paid = _held(world, ours, f"{world.base}/events?n=2&gap={IDLE_MS}", streams)
        free = _held(world, ours, f"{world.base}/free-events?n=2&gap={IDLE_MS}", streams)
    world.agree(home, left=True)
    return [
        Row(
            "stream-memory",
            f"memory of each of {streams} open, quiet streams that are paid for",
            paid,
            100,
            "less",
            "KiB",
            note=f"one of the same host that costs nothing: {free:.0f} KiB",
        )
    ]


def _held(world: World, proxy: Proxy, url: str, streams: int) -> float:
    with _readers(world) as readers:
        task = {"what": "hold", "port": proxy.port, "url": url}
        readers.ask({**task, "streams": 10})  # what is loaded once is there now
        before = memory_kib(proxy.pid)
        found = readers.ask({**task, "streams": streams})
        if found["open"] != streams + 10:
            raise Failed(f"of {streams + 10} streams, {found['open']} are open")
        after = memory_kib(proxy.pid)
        readers.ask({"what": "drop"})
    return (after - before) / streams


def metered(world: World) -> list[Row]:
    """Each event costs and waits for its voucher, once a second, each stream on a channel of its own."""
    streams, seconds = _many(world, 100), 4 if world.quick else 10
    home = world.home(channels=2 * streams)
    with world.ours(home) as ours, _readers(world) as readers:
        url = f"{world.base}/meter?n=1000&gap=1000"
        found = readers.ask({"what": "hold", "port": ours.port, "url": url, "streams": streams})
        if found["open"] != streams:
            raise Failed(f"of {streams} metered streams, {found['open']} are open")
        time.sleep(2)  # the openings' own work is done
        before = (cpu_seconds(ours.pid), world.account(home)["units"], time.monotonic())
        time.sleep(seconds)
        after = (cpu_seconds(ours.pid), world.account(home)["units"], time.monotonic())
        readers.ask({"what": "drop"})
    world.agree(home, left=True)
    took = after[2] - before[2]
    cpu, events = (after[0] - before[0]) / took, (after[1] - before[1]) / took
    per_thousand = cpu / events * 1000 if events else float("inf")
    return [
        Row(
            "metered-rate",
            f"paid events a second of {streams} metered streams, for each stream (1 is asked for)",
            events / streams,
            0.95,
            "more",
            note=f"{events:.0f} vouchers a second on {cpu * 100:.0f} % of one core",
        ),
        Row(
            "metered-cpu",
            "cores of the proxy for 1,000 streams with a voucher each second",
            per_thousand,
            1.0,
            "less",
            "cores",
            note=f"{per_thousand * 1000:.0f} µs a voucher",
        ),
    ]
