"""A simulated Tempo chain: no network, no consensus, no real money.

Real are the transactions (0x76, decoded strictly, the sender recovered from the signature), the TIP-20 balances, the
fees taken from the fee token, the channel reserve's rules and the ids that follow from the transaction's
`expiringNonceHash`. Simulated is the rest: one block per transaction, an empty one when time has passed, a fixed base
fee, gas by table. Sponsored transactions are refused.

Nothing here is durable: the chain lives as long as its process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from proxy_addon.demo import reserve
from proxy_addon.demo.state import Event, Execution, Revert, Storage, commit, is_token
from proxy_addon.methods.abi import keccak256, read_address, selector, to_hex, uint_word, words
from proxy_addon.methods.tempo_session.calls import ReserveState
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_tx import (
    EXPIRING_NONCE_KEY,
    Call,
    SignedTransaction,
    decode,
    fee_in_base_units,
)

CHAIN_ID: Final = 42431
PATH_USD: Final = "0x20c0000000000000000000000000000000000000"
FEE_MANAGER: Final = "0xfeec000000000000000000000000000000000000"
"""Where fees go, so that the sum of all balances never changes."""

BASE_FEE: Final = 20_000_000_000  # attodollars per gas
MAX_VALIDITY_S: Final = 30
"""TIP-1009. As on the real chain, a transaction that is valid for longer is taken and never mined."""

_BALANCE_OF: Final = selector("balanceOf(address)")
_DECIMALS: Final = selector("decimals()")
_TRANSFER: Final = selector("transfer(address,uint256)")
_TRANSFER_GAS: Final = 50_000
_TRANSFERRED: Final = "Transfer(address,address,uint256)"


class TransactionRefused(Exception):
    """The node did not take a transaction: nothing of it will ever be in a block."""


class CallFailed(Exception):
    """A read reverted, or asked for a block that does not exist."""


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    timestamp: int  # Unix seconds
    hash: str
    parent: str
    transactions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in a block. `reason` says why it failed; the fee is due all the same."""

    hash: str
    sender: str
    to: str
    block: Block
    succeeded: bool
    reason: str
    gas_used: int
    gas_price: int  # attodollars per gas
    fee_token: str
    fee: int  # base units of the fee token
    events: tuple[Event, ...]


