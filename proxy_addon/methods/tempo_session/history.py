"""Looking for events, the newest blocks first, in pieces that endpoints take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.contract import ChainHead, EventLog, LogReader

LOG_BLOCKS: Final = 10_000  # what endpoints allow at least for one look at the logs
FEWEST_BLOCKS: Final = 500
MOST_BLOCKS: Final = 1_000_000
BLOCKS_PER_S: Final = 4  # Tempo makes two at most
_MARGIN_S: Final = 600


async def newest_first(
    chain: LogReader, escrow: str, topics: Sequence[str | None], *, first: int, last: int
) -> AsyncIterator[tuple[int, tuple[EventLog, ...]]]:
    """The block that each look began with, and what it found, from `last` down to `first`.

    A look that an endpoint refuses is made smaller, one that succeeds is followed by a larger one: some endpoints
    take thousands of blocks at once, some all of them. Raises `ChainUnavailable` if even a small one fails.
    """
    blocks = LOG_BLOCKS
    most = MOST_BLOCKS
    while last >= first:
        start = max(first, last - blocks + 1)
        try:
            found = await chain.firm_logs(escrow, topics, from_block=start, to_block=last)
        except ChainUnavailable:
            if blocks <= FEWEST_BLOCKS:
                raise
            blocks //= 4
            most = max(blocks, FEWEST_BLOCKS)
            continue
        yield start, found
        last = start - 1
        blocks = min(2 * blocks, most)


def block_before(head: ChainHead, moment_s: int) -> int:
    """A block that is surely older than `moment_s` (Unix seconds); 0 for a moment that is not known."""
    if moment_s <= 0:
        return 0
    return max(0, head.number - max(0, head.timestamp - moment_s + _MARGIN_S) * BLOCKS_PER_S)
