"""What all streams of one proxy share: the gate, the limits, and who is still under way."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from mitmproxy.connection import Client

from proxy_addon.mitm.gate import Gate
from proxy_addon.mitm.guard import describe
from proxy_addon.mitm.uplink import Backlog
from proxy_addon.mitm.websocket import Sockets

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    buffered_body: int = 64 * 1024  # request bodies up to here are buffered by mitmproxy, as usual
    spool_memory: int = 1024 * 1024  # of a longer one, this much stays in memory
    repeatable_body: int = 256 * 1024 * 1024  # a longer one cannot be sent again: its 402 passes
    answer_bytes: int = 64 * 1024  # of an answer that asks for money
    answer_flood: int = 1024 * 1024  # what is kept of it beyond, while the gate decides
    answer_seconds: float = 10.0
    hook_seconds: float = 60.0


class Live(Protocol):
    """A stream with a ticket."""

    def client_gone(self) -> None: ...
    def shut(self) -> None: ...


@dataclass(eq=False)
class Paying:
    gate: Gate
    backlog: Backlog
    limits: Limits = field(default_factory=Limits)
    sockets: Sockets | None = None
    _live: dict[str, set[Live]] = field(default_factory=dict)  # by client connection

    def begun(self, client: Client, stream: Live) -> None:
        self._live.setdefault(client.id, set()).add(stream)

    def ended(self, client: Client, stream: Live) -> None:
        streams = self._live.get(client.id, set())
        streams.discard(stream)
        if not streams:
            self._live.pop(client.id, None)

    def client_gone(self, client: Client) -> None:
        """Nothing will ever come for this client's streams any more."""
        for stream in tuple(self._live.get(client.id, ())):
            _each(stream.client_gone)

    def close(self) -> None:
        """The proxy ends: from here on no credential leaves, and whatever still ran has ended."""
        for streams in tuple(self._live.values()):
            for stream in tuple(streams):
                _each(stream.shut)

    def __len__(self) -> int:
        return sum(map(len, self._live.values()))


def _each(end: Callable[[], None]) -> None:
    """One that cannot be ended in order keeps no other from it."""
    try:
        end()
    except Exception as error:
        logger.error("A request could not be ended in order: %s", describe(error))
