"""Connections that another process has accepted, in the place of a listening socket of mitmproxy's own.

`bursar run --workers` needs it: one process listens, several serve. In here mitmproxy believes that it listens where
that process does; all else (who is asked for a password, what is refused, how a stop goes) is as ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from mitmproxy import options, version
from mitmproxy.proxy.mode_servers import RegularInstance

from proxy_addon.mitm import handing
from proxy_addon.mitm.compat import why_unsupported

log: Final = logging.getLogger("bursar")

_ONE_WRITER: Final = ("save_stream_file", "hardump", "rfile", "client_replay")
"""Options of mitmproxy's that several processes at once would get wrong: each would write, or send, the same."""

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Intake:
    """One per worker. `install` it before mitmproxy starts its servers."""

    def __init__(self, channel: socket.socket, welcome: handing.Welcome) -> None:
        self.gone: Callable[[], None] = lambda: None  # called once, when the one who hands over has died
        self._channel = channel
        self._welcome = welcome
        self._ended = b""  # what the other side has not taken yet
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def open(cls, descriptor: int) -> Intake:
        """Take what a worker is started with; see `handing`. Raises `EOFError`, `OSError`."""
        channel = socket.socket(fileno=descriptor)
        channel.set_inheritable(False)
        welcome = handing.Welcome.receive(channel)
        channel.setblocking(False)
        os.environ.update(welcome.environ)
        for number, text in welcome.descriptors.items():
            _refill(number, text)
        return cls(channel, welcome)

    def install(self) -> None:
        """From here on mitmproxy's regular proxy takes its clients from here."""
        intake = self

        async def listen(instance: RegularInstance, host: str, port: int) -> list[Any]:
            return [_Listener(intake, instance.handle_stream)]

        RegularInstance.listen = listen  # type: ignore[method-assign, assignment]

    def why_not(self, chosen: options.Options) -> str | None:
        """Why workers cannot do what mitmproxy is asked for, or this mitmproxy cannot do it with workers."""
        if why_unsupported(version.VERSION) is not None:
            return f"--workers was not tested with mitmproxy {version.VERSION}: install a tested one, or run without"
        if list(chosen.mode) != ["regular"]:
            return f"--workers serves mitmproxy's regular mode only, not {', '.join(chosen.mode)}"
        for name in _ONE_WRITER:
            if name in chosen and getattr(chosen, name):
                return f"mitmproxy's option {name} is for one process: leave it, or run without --workers"
        return None

    # -- while it runs

    def begin(self, handle: Handler) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._channel, self._take, handle)

    def end(self, handle: Handler) -> None:
        """Want no more. What is on its way all the same is served, and told that the proxy stops."""
        self._take(handle)
        self._tell(handing.LEAVING)

    def _take(self, handle: Handler) -> None:
        while self._take_one(handle):
            pass

    def _take_one(self, handle: Handler) -> bool:
        try:
            found = handing.take_over(self._channel)
        except BlockingIOError:
            return False
        except OSError as error:
            log.error("bursar: the connections of this worker's clients do not come: %s", error.strerror)
            found = None
        if found is None:
            asyncio.get_running_loop().remove_reader(self._channel)
            # Once: what `gone` starts may come here again before it has returned (tasks of mitmproxy 12 are eager).
            gone, self.gone = self.gone, lambda: None
            gone()
            return False
        task = asyncio.create_task(self._serve(*found, handle), name="bursar-intake")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _serve(self, number: int, connection: socket.socket, handle: Handler) -> None:
        async def handled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await handle(reader, writer)
            finally:
                self._tell(number)

        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, handled, loop=loop)
        try:
            await loop.connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # it has gone meanwhile
            connection.close()
            self._tell(number)

    def _tell(self, number: int) -> None:
        self._ended += handing.pack(number)
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            sent = self._channel.send(self._ended)
        except BlockingIOError:
            sent = 0
        except OSError:  # nobody counts any more
            sent = len(self._ended)
        self._ended = self._ended[sent:]
        if self._ended:
            loop.add_writer(self._channel, self._flush)
        else:
            loop.remove_writer(self._channel)


class _Listener:
    """What mitmproxy takes for an `asyncio.Server`."""

    def __init__(self, intake: Intake, handle: Handler) -> None:
        self._intake = intake
        self._handle = handle
        self.sockets = [_Address(address) for address in intake._welcome.addresses]
        intake.begin(handle)

    def close(self) -> None:
        self._intake.end(self._handle)


class _Address:
    """Where the other process listens: to know oneself by, so that no request goes in a circle."""

    def __init__(self, address: tuple[Any, ...]) -> None:
        self._address = address

    def getsockname(self) -> tuple[Any, ...]:
        return self._address


def _refill(number: int, text: str) -> None:
    """Make `number`, which is open (and read to its end), give `text` once more."""
    read, write = os.pipe()
    try:
        os.set_blocking(write, False)
        if os.write(write, text.encode()) != len(text.encode()):
            raise OSError(None, f"what fd:{number} holds is too long for several workers")
        os.dup2(read, number, inheritable=False)
    finally:
        os.close(read)
        os.close(write)
