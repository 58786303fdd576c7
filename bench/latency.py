"""What a request waits for: warm, and cold (a 402 first, then the payment on a channel that is open)."""

from __future__ import annotations

from statistics import median
from typing import Final

from bench.rows import Row, of_rounds
from bench.world import World

RATE: Final = 150  # requests a second: some quarter of what plain mitmdump can do on one core
CONNECTIONS: Final = 8
CLIENTS: Final = 100


def added(world: World) -> list[Row]:
    """At a moderate load, against plain mitmdump, in turns."""
    rounds, seconds = (3, 1.0) if world.quick else (7, 3.0)
    home = world.home()
    p50, p99, notes = [], [], []
    with world.ours(home) as ours, world.plain() as plain:
        world.run(ours.port, f"{world.base}/paid", connections=1, requests=20)
        for _ in range(rounds):
            task = {"connections": CONNECTIONS, "rate": RATE, "seconds": seconds, "warm": 4}
            one = world.run(ours.port, f"{world.base}/paid", **task)
            other = world.run(plain.port, f"{world.base}/checked", **task)
            p50.append(one["p50"] - other["p50"])
            p99.append(one["p99"] - other["p99"])
            notes.append((one["p50"], other["p50"], one["p99"], other["p99"]))
    world.agree(home)
    middle = [median(note[at] for note in notes) for at in range(4)]
    at = f"{RATE} requests a second over {CONNECTIONS} connections"
    return [
        of_rounds(
            "added-p50",
            f"added latency of a warm paid request, median, {at}",
            p50,
            goal=1.0,
            better="less",
            unit="ms",
            note=f"{middle[0]:.2f} ms to {middle[1]:.2f} ms",
        ),
        of_rounds(
            "added-p99",
            f"added latency of a warm paid request, 99th percentile, {at}",
            p99,
            goal=5.0,
            better="less",
            unit="ms",
            note=f"{middle[2]:.2f} ms to {middle[3]:.2f} ms",
        ),
    ]


def cold(world: World) -> list[Row]:
    """Every request on a path that was never asked for: no challenge is known, the channel is open."""
    rounds, requests = (3, 30) if world.quick else (7, 100)
    home = world.home()
    over, notes = [], []
    with world.ours(home) as ours, world.plain() as plain:
        world.run(ours.port, f"{world.base}/paid", connections=1, requests=20)
        upstream = int(world.base.rpartition(":")[2])
        for number in range(rounds):
            task = {"connections": 1, "requests": requests, "warm": 3}
            first = 1 + number * 10_000
            one = world.run(ours.port, f"{world.base}/paid", fresh=True, first=first, **task)
            other = world.run(plain.port, f"{world.base}/checked", **task)
            trip = world.run(upstream, f"{world.base}/paid", direct=True, status="402", **task)
            over.append(one["p50"] - other["p50"] - trip["p50"])
            notes.append((one["p50"], other["p50"], trip["p50"]))
    world.agree(home)
    middle = [median(note[at] for note in notes) for at in range(3)]
    return [
        of_rounds(
            "cold-added",
            "a cold request on an open channel (402, then paid) over a warm one of plain and one round trip more",
            over,
            goal=3.0,
            better="less",
            unit="ms",
            note=f"{middle[0]:.2f} ms to {middle[1]:.2f} ms and a round trip of {middle[2]:.2f} ms",
        )
    ]


def one_opening(world: World) -> list[Row]:
    """All clients at once, on a wallet that has never paid."""
    clients = CLIENTS // 5 if world.quick else CLIENTS
    home = world.home()
    before = world.stats()
    with world.ours(home) as ours:
        found = world.run(ours.port, f"{world.base}/paid", connections=clients, requests=clients)
    after = world.stats()
    world.agree(home)
    opened = after["opened"] - before["opened"]
    requests = (after["requests"] - before["requests"]) / clients
    return [
        Row(
            "cold-openings",
            f"channels opened for {clients} cold clients of one scope at once",
            opened,
            1,
            "less",
            note=f"all answered within {found['most']:.0f} ms",
        ),
        Row("cold-requests", f"upstream requests for each of {clients} cold clients at once", requests),
    ]
