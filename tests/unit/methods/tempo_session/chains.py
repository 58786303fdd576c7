"""Chains that answer one thing, and remember what they were asked."""

from __future__ import annotations

from collections.abc import Sequence

from proxy_addon.chain import Log
from proxy_addon.methods.contract import ChainHead
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

    async def balance(self, token: str, holder: str) -> int:
        raise AssertionError("not asked for")


class History(Answers):
    """A chain whose logs are these, by block; it may be asked for the end of one channel only."""

    def __init__(self, escrow: str, topic: str, channel_id: str, *logs: Log) -> None:
        super().__init__(b"")
        self.wanted = (escrow, (topic, channel_id))
        self.entries = logs
        self.looks: list[tuple[int, int | None]] = []

    async def logs(
        self, address: str, topics: Sequence[str | None], *, from_block: int, to_block: int | None = None
    ) -> tuple[Log, ...]:
        assert (address, tuple(topics)) == self.wanted
        assert to_block is not None
        self.looks.append((from_block, to_block))
        return tuple(log for log in self.entries if from_block <= log.block_number <= to_block)
