"""All measurements, by name. ``make bench ONLY=…`` takes a group, or rows by the beginning of their names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from bench import latency, memory, mppx, store_size, streams, warm, workers
from bench.rows import Row
from bench.world import World


@dataclass(frozen=True, slots=True)
class Group:
    """`rows` are the beginnings of its rows' names."""

    measure: Callable[[World], list[Row]]
    rows: tuple[str, ...]


GROUPS: Final[Mapping[str, Group]] = {
    "warm": Group(warm.throughput, ("warm-", "unpaid", "script-")),
    "per-call": Group(warm.per_call, ("requests", "signatures", "commits")),
    "mppx": Group(mppx.against, ("mppx",)),
    "latency": Group(latency.added, ("added",)),
    "cold": Group(latency.cold, ("cold-added",)),
    "openings": Group(latency.one_opening, ("cold-openings", "cold-requests")),
    "streams": Group(streams.delays, ("stream-first", "stream-late")),
    "held": Group(streams.held, ("stream-memory",)),
    "metered": Group(streams.metered, ("metered",)),
    "bodies": Group(memory.bodies, ("memory-down", "memory-up")),
    "flows": Group(memory.flows, ("memory-flows",)),
    "channels": Group(store_size.many_channels, ("lookup", "start")),
    "workers": Group(workers.two, ("workers",)),
}


def chosen(only: str) -> list[str]:
    """The groups that `only` (comma-separated; empty: all) asks for. Raises ``ValueError``."""
    if not only:
        return list(GROUPS)
    names = [
        name
        for name, group in GROUPS.items()
        if any(
            wanted == name or any(row.startswith(wanted) or wanted.startswith(row) for row in group.rows)
            for wanted in only.split(",")
        )
    ]
    if not names:
        raise ValueError(f"no measurement is named {only}; there are {', '.join(GROUPS)}")
    return names


def wanted(row: Row, only: str) -> bool:
    """Of the groups that were measured: is this row asked for?"""
    return not only or any(
        row.name.startswith(one) or (one in GROUPS and row.name.startswith(GROUPS[one].rows))
        for one in only.split(",")
    )
