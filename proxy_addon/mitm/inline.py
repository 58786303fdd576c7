"""Hooks without tasks: what addons do at once is done in the turn of the loop that asks for it.

mitmproxy runs each hook in a task of its own, four or more per request, and most of them wait for nothing. Here a
connection's handler runs the handlers where the hook comes up, and tells the layers at once that it is done: after
all else that the same event has led to, as mitmproxy does. Only a handler that really waits gets its task.

Short pieces that go to the same connection one after the other, such as a header and its body, leave in one write.
And nobody waits for writers that have nothing to write.

Nothing of mitmproxy's is replaced: the handlers of single connections are changed, as they begin.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from mitmproxy.addonmanager import AddonManager
from mitmproxy.connection import Client
from mitmproxy.hooks import Hook
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layer import CommandGenerator
from mitmproxy.proxy.mode_servers import ProxyConnectionHandler

HandleEvent = Callable[[events.Event], CommandGenerator[None]]

_REST: Final = "bursar_rest"
_SHORT: Final = 16 * 1024  # bytes; who looks at what waits to be written (`backlog`) may miss so many


class Starter(Protocol):
    def start(self, hook: Hook) -> Coroutine[Any, Any, None] | None:
        """Run a hook's handlers. None: all is done. Else the rest of it, to be awaited."""


class InlineHandler(ProxyConnectionHandler):
    """Never made, only swapped in."""

    async def handle_hook(self, hook: commands.StartHook) -> None:
        rest = vars(hook).pop(_REST, None)
        if rest is None:  # one that comes from no layer
            await super().handle_hook(hook)
        else:
            with self.timeout_watchdog.disarm():
                await rest

    async def drain_writers(self) -> None:
        for io in self.transports.values():
            if io.writer is not None and _waits(io.writer):
                await super().drain_writers()  # type: ignore[no-untyped-call]
                return


def _waits(writer: Any) -> bool:
    """May it have something that has not left yet?"""
    transport = getattr(writer, "transport", None)
    return transport is None or transport.is_closing() or bool(transport.get_write_buffer_size())


def adopt(addons: AddonManager, client: Client, starter: Starter) -> None:
    """A client has just connected: from here on its connection's hooks are run by `starter`."""
    proxyserver: Any = addons.get("proxyserver")  # type: ignore[no-untyped-call]
    handler = proxyserver.connections.get(client.id) if proxyserver else None
    if type(handler) is ProxyConnectionHandler:
        handler.__class__ = InlineHandler
        layer: Any = handler.layer
        layer.handle_event = _inlined(layer.handle_event, starter)


def _inlined(handle_event: HandleEvent, starter: Starter) -> HandleEvent:
    def inner(event: events.Event) -> CommandGenerator[None]:
        waiting = [event]
        held: commands.SendData | None = None  # until it is known what comes next
        try:
            for one in waiting:  # it grows
                for command in handle_event(one):
                    if type(command) is commands.SendData and len(command.data) <= _SHORT:
                        if held is None:
                            held = command
                            continue
                        if held.connection is command.connection and len(held.data) <= _SHORT:
                            held.data += command.data
                            continue
                        held, command = command, held
                    elif held is not None:
                        yield held
                        held = None
                    if isinstance(command, commands.StartHook):
                        rest = starter.start(command)
                        if rest is None:
                            if command.blocking:
                                waiting.append(events.HookCompleted(command))
                            continue
                        setattr(command, _REST, rest)
                    yield command
        except Exception:
            if held is not None:
                yield held
            raise
        if held is not None:
            yield held

    return inner
