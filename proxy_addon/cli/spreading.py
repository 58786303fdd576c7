"""Which worker a client's connection goes to, by what its first bytes ask for. Decisions only: no sockets, no clock.

A payment channel belongs to one process at a time. If the connections to one host went anywhere, each worker would
open a channel of its own for it, with a deposit of its own, or wait for another's. So a host stays with the worker
that has it, and others join only when there is more than one worker's share of connections to it, as far as the
host's `max_channels_per_scope` lets each have a channel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from proxy_addon.core.policy import Origin, SpendPolicy

CROWD: Final = 4
"""So many connections to a host are open on each worker that has it, before another one joins."""

MOST_PEEKED: Final = 4096
_REQUEST: Final = re.compile(
    rb"[\r\n]*(?:CONNECT (?P<authority>[^\s/?#]+)[ \r\n]|[A-Z]{1,32} (?P<scheme>https?|wss?)://(?P<target>[^\s/?#]+)[\s/?#])",
    re.IGNORECASE,
)
_AUTHORITY: Final = re.compile(r"(?:.*@)?(?P<host>\[[^\]]+\]|[^:]+)(?::(?P<port>[0-9]{1,5}))?\Z")
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_SECURE: Final = {"https": "https", "wss": "https"}


class Peek(Enum):
    """When the first bytes name no host."""

    MORE = auto()  # not yet
    NOTHING = auto()  # and more bytes would not either


@dataclass(frozen=True, slots=True)
class Destination:
    """What a client asks a forward proxy for."""

    host: str
    port: int
    schemes: tuple[str, ...]  # what it may turn out to speak there

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def destination(data: bytes) -> Destination | Peek:
    """Where a connection that begins with `data` leads to first."""
    found = _REQUEST.match(data)
    if found is None:
        line = data.lstrip(b"\r\n")
        complete = b"\n" in line or len(data) >= MOST_PEEKED or (line and not line[:1].isalpha())
        return Peek.NOTHING if complete else Peek.MORE
    connect = found["authority"] is not None
    text = (found["authority"] if connect else found["target"]).decode("latin-1").lower()
    scheme = "https" if connect else found["scheme"].decode().lower()
    parts = _AUTHORITY.match(text)
    if parts is None:
        return Peek.NOTHING
    port = int(parts["port"]) if parts["port"] else _PORTS[scheme]
    schemes = ("https", "http") if connect else (_SECURE.get(scheme, "http"),)
    return Destination(parts["host"].strip("[]").rstrip("."), port, schemes)


def widths(policy: SpendPolicy, workers: int, to: Destination) -> int | None:
    """How many workers may serve `to` at a time; None if nothing is ever paid there, so that it is all the same."""
    rules = [policy.rule_for(Origin(scheme, to.host, to.port)) for scheme in to.schemes]
    allowed = [rule.max_channels_per_scope for rule in rules if rule is not None]
    return min(workers, *allowed) if allowed else None


def too_narrow(policy: SpendPolicy, workers: int) -> list[str]:
    """What to tell of host rules that keep a host from using all workers."""
    return [
        f"{rule.name} ({rule.pattern}): max_channels_per_scope = {rule.max_channels_per_scope}, so that"
        f" {rule.max_channels_per_scope} of the {workers} workers serve such a host at a time"
        for rule in policy.hosts
        if rule.max_channels_per_scope < workers
    ]


@dataclass(slots=True)
class _Share:
    """One worker's part of a host's connections."""

    open: int = 0
    left_at: int = 0  # ms; when the last of them ended


@dataclass(slots=True)
class Spreader:
    """Who serves what. `linger_ms`: so long after its last connection a worker may still have a host's channel."""

    linger_ms: int
    _open: dict[int, int] = field(default_factory=dict)  # connections by worker
    _shares: dict[str, dict[int, _Share]] = field(default_factory=dict)  # by host, in the order of joining
    _tidied_at: int = 0

    @property
    def workers(self) -> Iterable[int]:
        return self._open.keys()

    def join(self, worker: int) -> None:
        self._open[worker] = 0

    def leave(self, worker: int) -> None:
        """It takes no more connections: it ended, or is about to."""
        self._open.pop(worker, None)
        for name in list(self._shares):
            self._shares[name].pop(worker, None)
            if not self._shares[name]:
                del self._shares[name]

    def choose(self, to: Destination | None, width: int | None, now: int) -> int | None:
        """The worker for a connection to `to`, which up to `width` may serve; None while there is none at all."""
        self._tidy(now)
        if not self._open:
            return None
        if to is None or width is None:
            return self._least()
        shares = self._shares.get(str(to), {})
        for worker, share in shares.items():
            if share.open < CROWD:
                return worker
        others = self._open.keys() - shares.keys()
        if others and len(shares) < width:
            return self._least(others)
        return min(shares, key=lambda worker: (shares[worker].open, worker))

    def began(self, worker: int, to: Destination | None, width: int | None) -> str | None:
        """A connection is with `worker` now. Returns what `ended` wants to know of it."""
        self._open[worker] += 1
        if to is None or width is None:
            return None
        self._shares.setdefault(str(to), {}).setdefault(worker, _Share()).open += 1
        return str(to)

    def ended(self, worker: int, name: str | None, now: int) -> None:
        if worker not in self._open:
            return  # it has left, and all that it had with it
        self._open[worker] -= 1
        share = self._shares.get(name or "", {}).get(worker)
        if share is not None:
            share.open -= 1
            share.left_at = now

    def _least(self, among: Iterable[int] | None = None) -> int:
        return min(self._open if among is None else among, key=lambda worker: (self._open[worker], worker))

    def _tidy(self, now: int) -> None:
        """Forget who has nothing of a host any more. Once a second: a proxy meets many hosts."""
        if now - self._tidied_at < 1000:
            return
        self._tidied_at = now
        for name, shares in list(self._shares.items()):
            for worker in [
                worker
                for worker, share in shares.items()
                if not share.open and now - share.left_at > self.linger_ms
            ]:
                del shares[worker]
            if not shares:
                del self._shares[name]
