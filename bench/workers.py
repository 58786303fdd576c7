"""Several processes of one proxy that share a store and a port, against one process."""

from __future__ import annotations

from statistics import median

from bench.proxies import knows_workers
from bench.rows import Row, missing, of_rounds
from bench.warm import measure
from bench.world import World

_TITLE = "paid requests a second, 64 at a time: two workers / one process"


def two(world: World) -> list[Row]:
    if not knows_workers():
        return [
            missing("workers-2", _TITLE, "bursar run has no --workers", goal=1.8, better="more", unit="×")
        ]
    rounds, seconds = (3, 1.0) if world.quick else (7, 3.0)
    homes = [world.home(), world.home()]
    with world.ours(homes[0]) as one, world.ours(homes[1], "--workers", "2") as many:
        url = f"{world.base}/paid"
        ratios, bounds = [], []
        for proxy in (one, many):
            world.run(proxy.port, url, connections=8, requests=80)
        for _ in range(rounds):
            single = measure(world, one, url, 64, seconds)
            double = measure(world, many, url, 64, seconds)
            ratios.append(double.rate / single.rate)
            bounds.append((single.rate, double.rate, single.cpu, double.cpu))
    for home in homes:
        world.agree(home)
    middle = [median(one[at] for one in bounds) for at in range(4)]
    return [
        of_rounds(
            "workers-2",
            _TITLE,
            ratios,
            goal=1.8,
            better="more",
            unit="×",
            note=f"{middle[1]:.0f}/s to {middle[0]:.0f}/s; {middle[3]:.0f} µs to {middle[2]:.0f} µs of CPU a request;"
            " client and upstream share the same cores",
        )
    ]
