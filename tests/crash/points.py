"""Where a kill may fall: every step between a price and its receipt, by name.

Production code knows nothing of them. A point is the moment before or after a call; the calls are wrapped, once,
in the process that forks the payers. `Trap` is the one that is set in a payer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from proxy_addon.core.messages import is_payment_credential, parse_credential
from store.account import Ended, Grown, Probed, Sent, WrittenOff
from store.lifecycle import ChannelStatus
from tests.crash.jobs import NEVER, FrameAsk, HttpAsk, Job, Kill

When = Literal["before", "after"]
Only = Callable[["Call"], bool]


@dataclass(frozen=True)
class Call:
    """One call of a wrapped method. `result` is None before it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any = None


@dataclass(frozen=True)
class Point:
    """`owner` is a module, or ``module:Class``. `act` passes it. `only` says which calls are meant."""

    name: str
    owner: str
    method: str
    when: When
    act: str
    only: Only | None = None
    torn: bool = False  # half of what is to be written is written

    def resolve(self) -> tuple[Any, Any]:
        """Who has the method, and the method as it is in there. Raises if there is none any more."""
        module, _, name = self.owner.partition(":")
        owner = importlib.import_module(module)
        if name:
            owner = getattr(owner, name)
        return owner, inspect.getattr_static(owner, self.method)


# -- which calls


def _line(move: type) -> Only:
    return lambda call: isinstance(call.kwargs.get("move"), move)


def _kind(kind: str) -> Only:
    return lambda call: call.args[1].get("kind") == kind


def _leaves(*actions: str) -> Only:
    """A frame that carries a credential for one of these."""

    def only(call: Call) -> bool:
        ask = call.args[1]
        if not isinstance(ask, HttpAsk) or ask.host != "api":
            return False
        value = ask.headers.get("authorization", "")
        return is_payment_credential(value) and parse_credential(value).payload["action"] in actions

    return only


def _says(*actions: str, first: bool) -> Only:
    """A frame of a WebSocket that carries such a credential."""

    def only(call: Call) -> bool:
        ask = call.args[1]
        if not isinstance(ask, FrameAsk) or ask.first is not first:
            return False
        return parse_credential(ask.headers["authorization"]).payload["action"] in actions

    return only


def _asks_the_chain(method: bytes) -> Only:
    return lambda call: isinstance(call.args[1], HttpAsk) and method in call.args[1].body


def _becomes(status: ChannelStatus) -> Only:
    return lambda call: call.args[1].status is status


def _raises(call: Call) -> bool:
    return len(call.args) > 2 and bool(call.args[2]) and call.args[1].pending is None


def _proposes_a_top_up(call: Call) -> bool:
    pending = call.args[1].pending
    return pending is not None and pending.kind == "top_up"


def _closes_by_agreement(call: Call) -> bool:
    return call.args[1].status is ChannelStatus.CLOSING and call.args[1].close_amount is not None


def _closes_by_force(call: Call) -> bool:
    return call.args[1].status is ChannelStatus.CLOSING and call.args[1].close_amount is None


def _writes(text: bytes) -> Only:
    return lambda call: text in call.args[1]


# -- where


def _around(name: str, owner: str, method: str, act: str, only: Only | None = None) -> tuple[Point, Point]:
    return (
        Point(f"{name}.before", owner, method, "before", act, only),
        Point(f"{name}.after", owner, method, "after", act, only),
    )


def _after(name: str, owner: str, method: str, act: str, only: Only | None = None) -> Point:
    return Point(name, owner, method, "after", act, only)


def _before(name: str, owner: str, method: str, act: str, only: Only | None = None) -> Point:
    return Point(name, owner, method, "before", act, only)


_PAYER = "proxy_addon.payer"
_GATE, _TILL, _DESK = f"{_PAYER}.gate:PaymentGate", f"{_PAYER}.till:Till", f"{_PAYER}.desk:Desk"
_QUEUE, _PARTS = f"{_PAYER}.queue:Queue", f"{_PAYER}.parts:Parts"
_OPENING, _TOPPING = f"{_PAYER}.opening", f"{_PAYER}.topping"
_CLOSING, _FORCING = f"{_PAYER}.closing", f"{_PAYER}.forcing"
_STREAM = f"{_PAYER}.streams:MeteredStream"
_SOCKETS, _SOCKET = f"{_PAYER}.sockets:Sockets", f"{_PAYER}.sockets:Socket"
_STORE, _LMDB = "store.channels:ChannelStore", "store.lmdb_store"
_JOURNAL, _SIGNER = "store.journal:Journal", "proxy_addon.signer:Signer"
_METHOD = "proxy_addon.methods.tempo_session.session:TempoSession"
_WIRE, _TXN = "tests.crash.wire:Wire", "tests.crash.watched:Transaction"
_FILE = "tests.crash.watched:Files"

