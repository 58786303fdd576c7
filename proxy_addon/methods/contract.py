"""What a payment method must offer. A new method is one new module and one line in the registry.

A method knows bytes: ids, typed data, payloads, transactions. It decides nothing, holds no key, keeps no
state and moves no money; `payer` does that. Amounts are base units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxy_addon.core.messages import Challenge
from proxy_addon.core.terms import Terms
from store.records import Channel, PaymentScope


class ChainReader(Protocol):
    """The reads that a method needs of its chain. Raises `ChainUnavailable`.

    *Firm* is what money may depend on: said alike by as many endpoints, and of a block as deep, as the config demands.
    """

    async def call(self, to: str, data: bytes, *, block: str = "latest") -> bytes: ...
    async def head(self) -> ChainHead: ...
    async def balance(self, token: str, holder: str) -> int: ...
    async def firm_head(self) -> ChainHead: ...
    async def firm_call(self, to: str, data: bytes, at: ChainHead) -> bytes: ...


class TransactionSigner(Protocol):
    """Signs one transaction with the payer's key, after reading in the bytes themselves that it does what was meant.

    It takes what is hashed, never a hash: a digest could be that of anything, a voucher too.
    """

    @property
    def address(self) -> str: ...
    def sign_transaction(self, payload: bytes) -> bytes:
        """65 bytes r ‖ s ‖ v (27 or 28) over the keccak-256 of `payload`. Raises `SignerRefused`."""


@dataclass(frozen=True, slots=True)
class ChainHead:
    number: int
    timestamp: int  # Unix seconds, the block's own
    base_fee: int  # wei per gas


@dataclass(frozen=True, slots=True)
class OpenPlan:
    """A signed opening, complete before anything is durable or sent."""

    channel_id: str
    descriptor: Mapping[str, str]
    transaction: str  # 0x76…, signed
    tx_hash: str  # the chain knows a sponsored one by another: find that channel by its id
    valid_before: int  # Unix seconds
    max_fee: int = 0  # the most the network may charge the payer, in the fee token's base units; 0: sponsored


@dataclass(frozen=True, slots=True)
class TransactionPlan:
    """A signed top-up or step of a forced close, complete before anything is durable or sent."""

    transaction: str  # 0x76…, signed
    tx_hash: str  # of a sponsored one the chain knows another
    valid_before: int  # Unix seconds
    max_fee: int = 0  # as in `OpenPlan`


@dataclass(frozen=True, slots=True)
class ChainState:
    """What the chain says of one channel."""

    exists: bool
    deposit: int
    settled: int
    close_requested_at: int | None  # Unix seconds, of a forced close
    block: ChainHead


@dataclass(frozen=True, slots=True)
class Closing:
    """How the chain says a channel ended."""

    captured: int  # what the payee got, over the channel's whole life
    refunded: int  # what came back to the payer
    tx_hash: str


@dataclass(frozen=True, slots=True)
class FoundChannel:
    """A channel that the chain's own event of its opening names. Nobody's word: its id was made anew from it."""

    channel_id: str
    scope: PaymentScope
    descriptor: Mapping[str, str]
    tx_hash: str
    block_number: int


@dataclass(frozen=True, slots=True)
class ForcedFees:
    """What a forced close costs us, in the fee token's base units: what it usually takes, and what it takes at most.

    The wallet must have the most that one transaction may cost, even where it takes a part of it.
    """

    usual: int
    most: int
    most_at_once: int


class LogReader(ChainReader, Protocol):
    """A `ChainReader` that can also look for events. Raises `ChainUnavailable`."""

    async def firm_logs(
        self, address: str, topics: Sequence[str | None], *, from_block: int, to_block: int
    ) -> tuple[EventLog, ...]: ...


class EventLog(Protocol):
    """One event of a contract."""

    @property
    def address(self) -> str: ...
    @property
    def topics(self) -> tuple[str, ...]: ...
    @property
    def data(self) -> bytes: ...
    @property
    def tx_hash(self) -> str: ...
    @property
    def block_number(self) -> int: ...


class Method(Protocol):
    """One version of one payment method, e.g. tempo session v2."""

    family: str
    version: str
    escrows: Mapping[str, str]  # CAIP-2 chain -> the canonical escrow there ("*" for any chain)
    close_takes_voucher: bool
    """The escrow pays the payee the close voucher's whole amount, whatever was spent: sign no more than was provably
    spent, and always more than was settled; where that cannot be known, close by force. False: the server captures
    what was spent (or settled, if that is more), and any voucher from there up to the highest accepted one will do."""

    def terms(self, challenge: Challenge) -> Terms:
        """Read a challenge. Raises `RemoteProtocolError` naming the field, `UnsupportedChallenge` if not ours."""

    def scope(self, terms: Terms, *, payer: str, voucher_signer: str, origin: str) -> PaymentScope: ...

    def channel_id(self, scope: PaymentScope, descriptor: Mapping[str, str]) -> str:
        """Recomputed from the descriptor: an id is never taken from a peer."""

    def voucher_digest(self, channel: Channel, amount: int) -> bytes:
        """The 32 bytes to sign for a cumulative `amount`. Raises ``ValueError`` outside the integer type."""

    def plan_open(
        self,
        scope: PaymentScope,
        *,
        deposit: int,
        salt: bytes,
        head: ChainHead,
        fee_payer: bool,
        signer: TransactionSigner,
    ) -> OpenPlan: ...

    def open_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]: ...
    def voucher_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]: ...
    def close_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]: ...

    def plan_top_up(
        self, channel: Channel, *, amount: int, head: ChainHead, fee_payer: bool, signer: TransactionSigner
    ) -> TransactionPlan:
        """A signed top-up that adds `amount` to the deposit, and can land until `valid_before`.

        Nothing is sent and nothing durable yet: whoever has the bytes can move the money, so they are on record
        before they leave. A new one for the same channel gives other bytes once the last one's hash is in
        ``channel.transactions``. Raises ``ValueError`` for an amount that does not fit, and `SignerRefused`.
        """

    def top_up_payload(self, channel: Channel, *, amount: int, transaction: str) -> dict[str, Any]: ...

    def plan_request_close(
        self, channel: Channel, head: ChainHead, signer: TransactionSigner
    ) -> TransactionPlan:
        """The first step of a forced close, at our own cost: tells the chain that the payer wants out."""

    def plan_withdraw(self, channel: Channel, head: ChainHead, signer: TransactionSigner) -> TransactionPlan:
        """The second, at the earliest 15 minutes of block time later: takes back what is not settled."""

    def forced_fees(self, head: ChainHead, *, requested: bool) -> ForcedFees:
        """What both steps cost at the prices of `head`; the second alone if the close is `requested` already."""

    def opened_topics(self, payer: str) -> tuple[str | None, ...]:
        """What the events of all openings by `payer` have in common."""

    def parse_opened(self, log: EventLog, *, chain: str, origin: str) -> FoundChannel:
        """The channel that such an event is about. Raises ``ValueError`` for what no escrow has written."""

    async def read_channel(self, chain: ChainReader, channel: Channel) -> ChainState:
        """Raises `ChainUnavailable`."""

    async def read_closing(self, chain: LogReader, channel: Channel, head: ChainHead) -> Closing | None:
        """How a channel ended that the chain has no longer; None if no event tells. Raises `ChainUnavailable`."""
