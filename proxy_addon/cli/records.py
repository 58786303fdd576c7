"""Channels as they are this moment, for people: the record, and what its owner's journal adds to it.

Read only. A running proxy writes its record with the next commit; until then its endings are in its journal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from proxy_addon.cli.failure import ExitCode, Failure
from store import account
from store.account import IllegalMove, Move
from store.journal import boot_id, moves_after
from store.lifecycle import FINAL
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from store.channels import ChannelStore


class Ownership(StrEnum):
    IDLE = "idle"  # given back: any process may take it
    IN_USE = "in use"  # by a living process
    LEFT = "left"  # its process died; the next one recovers it
    GONE = ""  # final: nobody needs it any more


@dataclass(frozen=True, slots=True)
class View:
    """A channel, with its owner's journal folded in as far as that makes sense."""

    channel: Channel
    ownership: Ownership


async def read_channels(settings: Settings) -> list[View]:
    """All of them, oldest first. Raises `StoreError`."""
    if settings.store.backend == "lmdb" and not settings.store.directory.exists():
        return []  # looking does not make one
    store = await open_store(settings)
    try:
        return [view_of(settings, store, channel) for channel in await store.all()]
    finally:
        await store.close()


async def open_store(settings: Settings) -> ChannelStore:
    """The store alone, without a key, a ledger file of our own or the chain. Raises `StoreError`."""
    from store.backends import open_backend
    from store.channels import ChannelStore

    return ChannelStore(await open_backend(settings.store.backend, settings.store.directory))


def one_of(channels: Iterable[Channel], start: str) -> Channel:
    """The channel whose id starts with `start`. Raises `Failure` for none or several."""
    wanted = start.lower().partition("…")[0].rstrip(".")
    found = [channel for channel in channels if channel.channel_id.startswith(wanted)]
    if len(found) == 1 and len(wanted) >= 4:
        return found[0]
    if not found:
        raise Failure(f"no channel {start} on record; bursar channels list has them all")
    raise Failure(
        f"{start} is the start of {len(found)} channels: give more of the id"
        if len(wanted) >= 4
        else f"{start!r} is too short: give at least 0x and two digits of the id",
        ExitCode.USAGE,
    )


def view_of(settings: Settings, store: ChannelStore, channel: Channel) -> View:
    """A record as its owner, or the next one, will have it."""
    if channel.status in FINAL:
        return View(channel, Ownership.GONE)
    if channel.owner is None:
        return View(channel, Ownership.IDLE)
    if store.is_busy(channel):
        return View(_caught_up(settings, channel), Ownership.IN_USE)
    return View(_recovered(settings, channel), Ownership.LEFT)


def _caught_up(settings: Settings, channel: Channel) -> Channel:
    """As its living owner has it in memory."""
    caught_up = channel
    try:
        for move in _moves(settings, channel):
            caught_up = account.apply(caught_up, move)
    except IllegalMove:
        return channel
    return caught_up


def _recovered(settings: Settings, channel: Channel) -> Channel:
    """As the next owner will recover it from a dead one."""
    mark = channel.folded
    try:
        if mark is not None and mark.boot_id == boot_id():
            return account.fold(channel, _moves(settings, channel))
    except IllegalMove:
        pass
    return account.doubt_everything(channel, channel.eligible_at)


def _moves(settings: Settings, channel: Channel) -> list[Move]:
    if channel.folded is None:
        return []
    return moves_after(settings.store.ledger, channel.folded, channel.channel_id)
