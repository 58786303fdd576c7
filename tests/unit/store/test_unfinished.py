"""All channels that are no tombstones, however many: in parts, so that nobody waits for all of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from store import channels
from store.channels import ChannelStore
from store.lifecycle import ChannelStatus
from tests.unit.store.test_channels import Processes, opened, process

__all__ = ["process"]


async def close(store: ChannelStore, channel_id: str) -> None:
    channel = await store.find(channel_id)
    assert channel is not None
    await store.delete(replace(channel, status=ChannelStatus.CLOSED, captured=0, refunded=channel.deposit))


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
async def test_all_oldest_first(process: Processes, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(channels, "_AT_ONCE", at_once)
    store = await process()
    for number in range(5):
        await opened(store, f"0x{number}", opened_at=10 - number)
    await close(store, "0x3")
    assert [one.channel_id for one in await store.unfinished()] == ["0x4", "0x2", "0x1", "0x0"]


async def test_others_go_on_between_the_parts(process: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_AT_ONCE", 1)
    store = await process()
    for number in range(3):
        await opened(store, f"0x{number}", opened_at=number)
    finding = asyncio.create_task(store.unfinished())
    turns = 0
    while not finding.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 3
    assert len(await finding) == 3


async def test_one_that_is_closed_meanwhile_is_left_out(
    process: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "_AT_ONCE", 1)
    store = await process()
    for number in range(3):
        await opened(store, f"0x{number}", opened_at=number)
    finding = asyncio.create_task(store.unfinished())
    await asyncio.sleep(0)  # the ids, and the first
    await close(store, "0x2")
    found = {one.channel_id for one in await finding}
    assert found >= {"0x0", "0x1"}
    assert all(one.status is ChannelStatus.OPEN for one in await finding)