@dataclass(slots=True)
class SimulatedChain:
    """The chain's state, and what a node offers on it. `clock` gives Unix seconds.

    With `mining` off, transactions wait until `mine` is called; what has expired by then is dropped.
    """

    chain_id: int = CHAIN_ID
    clock: Callable[[], float] = time.time
    base_fee: int = BASE_FEE
    mining: bool = True
    transactions: dict[str, Mined] = field(default_factory=dict)
    _storage: Storage = field(default_factory=Storage)
    _blocks: list[Block] = field(default_factory=list)
    _pool: dict[str, SignedTransaction] = field(default_factory=dict)
    _nonces: set[bytes] = field(default_factory=set)
    _ahead: int = 0  # seconds by which the chain's clock was moved

    def __post_init__(self) -> None:
        self._append(())

    # --- Reads ---------------------------------------------------------------------------------------

    def head(self) -> Block:
        """The newest block; an empty one if a second has passed since the last."""
        if self._now() > self._blocks[-1].timestamp:
            self._append(())
        return self._blocks[-1]

    def block(self, number: int) -> Block | None:
        self.head()
        return self._blocks[number] if 0 <= number < len(self._blocks) else None

    def balance(self, holder: str, token: str = PATH_USD, block: int | None = None) -> int:
        return self._storage.read((token, holder), block)

    def supply(self, token: str = PATH_USD) -> int:
        """The sum of all balances of a token: only `fund` changes it."""
        return self._storage.total(token)

    def channel(self, channel_id: str, block: int | None = None) -> ReserveState:
        """All zero if there is none, or none any more."""
        return reserve.load_state(self._storage.read(reserve.slot(channel_id), block))

    def call(self, to: str, data: bytes, block: int | None = None) -> bytes:
        """A getter of the reserve or of a token. Raises `CallFailed`."""
        if to == RESERVE:
            try:
                return reserve.view(data, lambda slot: self._storage.read(slot, block), self.chain_id)
            except Revert as error:
                raise CallFailed(f"execution reverted: {error}") from error
        if is_token(to) and data[:4] == _BALANCE_OF and len(data) == 36:
            return uint_word(self._storage.read((to, to_hex(data[16:])), block))
        if is_token(to) and data == _DECIMALS:
            return uint_word(6)
        if is_token(to):
            raise CallFailed("execution reverted: UnknownFunctionSelector")
        return b""  # as at any address without code

    def logs(
        self, address: str | None, topics: Sequence[str | None], from_block: int, to_block: int
    ) -> list[tuple[Mined, int, Event]]:
        """Matching events with their transaction and their index in the block."""
        return [
            (mined, index, event)
            for mined in self.transactions.values()
            if from_block <= mined.block.number <= to_block
            for index, event in enumerate(mined.events)
            if address in (None, event.address)
            and len(event.topics) >= len(topics)
            and all(want in (None, have) for want, have in zip(topics, event.topics, strict=False))
        ]

    # --- Transactions --------------------------------------------------------------------------------

    def send(self, raw: bytes) -> str:
        """Takes a signed transaction and, with `mining`, puts it into a block; returns its hash.

        Raises `TransactionRefused` for what no node takes: not decodable, of another chain, expired, sent before,
        fees that the sender cannot pay.
        """
        tx_hash = to_hex(keccak256(raw))
        try:
            signed = decode(raw)
        except ValueError as error:
            raise TransactionRefused(f"failed to decode transaction: {error}") from error
        self._admit(signed, tx_hash)
        self._nonces.add(signed.expiring_nonce_hash)
        self._pool[tx_hash] = signed
        if self.mining:
            self.mine()
        return tx_hash

    def mine(self) -> None:
        """A block for each transaction that waits and is valid; expired ones are dropped."""
        for tx_hash, signed in list(self._pool.items()):
            now = self.head().timestamp
            valid_before = signed.transaction.valid_before or 0
            if valid_before <= now or self._fee_limit(signed) > self._fee_balance(signed):
                del self._pool[tx_hash]
            elif valid_before - now <= MAX_VALIDITY_S:
                del self._pool[tx_hash]
                self._execute(tx_hash, signed, self._append((tx_hash,), now))

    def fund(self, holder: str, amount: int, token: str = PATH_USD) -> None:
        """Money out of nothing: this is a simulation."""
        balance = self._storage.read((token, holder))
        self._append(())
        self._storage.write((token, holder), balance + amount, self._blocks[-1].number)

    def warp(self, seconds: int) -> None:
        """Moves the chain's clock ahead and mines a block there."""
        self._ahead += seconds
        self.head()

    def _admit(self, signed: SignedTransaction, tx_hash: str) -> None:
        transaction = signed.transaction
        now = self.head().timestamp
        if tx_hash in self.transactions or signed.expiring_nonce_hash in self._nonces:
            raise TransactionRefused("already known")
        if transaction.chain_id != self.chain_id:
            raise TransactionRefused(f"invalid chain id {transaction.chain_id}, this is {self.chain_id}")
        if transaction.sponsored:
            raise TransactionRefused("the simulated chain knows no fee payer but the sender")
        if transaction.nonce_key != EXPIRING_NONCE_KEY or transaction.valid_before is None:
            raise TransactionRefused("the simulated chain takes expiring nonces only")
        if transaction.valid_before <= now:
            raise TransactionRefused(
                f"transaction expired: valid before {transaction.valid_before}, now {now}"
            )
        if transaction.valid_after is not None and transaction.valid_after > now:
            raise TransactionRefused("transaction not valid yet")
        if transaction.max_fee_per_gas < self.base_fee:
            raise TransactionRefused(f"max fee per gas less than block base fee {self.base_fee}")
        if any(call.value for call in transaction.calls):
            raise TransactionRefused("there is no native currency to send a value in")
        limit, available = self._fee_limit(signed), self._fee_balance(signed)
        if available < limit:
            raise TransactionRefused(f"insufficient funds for gas: {available} available, {limit} needed")

    def _fee_balance(self, signed: SignedTransaction) -> int:
        return self.balance(to_hex(signed.sender), _fee_token(signed))

    @staticmethod
    def _fee_limit(signed: SignedTransaction) -> int:
        return fee_in_base_units(signed.transaction.gas_limit, signed.transaction.max_fee_per_gas)

    def _execute(self, tx_hash: str, signed: SignedTransaction, block: Block) -> None:
        transaction, sender, token = signed.transaction, to_hex(signed.sender), _fee_token(signed)
        needed = sum(_gas(call) for call in transaction.calls)
        price = min(transaction.max_fee_per_gas, self.base_fee + transaction.max_priority_fee_per_gas)
        limit = self._fee_limit(signed)
        used = min(needed, transaction.gas_limit)
        fee = fee_in_base_units(used, price)
        run, reason = self._run(signed, block, token, limit)
        if needed > transaction.gas_limit:
            reason = "OutOfGas"
        if reason:  # all that stays is the fee
            run = self._execution(signed, block)
            run.move(token, sender, FEE_MANAGER, fee)
        else:
            run.move(token, FEE_MANAGER, sender, limit - fee)
        commit(self._storage, run.writes, block.number)
        self.transactions[tx_hash] = Mined(
            hash=tx_hash,
            sender=sender,
            to=to_hex(transaction.calls[0].to),
            block=block,
            succeeded=not reason,
            reason=reason,
            gas_used=used,
            gas_price=price,
            fee_token=token,
            fee=fee,
            events=() if reason else tuple(run.events),
        )

    def _run(self, signed: SignedTransaction, block: Block, token: str, limit: int) -> tuple[Execution, str]:
        """All calls, after the highest possible fee was set aside; or why they failed."""
        run = self._execution(signed, block)
        try:
            run.move(token, run.sender, FEE_MANAGER, limit)
            for call in signed.transaction.calls:
                _call(run, call)
        except Revert as error:
            return run, str(error)
        return run, ""

    def _execution(self, signed: SignedTransaction, block: Block) -> Execution:
        return Execution(
            self._storage,
            chain_id=self.chain_id,
            sender=to_hex(signed.sender),
            timestamp=block.timestamp,
            nonce_hash=signed.expiring_nonce_hash,
        )

    def _append(self, transactions: tuple[str, ...], at: int = 0) -> Block:
        number = len(self._blocks)
        parent = self._blocks[-1].hash if self._blocks else to_hex(bytes(32))
        timestamp = at or max(self._now(), self._blocks[-1].timestamp if self._blocks else 0)
        digest = keccak256(f"simulated|{parent}|{number}|{timestamp}|{transactions}".encode())
        block = Block(number, timestamp, to_hex(digest), parent, transactions)
        self._blocks.append(block)
        return block

    def _now(self) -> int:
        return int(self.clock()) + self._ahead


def _fee_token(signed: SignedTransaction) -> str:
    return PATH_USD if signed.transaction.fee_token is None else to_hex(signed.transaction.fee_token)


def _gas(call: Call) -> int:
    return reserve.GAS.get(call.data[:4], _TRANSFER_GAS)


def _call(run: Execution, call: Call) -> None:
    to = to_hex(call.to)
    if to == RESERVE:
        reserve.execute(run, call.data)
    elif is_token(to) and call.data[:4] == _TRANSFER:
        try:
            target_word, amount_word = words(call.data[4:], 2, "transfer's arguments")
            target = read_address(target_word, "to")
        except ValueError as error:
            raise Revert(f"InvalidCalldata: {error}") from error
        amount = int.from_bytes(amount_word, "big")
        run.move(to, run.sender, target, amount)
        run.emit(to, _TRANSFERRED, (bytes(12) + bytes.fromhex(run.sender[2:]), target_word), amount_word)
    else:
        raise Revert("UnknownFunctionSelector")
