"""Memory: large bodies in both directions, and very many requests."""

from __future__ import annotations

import os
from typing import Final

from bench.processes import Failed, Process, forget_peak, memory_kib
from bench.rows import Row
from bench.world import World

GIB: Final = 1 << 30


def bodies(world: World) -> list[Row]:
    """How far memory grows while a body passes that is paid for, or that is answered with a 402 that passes."""
    size = GIB // 8 if world.quick else GIB
    home = world.home()
    with (
        world.ours(home) as ours,
        Process.module("bench.readers", log=world.folder / "readers.log") as readers,
    ):
        world.run(ours.port, f"{world.base}/paid", connections=1, requests=50)
        grown = []
        for task in (
            {"what": "download", "url": f"{world.base}/blob?n={size}"},
            {"what": "upload", "url": f"{world.base}/upload", "size": size},
        ):
            forget_peak(ours.pid)
            before = memory_kib(ours.pid)
            found = readers.ask({**task, "port": ours.port})
            if found not in ({"bytes": size}, {"status": 402}, {"status": 200}):
                raise Failed(f"{task['what']} of {size} bytes: {found}")
            grown.append((memory_kib(ours.pid, "VmHWM") - before, found.get("status", 200)))
    world.agree(home)
    mib = size >> 20
    (down, _), (up, status) = grown
    return [
        Row(
            "memory-down",
            f"memory growth while {mib} MiB come down, paid for",
            down / 1024,
            100,
            "less",
            "MiB",
        ),
        Row(
            "memory-up",
            f"memory growth while {mib} MiB go up to a 402",
            up / 1024,
            100,
            "less",
            "MiB",
            note=f"the client was answered {status}",
        ),
    ]


def flows(world: World) -> list[Row]:
    """Memory after a tenth of very many paid requests, and after all of them."""
    count = int(os.environ.get("FLOWS") or (3000 if world.quick else 100_000))
    home = world.home()
    with world.ours(home) as ours:
        task = {"connections": 32}
        world.run(ours.port, f"{world.base}/paid", requests=count // 10, **task)
        before = memory_kib(ours.pid)
        done = 0
        while done < count * 9 // 10:
            part = min(10_000, count * 9 // 10 - done)
            world.run(ours.port, f"{world.base}/paid", requests=part, **task)
            done += part
        after = memory_kib(ours.pid)
    world.agree(home)
    return [
        Row(
            "memory-flows",
            f"memory growth over {count:,} paid requests, after the first tenth",
            (after - before) / 1024,
            10,
            "less",
            "MiB",
            note=f"{before / 1024:.0f} MiB, then {after / 1024:.0f} MiB",
        )
    ]