TABLE: tuple[Point, ...] = (
    # a start
    _after("start.lock-taken", "store.owner_locks:OwnerLock", "_take", "start"),
    _after("start.store", f"{_LMDB}:LmdbBackend", "open", "start"),
    _after("start.ledger", _JOURNAL, "__init__", "start"),
    # a channel changes hands
    _before("claim.wanted", _PARTS, "claim", "release"),
    _after("claim.commit", _STORE, "claim", "release"),
    _after("claim.told", _PARTS, "claim", "release"),
    _before("release.wanted", _TILL, "release", "release"),
    _after("release.commit", _STORE, "release", "release"),
    _after("release.done", _TILL, "release", "release"),
    *_around("stop.desk", _DESK, "close", "stop"),
    _before("stop.store", f"{_LMDB}:LmdbBackend", "close", "stop"),
    *_around("stop.lock", "store.owner_locks:OwnerLock", "release", "stop"),
    # a raise: decided, put, synced, told
    _before("raise.wanted", _TILL, "take", "pay"),
    *_around("raise.commit", _STORE, "set", "pay", _raises),
    _after("raise.done", _QUEUE, "_raise_for", "pay"),
    _after("commit.handed-in", f"{_LMDB}:_Engine", "hand_in", "pay"),
    _before("commit.begin", f"{_LMDB}:_Engine", "_attempt", "pay"),
    _after("commit.run", _LMDB, "run_group", "pay"),
    _after("commit.put", _TXN, "put", "pay"),
    *_around("commit.sync", _TXN, "commit", "pay"),
    *_around("commit.told", _LMDB, "_announce", "pay"),
    # a voucher: held, signed, on the ledger, handed out, gone
    _before("grant", _TILL, "grant", "pay"),
    *_around("sign", _SIGNER, "sign_voucher", "pay"),
    *_around("ledger.sent", _JOURNAL, "append", "pay", _line(Sent)),
    Point("ledger.sent.torn", _FILE, "write", "before", "pay", _writes(b'"kind":"sent"'), torn=True),
    _after("credential", _GATE, "_credential", "pay"),
    *_around("credential.write", _WIRE, "put", "pay", _leaves("voucher")),
    # what a process that died in between has left
    *_around("claim.fold", _PARTS, "recover", "recover"),
    # its answer, and the end
    *_around("answer.paid", _GATE, "received", "pay"),
    *_around("answer.refused", _GATE, "answered", "open"),
    _before("ending", _TILL, "end", "pay"),
    *_around("ledger.ended", _JOURNAL, "append", "pay", _line(Ended)),
    Point("ledger.ended.torn", _FILE, "write", "before", "pay", _writes(b'"kind":"ended"'), torn=True),
    _after("ending.done", _GATE, "finished", "pay"),
    # an opening
    *_around("open.plan", _METHOD, "plan_open", "open"),
    *_around("open.commit", _STORE, "propose", "open"),
    *_around("open.grant", _TILL, "opening_grant", "open"),
    *_around("open.write", _WIRE, "put", "open", _leaves("open")),
    _before("open.ended", _DESK, "opening_ended", "open"),
    *_around("open.unknown", _STORE, "set", "open-unknown", _becomes(ChannelStatus.UNKNOWN)),
    *_around("open.settle", _OPENING, "settle", "open"),
    *_around("open.landed", _OPENING, "_opened", "open"),
    *_around("open.failed", _OPENING, "fail", "open-failed"),
    *_around("open.failed.commit", _STORE, "delete", "open-failed", _becomes(ChannelStatus.FAILED)),
    # a top-up
    _before("top-up", _TOPPING, "top_up", "top-up"),
    *_around("top-up.plan", _METHOD, "plan_top_up", "top-up"),
    *_around("top-up.commit", _STORE, "set", "top-up", _proposes_a_top_up),
    *_around("top-up.line", _JOURNAL, "append", "top-up", _kind("top-up-sent")),
    *_around("top-up.write", _WIRE, "put", "top-up", _leaves("topUp")),
    _after("top-up.answered", _TOPPING, "_send", "top-up"),
    *_around("top-up.settle", _TOPPING, "settle", "top-up"),
    *_around("top-up.landed", _TOPPING, "_landed", "top-up"),
    *_around("top-up.failed", _TOPPING, "_failed", "top-up-failed"),
    *_around("top-up.by-hand", f"{_PAYER}.by_hand", "_top_up", "top-up-by-hand"),
    # a close
    _before("close", _CLOSING, "_close", "close"),
    *_around("close.draining", _STORE, "set", "close", _becomes(ChannelStatus.DRAINING)),
    _after("close.challenge", f"{_PAYER}.asking", "ask", "close"),
    _after("close.probe", _CLOSING, "_probe", "close"),
    *_around("close.probe.line", _JOURNAL, "append", "close", _line(Probed)),
    *_around("close.closing", _STORE, "set", "close", _closes_by_agreement),
    *_around("close.line", _JOURNAL, "append", "close", _kind("close-sent")),
    *_around("close.write", _WIRE, "put", "close", _leaves("close")),
    _before("close.wait", _CLOSING, "_await_close", "close"),
    _before("close.gone", _CLOSING, "closed", "close"),
    _after("close.fees", _CLOSING, "book_fees", "close"),
    *_around("close.closed", _STORE, "delete", "close", _becomes(ChannelStatus.CLOSED)),
    _after("close.booked", _CLOSING, "book_closing", "close"),
    *_around("close.reopened", _STORE, "set", "reopen", _becomes(ChannelStatus.OPEN)),
    # a close by force
    _before("force.stop", _FORCING, "_stop_paying", "force"),
    *_around("force.closing", _STORE, "set", "force", _closes_by_force),
    *_around("force.broadcast", "proxy_addon.chain:ChainClient", "send_raw", "force"),
    _after("force.write", _WIRE, "put", "force", _asks_the_chain(b"eth_sendRawTransaction")),
    _after("force.told", _FORCING, "_tell_requested", "force"),
    _after("force.step", _FORCING, "_step", "force"),
    # a stream
    _before("stream.need", _STREAM, "_answer", "stream"),
    *_around("stream.grow", _TILL, "grow", "stream"),
    *_around("stream.line", _JOURNAL, "append", "stream", _line(Grown)),
    *_around("stream.voucher", _STREAM, "_send_head", "stream"),
    _after("stream.repeat", _TILL, "current", "stream-lost"),
    *_around("stream.mend", _STREAM, "_mend", "stream-mended"),
    *_around("stream.close", _STREAM, "close", "stream"),
    # a WebSocket: what of its vouchers is a stream's is passed there
    *_around("socket.prepare", _SOCKETS, "prepare", "socket"),
    *_around("socket.begin", _SOCKET, "begin", "socket"),
    *_around("socket.open.write", _WIRE, "put", "socket-opens", _says("open", first=True)),
    *_around("socket.first.write", _WIRE, "put", "socket", _says("voucher", first=True)),
    *_around("socket.taken", _SOCKET, "_paid", "socket"),
    *_around("socket.voucher", _SOCKET, "_send", "socket"),
    *_around("socket.refresh", _SOCKET, "_fresh_challenge", "socket-refreshes"),
    *_around("socket.voucher.write", _WIRE, "put", "socket", _says("voucher", first=False)),
    *_around("socket.refused", _SOCKET, "_failed", "socket-refused"),
    *_around("socket.stopped", _SOCKET, "_out_of_money", "socket-over-limit"),
    *_around("socket.booked", _SOCKET, "_book", "socket"),
    *_around("socket.dropped", _SOCKETS, "dropped", "socket-dropped"),
    *_around("socket.shut", _SOCKETS, "shut", "socket-shut"),
    # repairs
    *_around("repair", f"{_PAYER}.repairing:Repairs", "mend", "anew"),
    *_around("repair.resend", _TILL, "resend", "anew"),
    *_around("repair.write-off.line", _JOURNAL, "append", "write-off", _line(WrittenOff)),
    *_around("repair.lost", _GATE, "lost", "lost"),
    # a client's own retry
    *_around("retry.probe", f"{_PAYER}.probing", "probe", "retry"),
    *_around("aside", _STORE, "set", "gone", _becomes(ChannelStatus.ASIDE)),
)

