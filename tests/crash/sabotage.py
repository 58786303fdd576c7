"""Promises that are broken on purpose. A harness that does not notice them would not notice a bug either."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from proxy_addon.payer import opening
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till
from store.account import Grown, Sent
from store.channels import ChannelStore
from store.journal import Journal
from store.records import Channel


def _put(owner: Any, name: str, new: object) -> None:
    setattr(owner, name, new)


def _raise_is_not_durable() -> None:
    usual = ChannelStore.set

    async def lazy(self: ChannelStore, channel: Channel, counters: Any = (), *rest: Any) -> None:
        if not counters or channel.pending is not None:
            await usual(self, channel, counters, *rest)

    _put(ChannelStore, "set", lazy)


def _opening_is_not_durable() -> None:
    async def lazy(self: ChannelStore, channel: Channel, *_: Any, **__: Any) -> Channel:
        return replace(channel, owner=self.owner_id, epoch=1)

    _put(ChannelStore, "propose", lazy)


def _unknown_is_failed() -> None:
    """An answer that is no success, taken for the chain's word."""

    async def fail(parts: Parts, till: Till, **_: Any) -> bool:
        await opening.fail(parts, till, "the server said so")
        return False

    _put(opening, "settle", fail)


def _leaves_without_a_line(left_out: type = Sent) -> None:
    usual = Journal.append

    def append(self: Journal, fields: Any, *, channel_id: Any = None, move: Any = None) -> int:
        if isinstance(move, left_out):
            return self.lines
        return usual(self, fields, channel_id=channel_id, move=move)

    _put(Journal, "append", append)


def _grows_without_a_line() -> None:
    """What a stream or a WebSocket takes beyond its first unit."""
    _leaves_without_a_line(Grown)


def _unknown_is_free() -> None:
    """A request without an end, taken for one that was not sent."""

    def recover(self: Parts, channel: Channel) -> tuple[Channel, bool]:
        return replace(channel, holds={}, held=0), True

    _put(Parts, "recover", recover)


WAYS: dict[str, Callable[[], None]] = {
    "raise-not-durable": _raise_is_not_durable,
    "opening-not-durable": _opening_is_not_durable,
    "unknown-is-failed": _unknown_is_failed,
    "no-line": _leaves_without_a_line,
    "no-line-of-growth": _grows_without_a_line,
    "unknown-is-free": _unknown_is_free,
}


def commit(way: str) -> None:
    WAYS[way]()
