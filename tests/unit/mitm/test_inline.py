"""What leaves one after the other leaves in one write, and nothing changes places."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest
from mitmproxy.connection import Client, Server
from mitmproxy.hooks import Hook
from mitmproxy.proxy import commands, events
from mitmproxy.proxy.layers.http._hooks import HttpResponseHook
from mitmproxy.test import tflow

from proxy_addon.mitm import inline

CLIENT = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 2), timestamp_start=0)
SERVER = Server(address=("127.0.0.1", 3))
START = events.Start()


class Starting:
    """Runs hooks at once, and notes what had left by then."""

    def __init__(self, seen: list[object]) -> None:
        self.seen = seen

    def start(self, hook: Hook) -> Coroutine[Any, Any, None] | None:
        self.seen.append(hook.name)
        return None


def send(data: bytes, to: Any = CLIENT) -> commands.SendData:
    return commands.SendData(to, data)


def run(*given: commands.Command | Exception, after: Sequence[commands.Command] = ()) -> list[object]:
    """What leaves, and the hooks between. `after` comes once a hook is done."""
    seen: list[object] = []

    def handle_event(event: events.Event) -> Iterator[commands.Command]:
        if isinstance(event, events.HookCompleted):
            yield from after
            return
        for one in given:
            if isinstance(one, Exception):
                raise one
            yield one

    handle: Callable[[events.Event], Iterator[commands.Command]] = inline._inlined(
        handle_event,  # type: ignore[arg-type]
        Starting(seen),
    )
    try:
        for command in handle(START):
            seen.append(_shown(command))
    except ValueError as error:
        seen.append(str(error))
    return seen


def _shown(command: commands.Command) -> object:
    if isinstance(command, commands.SendData):
        return ("client" if command.connection is CLIENT else "server", command.data)
    return type(command).__name__


LONG = b"x" * (inline._SHORT + 1)
MANY = [b"%04d" % number * 1024 for number in range(10)]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((send(b"head"), send(b"body")), [("client", b"headbody")]),
        (
            (send(b"a"), send(b"b", SERVER), send(b"c")),
            [("client", b"a"), ("server", b"b"), ("client", b"c")],
        ),
        ((send(b"a"), commands.Log("x"), send(b"b")), [("client", b"a"), "Log", ("client", b"b")]),
        ((send(b"a"), commands.CloseConnection(CLIENT)), [("client", b"a"), "CloseConnection"]),
        ((send(b"a"), send(LONG), send(b"b")), [("client", b"a"), ("client", LONG), ("client", b"b")]),
        ((send(b"a"), ValueError("broken")), [("client", b"a"), "broken"]),
        ((), []),
    ],
    ids=["one", "two-connections", "log", "close", "long", "failure", "nothing"],
)
def test_in_their_order(given: Sequence[Any], expected: Sequence[object]) -> None:
    assert run(*given) == expected


def test_no_piece_gets_much_longer() -> None:
    found: Any = run(*map(send, MANY))
    assert b"".join(data for _, data in found) == b"".join(MANY)
    assert max(len(data) for _, data in found) <= 2 * inline._SHORT
    assert len(found) < len(MANY) / 2


def test_what_was_sent_before_a_hook_has_left_by_then() -> None:
    hook: Any = HttpResponseHook(tflow.tflow())
    hook.blocking = True
    assert run(send(b"a"), hook, after=[send(b"b"), send(b"c")]) == [
        ("client", b"a"),
        "response",
        ("client", b"bc"),
    ]


class Transport:
    def __init__(self, waiting: int = 0, *, closing: bool = False) -> None:
        self._waiting = waiting
        self._closing = closing

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return self._waiting


class Writer:
    def __init__(self, transport: Transport | None) -> None:
        if transport is not None:
            self.transport = transport


@pytest.mark.parametrize(
    ("transport", "waits"),
    [(Transport(), False), (Transport(1), True), (Transport(closing=True), True), (None, True)],
    ids=["empty", "waiting", "closing", "of-another-kind"],
)
def test_only_who_has_something_to_write_is_waited_for(transport: Transport | None, waits: bool) -> None:
    assert inline._waits(Writer(transport)) is waits
