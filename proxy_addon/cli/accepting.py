"""The listening sockets of a proxy with workers: accepts, looks at a connection's first bytes, hands it on.

Nothing is read from a client here: the bytes are looked at and stay in the socket for the worker.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.spreading import MOST_PEEKED, Destination, Peek, Spreader, destination
from proxy_addon.mitm import handing

log: Final = logging.getLogger("bursar")

BACKLOG: Final = 1024
PATIENCE_S: Final = 10.0
"""How long a client may take to say what it wants before any worker gets it; workers have time limits of their own."""
_AGAIN_S: Final = 0.02
_AT_ONCE: Final = 64


def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets for `host` as asyncio would listen on it, not listening yet; all on one port, also for port 0.

    Raises `Failure`.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise Failure(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen"
        ) from None
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            sockets.append(_bound(family, address, port))
            port = port or sockets[0].getsockname()[1]
    except OSError as error:
        for one in sockets:
            one.close()
        raise unusable(host, port, error) from None
    return sockets


def unusable(host: str, port: int, error: OSError) -> Failure:
    """What to say of an address that cannot be listened on."""
    if error.errno == errno.EADDRINUSE:
        return Failure(
            f"{host}:{port} is in use, maybe by another bursar: stop that, or choose with --listen"
        )
    return Failure(
        f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen", ExitCode.FAILED
    )


def _bound(family: int, address: Any, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address[0], port, *address[2:]))
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


@dataclass(eq=False)
class Lane:
    """The way to one worker that is up, and the connections that are with it."""

    worker: int
    channel: socket.socket
    told: handing.Numbers = field(default_factory=handing.Numbers)
    names: dict[int, str | None] = field(default_factory=dict)  # by the connection's number


class Acceptor:
    """On the running loop. `width` says how many workers may serve a destination; None: it is all the same."""

    def __init__(
        self, sockets: list[socket.socket], spreader: Spreader, width: Callable[[Destination], int | None]
    ) -> None:
        self._sockets = sockets
        self._spreader = spreader
        self._width = width
        self._lanes: dict[int, Lane] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[socket.socket, float] = {}  # by when they go to any worker
        self._looking: dict[socket.socket, asyncio.TimerHandle] = {}
        self._open = False

    @property
    def addresses(self) -> list[tuple[Any, ...]]:
        return [one.getsockname() for one in self._sockets]

    def listen(self) -> None:
        self._open = True
        for one in self._sockets:
            one.listen(BACKLOG)
            self._loop.add_reader(one, self._accept, one)

    def close(self) -> None:
        """Listen no more. Clients that have not asked for anything yet are turned away."""
        if self._open:
            for one in self._sockets:
                self._loop.remove_reader(one)
        self._open = False
        for one in self._sockets:
            one.close()
        for one in list(self._waiting):
            self._let_go(one)
            one.close()

    # -- workers

    def join(self, worker: int, channel: socket.socket) -> None:
        """`worker` is up; `channel` leads to it, and is closed here when it has gone."""
        channel.setblocking(False)
        lane = self._lanes[worker] = Lane(worker, channel)
        self._spreader.join(worker)
        self._loop.add_reader(channel, self._heard, lane)

    def leave(self, worker: int) -> None:
        """It has died. What it had is gone with it."""
        self._spreader.leave(worker)
        lane = self._lanes.pop(worker, None)
        if lane is not None:
            self._loop.remove_reader(lane.channel)
            lane.channel.close()

    def _heard(self, lane: Lane) -> None:
        try:
            data = lane.channel.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # its end comes through its process; the channel's own end is not to be heard for ever
            self._loop.remove_reader(lane.channel)
            self._spreader.leave(lane.worker)
            return
        for number in lane.told.feed(data):
            if number == handing.LEAVING:
                self._spreader.leave(lane.worker)
            else:
                self._spreader.ended(lane.worker, lane.names.pop(number, None), _now())

    # -- clients

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptors, no memory: clients wait in the kernel for a moment, as with asyncio's own servers.
                log.error("bursar: no connections are taken for a second: %s", error.strerror)
                self._loop.remove_reader(listener)
                self._loop.call_later(1.0, self._accept_again, listener)
                return
            connection.setblocking(False)
            self._waiting[connection] = self._loop.time() + PATIENCE_S
            self._look(connection)

    def _accept_again(self, listener: socket.socket) -> None:
        if self._open:
            self._loop.add_reader(listener, self._accept, listener)

    def _look(self, connection: socket.socket) -> None:
        """What does it ask for? Called when it may have said more, and when its time is over."""
        deadline = self._waiting[connection]
        self._not_yet(connection)
        try:
            data = connection.recv(MOST_PEEKED, socket.MSG_PEEK)
        except BlockingIOError:
            found: Destination | Peek = Peek.MORE
            data = None
        except OSError:
            data = b""
        if data == b"":
            self._let_go(connection)
            connection.close()
            return
        if data is not None:
            found = destination(data)
        left = deadline - self._loop.time()
        if found is Peek.MORE and left > 0:
            if data is None:
                self._loop.add_reader(connection, self._look, connection)
                self._look_again(connection, left)
            else:  # readable for as long as nobody reads: it is asked again
                self._look_again(connection, min(left, _AGAIN_S))
            return
        self._hand_over(connection, found if isinstance(found, Destination) else None)

    def _hand_over(self, connection: socket.socket, to: Destination | None) -> None:
        width = None if to is None else self._width(to)
        number = next(self._numbers)
        worker = self._spreader.choose(to, width, _now())
        if worker is None:  # all are being started again
            self._look_again(connection, _AGAIN_S * 5)
            return
        lane = self._lanes[worker]
        try:
            handing.hand_over(lane.channel, number, connection)
        except (BrokenPipeError, ConnectionResetError):
            self._spreader.leave(worker)
            self._look_again(connection, 0)
            return
        except OSError:  # it has not taken the last ones yet; or too many are on their way
            self._look_again(connection, _AGAIN_S)
            return
        lane.names[number] = self._spreader.began(worker, to, width)
        self._let_go(connection)
        connection.close()

    def _look_again(self, connection: socket.socket, seconds: float) -> None:
        self._looking[connection] = self._loop.call_later(seconds, self._look, connection)

    def _not_yet(self, connection: socket.socket) -> None:
        self._loop.remove_reader(connection)
        timer = self._looking.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _let_go(self, connection: socket.socket) -> None:
        self._not_yet(connection)
        self._waiting.pop(connection, None)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()


def _now() -> int:
    return time.monotonic_ns() // 1_000_000
