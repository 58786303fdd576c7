"""A WebSocket whose messages are paid for in-band: mitmproxy's layer, less the payment frames.

Before the upgrade the addon asks the gate (`SocketGate.prepare`). Once the connection is up, the layer sends
what the gate wants sent, ahead of anything of the client's, takes payment frames out of what the server says,
and unwraps the rest. Nothing of the gate's is ever put on a flow. All else — pings, fragments, binary messages,
compression, close codes — is mitmproxy's own code.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from mitmproxy import http
from mitmproxy.addonmanager import AddonManager
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.layers import websocket
from mitmproxy.websocket import WebSocketMessage
from wsproto.connection import ConnectionState
from wsproto.events import CloseConnection, TextMessage
from wsproto.frame_protocol import Opcode

from proxy_addon.core.frames import Close
from proxy_addon.mitm.gate import Outcome
from proxy_addon.mitm.guard import describe

logger = logging.getLogger(__name__)

MOST_BYTES: Final = 16 * 1024 * 1024
"""Of one message of the server's: mitmproxy keeps it until its end. Clients refuse far shorter ones."""
MOST_PIECES: Final = 10_000
"""That it may come in."""
_TOO_BIG: Final = Close(1009, "A message is too long for the proxy.")
_FAILED: Final = Close(1011, "The proxy failed to serve this connection.")


class PaidSocket(Protocol):
    """The money of one connection. Never raises."""

    outgoing: deque[str]
    """Frames for the server, in order. The layer takes them out after each event, and when woken."""

    @property
    def stopped(self) -> Close | None:
        """Both sides are to be closed like this."""

    def begin(self, wake: Callable[[], None]) -> None:
        """The connection is up. `wake`: look at `outgoing` and `stopped`; never called within a call of ours."""

    def heard(self, text: str) -> str | bool:
        """A text message of the server: what the client gets, or True (the same), or False (nothing)."""

    def finished(self, outcome: Outcome) -> None:
        """The connection has ended. May be called again."""


class SocketGate(Protocol):
    """What the layer and the addon need to know of paying for WebSockets."""

    def pays_for(self, flow: http.HTTPFlow) -> bool:
        """Is this the handshake of a WebSocket that the config has us pay for? Cheap. Never raises."""

    async def prepare(self, flow: http.HTTPFlow) -> None:
        """Before the upgrade: pay, or answer the client with what the server asks. May commit and sign."""

    def of(self, flow: http.HTTPFlow) -> PaidSocket | None:
        """What `prepare` has got ready for this flow."""

    def dropped(self, flow: http.HTTPFlow) -> None:
        """No upgrade came of it."""

    def client_gone(self, client_id: str) -> None:
        """Nothing will ever come of this client's connections any more."""

    def shut(self) -> None:
        """The proxy ends."""


