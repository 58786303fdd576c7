"""HTTP/1.1 for requests of our own: h11 on an asyncio transport, one exchange at a time. Knows nothing of addresses.

An HTTP client library does the same for some two milliseconds of CPU a request, which is too dear for a voucher a
second of each of a thousand streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import h11

HEAD_LIMIT: Final = 100 * 1024
KEEP_S: Final = 4.0
"""So long does a connection wait for its next exchange: less than servers do (Node: 5), lest both end it at once."""


class AnswerTooLong(Exception):
    """The body is over its limit. Nothing more of it is read."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer. Field names are in lower case."""

    status: int
    fields: list[tuple[bytes, bytes]] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one exchange: when its answer must be whole (the loop's time), how long the server may say nothing, and how
    much its body may have."""

    ends_at: float
    silence_s: float
    body: int


class Connection(asyncio.Protocol):
    """A connection to one server, from when it is connected until it is lost.

    An exchange lives here and not in a task of its caller: one whose caller is cancelled runs to its end, the
    connection can be used again, and nothing is left behind.
    """

    def __init__(self, on_idle: Callable[[Connection], None], on_lost: Callable[[Connection], None]) -> None:
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self._transport: asyncio.Transport | None = None  # none before it is made, and none once it is lost
        self._timer: asyncio.TimerHandle | None = None
        self._reply: asyncio.Future[Reply] | None = None  # of the exchange that runs
        self._limits = Limits(0, 0, 0)
        self._heard_at = 0.0
        self._head: h11.Response | None = None
        self._body = bytearray()

    def send(self, request: h11.Request, limits: Limits) -> asyncio.Future[Reply]:
        """Send a request without a body; it has left when this returns. The connection must be new or idle.

        The future raises ``OSError`` (``TimeoutError`` among them), `h11.RemoteProtocolError` or `AnswerTooLong`;
        then the connection is gone. Raises `h11.LocalProtocolError` if it is no request; then nothing has left.
        """
        assert self._reply is None
        try:
            data = b"".join((self._http.send(request) or b"", self._http.send(h11.EndOfMessage()) or b""))
        except h11.LocalProtocolError:
            self._abort()
            raise
        reply = self._reply = self._loop.create_future()
        if self._transport is None:  # lost since it was handed out
            self._fail(ConnectionResetError())
            return reply
        self._limits, self._heard_at = limits, self._loop.time()
        self._set_timer(min(limits.ends_at, self._heard_at + limits.silence_s), self._look_at_the_clock)
        self._transport.write(data)
        return reply

    @property
    def usable(self) -> bool:
        return self._reply is None and self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """An exchange that runs has no answer then."""
        self._fail(ConnectionAbortedError())

    # -- asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._reply is None:  # nobody has asked anything
            self._abort()
            return
        self._heard_at = self._loop.time()
        self._http.receive_data(data)
        self._read()

    def eof_received(self) -> None:
        if self._reply is not None:
            self._http.receive_data(b"")  # the end of a body that has no other
            self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(exc if isinstance(exc, OSError) else ConnectionResetError())
        self._on_lost(self)

    # -- the exchange

    def _read(self) -> None:
        try:
            while self._reply is not None:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    return
                match event:
                    case h11.Response():
                        self._head = event
                    case h11.Data():
                        self._body += event.data
                        if len(self._body) > self._limits.body:
                            raise AnswerTooLong
                    case h11.EndOfMessage():
                        self._end()
                    case _:  # informational: there is more to come
                        pass
        except (h11.RemoteProtocolError, AnswerTooLong) as error:
            self._fail(error)

    def _end(self) -> None:
        reply, head = self._reply, self._head
        assert reply is not None
        assert head is not None
        found = Reply(head.status_code, list(head.headers), bytes(self._body))
        self._reply, self._head = None, None
        self._body.clear()
        if (
            self._http.our_state is h11.DONE
            and self._http.their_state is h11.DONE
            and not self._http.trailing_data[0]
        ):
            self._http.start_next_cycle()
            self._set_timer(self._loop.time() + KEEP_S, self._hang_up)
            self._on_idle(self)
        else:
            self._abort()
        if not reply.done():  # else nobody waits for it any more
            reply.set_result(found)

    def _fail(self, error: Exception) -> None:
        reply, self._reply = self._reply, None
        self._abort()
        if reply is not None and not reply.done():
            reply.set_exception(error)
            reply.exception()  # who waits may be cancelled in this very turn: then it is no error of the loop's

    # -- time, and the end

    def _look_at_the_clock(self) -> None:
        ends_at = min(self._limits.ends_at, self._heard_at + self._limits.silence_s)
        if self._loop.time() >= ends_at:
            self._fail(TimeoutError())
        else:
            self._set_timer(ends_at, self._look_at_the_clock)

    def _set_timer(self, at: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, then)

    def _hang_up(self) -> None:
        """Idle for long enough."""
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()