BY_NAME = {point.name: point for point in TABLE}


# -- the trap


class Trap:
    """Set in one process, for one moment of its life."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._kill: Kill = NEVER
        self._left = 0
        self._armed = False

    def set(self, job: Job) -> None:
        self._job, self._kill, self._left = job, job.kill, job.kill.nth
        self._armed = job.kill.from_start

    def arm(self) -> None:
        self._armed = True

    def passes(self, points: tuple[Point, ...], call: Call) -> None:
        if not self._armed or not self._left:
            return
        for point in points:
            meant = self._kill.point in (None, point.name) and (point.only is None or point.only(call))
            if meant:
                self._left -= 1
                if not self._left:
                    self._die(point, call)

    def _die(self, point: Point, call: Call) -> None:
        assert self._job is not None
        if point.torn:
            fd, data = call.args[0], call.args[1]
            os.write(fd, data[: random.Random(self._job.seed).randrange(1, len(data))])
        note = os.open(self._job.killed_at, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.write(note, point.name.encode())
        os.kill(os.getpid(), signal.SIGKILL)


trap = Trap()


def install() -> None:
    """Wrap what the table names. Nothing is noticed of it until the trap is armed."""
    by_method: dict[tuple[str, str], list[Point]] = {}
    for point in TABLE:
        by_method.setdefault((point.owner, point.method), []).append(point)
    for points in by_method.values():
        owner, found = points[0].resolve()
        setattr(owner, points[0].method, _wrapped(found, points))


def _wrapped(found: Any, points: list[Point]) -> Any:
    if isinstance(found, (classmethod, staticmethod)):
        return type(found)(_wrapped(found.__func__, points))
    before = tuple(point for point in points if point.when == "before")
    after = tuple(point for point in points if point.when == "after")
    if inspect.iscoroutinefunction(found):

        @functools.wraps(found)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            trap.passes(before, Call(args, kwargs))
            result = await found(*args, **kwargs)
            trap.passes(after, Call(args, kwargs, result))
            return result

        return coroutine

    @functools.wraps(found)
    def function(*args: Any, **kwargs: Any) -> Any:
        trap.passes(before, Call(args, kwargs))
        result = found(*args, **kwargs)
        trap.passes(after, Call(args, kwargs, result))
        return result

    return function
