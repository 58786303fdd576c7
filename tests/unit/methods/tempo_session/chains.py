"""Chains that answer one thing, and remember what they were asked."""

from __future__ import annotations

from collections.abc import Sequence

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.contract import ChainHead
from proxy_addon.rpc_answers import Log
from tests.unit.methods.samples import HEAD


class Answers:
    """A chain whose calls all return the same."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[tuple[str, bytes, str]] = []

    async def call(self, to: str, data: bytes, *, block: str = "latest") -> bytes:
        self.asked.append((to, data, block))
        return self.data

    async def head(self) -> ChainHead:
        return HEAD

    async def firm_head(self) -> ChainHead:
        return HEAD

    async def firm_call(self, to: str, data: bytes, at: ChainHead) -> bytes:
        return await self.call(to, data, block=hex(at.number))

    async def balance(self, token: str, holder: str) -> int:
        raise AssertionError("not asked for")


class History(Answers):
    """A chain whose logs are these, by block; it may be asked for the end of one channel only."""

    def __init__(self, escrow: str, topic: str, channel_id: str, *logs: Log) -> None:
        super().__init__(b"")
        self.wanted = (escrow, (topic, channel_id))
        self.entries = logs
        self.looks: list[tuple[int, int | None]] = []
        self.most = 1 << 60  # blocks that it takes at once

    async def firm_logs(
        self, address: str, topics: Sequence[str | None], *, from_block: int, to_block: int
    ) -> tuple[Log, ...]:
        assert (address, tuple(topics)) == self.wanted
        if to_block - from_block >= self.most:
            raise ChainUnavailable("too wide a range")
        self.looks.append((from_block, to_block))
        return tuple(log for log in self.entries if from_block <= log.block_number <= to_block)