@dataclass(eq=False)
class Sockets:
    """What all streams share: the gate, and how a sleeping layer is woken."""

    gate: SocketGate
    addons: AddonManager
    hook_seconds: float = 60.0

    def adopt(self, layer: object, flow: http.HTTPFlow) -> None:
        """Let our layer serve a connection that is about to start, if it is paid for."""
        if type(layer) is websocket.WebsocketLayer and (socket := self.gate.of(flow)) is not None:
            paid: Any = layer
            paid.__class__ = PaidWebsocketLayer
            paid.socket, paid.sockets = socket, self

    def wake(self, flow: http.HTTPFlow) -> None:
        # At the loop's next turn: whoever calls may be called by the layer.
        asyncio.get_running_loop().call_soon(self._inject, flow)

    def _inject(self, flow: http.HTTPFlow) -> None:
        if not flow.live:
            return  # it has ended meanwhile, and nobody is there to take the event
        empty = WebSocketMessage(Opcode.TEXT, False, b"")
        with contextlib.suppress(ValueError):  # the client has gone, and with it the layer
            self.addons.get("proxyserver").inject_event(SocketWake(flow, empty))  # type: ignore[no-untyped-call]

    def before_upgrade(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        """What is to be awaited before this request leaves, if anything is."""
        if not self.gate.pays_for(flow):
            return None
        options = self.addons.master.options
        # Without mitmproxy's layer, or with a debug log of every byte, ours will not be there to pay.
        return None if options.proxy_debug or not options.websocket else self._prepare(flow)

    def dropped(self, flow: http.HTTPFlow) -> None:
        self.gate.dropped(flow)

    async def _prepare(self, flow: http.HTTPFlow) -> None:
        """A gate that fails or takes too long has paid nothing; the handshake goes on."""
        try:
            async with asyncio.timeout(self.hook_seconds):
                await self.gate.prepare(flow)
        except Exception as error:
            logger.error("Preparing a paid WebSocket failed, nothing is paid: %s", describe(error))
            self.gate.dropped(flow)


class SocketWake(websocket.WebSocketMessageInjected):
    """The gate has something to send, or has stopped."""


class PaidWebsocketLayer(websocket.WebsocketLayer):
    """Never made, only swapped in before its start."""

    socket: PaidSocket
    sockets: Sockets

    def start(self, event: events.Event) -> CommandGenerator[None]:
        yield from super().start(event)
        yield from self._guarded(self._begun())

    _handle_event = start

    def _begun(self) -> CommandGenerator[None]:
        flow = self.flow
        self.socket.begin(lambda: self.sockets.wake(flow))
        yield from self._settle()

    def relay_messages(self, event: events.Event) -> CommandGenerator[None]:
        yield from self._guarded(self._relayed(event))

    def _relayed(self, event: events.Event) -> CommandGenerator[None]:
        if not isinstance(event, SocketWake):
            yield from self._filtered(super().relay_messages(event))
            pieces = self.server_ws.frame_buf
            if len(pieces) > MOST_PIECES or sum(map(len, pieces)) > MOST_BYTES:
                logger.warning("A paid WebSocket's server sends a message without end: it is closed")
                self.socket.finished(Outcome.CUT)
                yield from self._close(_TOO_BIG)
                return
        yield from self._settle()

    def _guarded(self, generator: CommandGenerator[None]) -> CommandGenerator[None]:
        """An exception in a layer would leave both sides hanging for ever: end the connection instead."""
        try:
            yield from generator
        except Exception as error:
            logger.error("Serving a paid WebSocket failed: %s", describe(error))
            self.socket.finished(Outcome.CUT)
            if self._handle_event != self.done:
                yield from self._close(_FAILED)
        except BaseException:
            self.socket.finished(Outcome.CUT)
            raise

    def _filtered(self, generator: CommandGenerator[None]) -> CommandGenerator[None]:
        """mitmproxy's own code, which asks for a hook when a message is complete."""
        reply: Any = None
        while True:
            try:
                command = generator.send(reply)
            except StopIteration:
                return
            if isinstance(command, websocket.WebsocketMessageHook):
                reply = None
                yield from self._message(command)
            else:
                reply = yield command

    def _message(self, hook: websocket.WebsocketMessageHook) -> CommandGenerator[None]:
        data = self.flow.websocket
        assert data is not None
        message = data.messages[-1]
        ours = not message.from_client and message.type is Opcode.TEXT and not message.injected
        verdict = self.socket.heard(message.content.decode(errors="replace")) if ours else True
        if verdict is False:
            data.messages.pop()
            message.drop()  # type: ignore[no-untyped-call]
            return
        if isinstance(verdict, str):
            message.content = verdict.encode()
        yield hook
        if isinstance(verdict, str) and not message.dropped:
            # Sent here, in one piece: mitmproxy would cut it without regard to its characters.
            text = TextMessage(message.content.decode(errors="replace"))
            if self.client_ws.state is ConnectionState.OPEN:
                yield self.client_ws.send2(text)
            message.drop()  # type: ignore[no-untyped-call]
            data.messages[-1] = WebSocketMessage(message.type, False, message.content, message.timestamp)

    def _settle(self) -> CommandGenerator[None]:
        """Send what the gate wants sent; then end, if it or the connection has."""
        if self._handle_event == self.done:
            self.socket.finished(Outcome.CUT)
            return
        while self.socket.outgoing and self.server_ws.state is ConnectionState.OPEN:
            yield self.server_ws.send2(TextMessage(self.socket.outgoing.popleft()))
        stopped = self.socket.stopped
        if stopped is None:
            return
        self.socket.finished(Outcome.CUT)
        yield from self._close(stopped)

    def _close(self, stopped: Close) -> CommandGenerator[None]:
        data = self.flow.websocket
        assert data is not None
        data.timestamp_end = time.time()
        data.closed_by_client, data.close_code, data.close_reason = False, stopped.code, stopped.reason
        for side in (self.server_ws, self.client_ws):
            if side.state is ConnectionState.OPEN:
                yield side.send2(CloseConnection(stopped.code, stopped.reason or None))
            yield commands.CloseConnection(side.conn)
        yield websocket.WebsocketEndHook(self.flow)
        self.flow.live = False
        self._handle_event = self.done  # type: ignore[method-assign]
