"""What one life of the payer is to do, and where it is to end. These cross from process to process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from store.records import Channel

MAIN_PORT = 8000
SOCKET_PATH = "/ws"
MOST_PER_STREAM = 100_000
"""Base units; the limit of one metered stream, and of one WebSocket."""


@dataclass(frozen=True)
class Kill:
    """kill -9 from inside, the `nth` time that `point` (None: any) is passed; 0: not from inside."""

    point: str | None = None
    nth: int = 0
    from_start: bool = False  # armed while it recovers; else once the first request was served

    def __str__(self) -> str:
        if not self.nth:
            return "never"
        where = "any point" if self.point is None else self.point
        return f"{where}, passage {self.nth}{' from the start' if self.from_start else ''}"


NEVER = Kill()


@dataclass(frozen=True)
class Spend:
    """Payments one after the other, some at once, against the limit of a day that all processes share."""

    port: int  # of the origin, and so of the channels: no other process has it
    payments: int
    max_per_day: int  # base units
    to_the_end: bool = False  # ever smaller ones, until not even one base unit is left


@dataclass(frozen=True)
class Job:
    """One process: recover, be served once, then the acts, one group after the other, a group's at once."""

    directory: Path
    key: bytes = field(repr=False)
    seed: str
    acts: tuple[tuple[str, ...], ...] = ()
    kill: Kill = NEVER
    sabotage: str | None = None  # a promise that is broken on purpose: the harness must notice
    resume: bool = True  # the first request, right after recovering
    verify: bool = False  # what `bursar ledger verify` says, before anything else
    spend: Spend | None = None  # instead of all that

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def ledger(self) -> Path:
        return self.store / "ledger"

    @property
    def killed_at(self) -> Path:
        """The name of the point is written here, just before."""
        return self.directory / f"killed-at-{self.seed.rpartition('/')[2]}"


@dataclass(frozen=True)
class Report:
    """What a process finds when it starts, before it has written anything about a channel."""

    channels: tuple[Channel, ...]
    folded: Mapping[str, Channel]  # of those that a dead process had: as the next owner recovers them
    counters: Mapping[str, int]
    limits: Mapping[str, int]  # by the beginning of a counter's name
    origin: str  # where the first request will go


@dataclass(frozen=True)
class Totals:
    """All that one wallet ever moved, in base units: as its ledger has it, or the chain."""

    deposited: int
    captured: int
    refunded: int
    fees: int


@dataclass(frozen=True)
class HttpAsk:
    """One upstream request, as its bytes would say it. `fate` is for the peer alone, and not part of it."""

    host: str  # "rpc" or "api"
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    fate: str | None = None


@dataclass(frozen=True)
class HttpAnswer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True)
class FrameAsk:
    """A payment frame over a WebSocket; `socket` is the connection's number. `fate` is for the peer alone."""

    socket: int
    text: str
    first: bool  # on its connection
    fate: str | None = None

    @property
    def headers(self) -> Mapping[str, str]:
        """Its credential, as a request would carry it."""
        return {"authorization": json.loads(self.text)["authorization"]}


@dataclass(frozen=True)
class Said:
    """What a WebSocket's server says."""

    texts: tuple[str, ...] = ()
    cut: bool = False  # and then it closes the connection
    needs: bool = False  # and then it waits for a voucher
