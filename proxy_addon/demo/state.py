"""Storage and token balances of the simulated chain, and one transaction's run on them.

Part of a simulation: no consensus, no virtual machine. What is kept is what a payer can observe: words by contract
and slot as of any block, TIP-20 balances, calls that succeed together or not at all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy_addon.methods.abi import keccak256, to_hex

Slot: TypeAlias = tuple[str, str]
"""A contract and what the word is of: a holder's balance, a channel's state."""

TIP20_PREFIX: Final = "0x20c000000000000000000000"


class Revert(Exception):
    """A call failed, and with it its whole transaction; the message is the contract's error."""


@dataclass(frozen=True, slots=True)
class Event:
    address: str
    topics: tuple[str, ...]
    data: bytes


class Storage:
    """256-bit words, each with its history by block."""

    def __init__(self) -> None:
        self._blocks: dict[Slot, list[int]] = {}
        self._words: dict[Slot, list[int]] = {}

    def read(self, slot: Slot, block: int | None = None) -> int:
        """The word as of the end of `block`; without one, as it is now."""
        words = self._words.get(slot)
        if words is None:
            return 0
        if block is None:
            return words[-1]
        at = bisect_right(self._blocks[slot], block)
        return words[at - 1] if at else 0

    def write(self, slot: Slot, word: int, block: int) -> None:
        self._blocks.setdefault(slot, []).append(block)
        self._words.setdefault(slot, []).append(word)

    def total(self, contract: str) -> int:
        """The sum of a contract's words: a token's supply."""
        return sum(words[-1] for (owner, _), words in self._words.items() if owner == contract)


class Execution:
    """A transaction's calls while they run: writes and events that count only if `storage` is given them."""

    def __init__(
        self, storage: Storage, *, chain_id: int, sender: str, timestamp: int, nonce_hash: bytes
    ) -> None:
        self.chain_id = chain_id
        self.sender = sender
        self.timestamp = timestamp
        self.nonce_hash = nonce_hash
        self.writes: dict[Slot, int] = {}
        self.events: list[Event] = []
        self.opened: set[str] = set()  # channels of this transaction, also those closed again
        self._storage = storage

    def get(self, slot: Slot) -> int:
        word = self.writes.get(slot)
        return self._storage.read(slot) if word is None else word

    def put(self, slot: Slot, word: int) -> None:
        self.writes[slot] = word

    def move(self, token: str, source: str, target: str, amount: int) -> None:
        """A TIP-20 transfer, as the token itself makes it. Raises `Revert`."""
        available = self.get((token, source))
        if amount > available:
            raise Revert(f"InsufficientBalance: {source} has {available} of {token}, {amount} are asked for")
        self.put((token, source), available - amount)
        self.put((token, target), self.get((token, target)) + amount)

    def emit(self, address: str, signature: str, topics: tuple[bytes, ...], data: bytes) -> None:
        indexed = (to_hex(topic) for topic in topics)
        self.events.append(Event(address, (_topic(signature), *indexed), data))


def is_token(address: str) -> bool:
    return address.startswith(TIP20_PREFIX)


_TOPICS: dict[str, str] = {}


def _topic(signature: str) -> str:
    if signature not in _TOPICS:
        _TOPICS[signature] = to_hex(keccak256(signature.encode()))
    return _TOPICS[signature]


def commit(storage: Storage, writes: Mapping[Slot, int], block: int) -> None:
    for slot, word in writes.items():
        storage.write(slot, word, block)
