"""What all versions of Tempo sessions have in common: scopes, plans, payloads, reading the chain.

A version says how its channels are identified, which calls do what, and what its escrow answers; see `v1`, `v2`.
Bytes only: `payer` decides and pays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import ZERO_ADDRESS, parse_address, to_hex
from proxy_addon.methods.contract import (
    ChainHead,
    ChainReader,
    ChainState,
    Closing,
    EventLog,
    ForcedFees,
    FoundChannel,
    LogReader,
    OpenPlan,
    TransactionPlan,
    TransactionSigner,
)
from proxy_addon.methods.tempo_session.events import OpenedEvent, parse_closed, payer_topic
from proxy_addon.methods.tempo_session.history import block_before, newest_first
from proxy_addon.methods.tempo_session.terms import parse_terms
from proxy_addon.methods.tempo_session.transactions import plan_of, transaction_of, variant_of
from proxy_addon.methods.tempo_session.voucher import FAMILY, VoucherCodec
from proxy_addon.methods.tempo_tx import (
    PRIORITY_FEE,
    Call,
    TempoTransaction,
    fee_in_base_units,
    max_fee_for,
)
from store.records import Channel, PaymentScope

if TYPE_CHECKING:
    from proxy_addon.core.messages import Challenge
    from proxy_addon.core.terms import Terms


@dataclass(frozen=True, slots=True)
class Gas:
    """Gas limits. Only what is used is charged; but the payer must have the limit at the maximum fee, even to take
    its own money back, and mppx's sponsors refuse more than 2M."""

    open: int
    top_up: int
    request_close: int
    withdraw: int


@dataclass(frozen=True, slots=True)
class EscrowState:
    """What the escrow stores of a channel. `exists`: it is open, and holds something for it."""

    exists: bool
    deposit: int
    settled: int
    close_requested_at: int  # Unix seconds; 0: none


class TempoSession(ABC):
    """`contract.Method` for ``tempo``/``session`` challenges of one version."""

    family: str = FAMILY
    version: str
    escrows: Mapping[str, str]
    close_takes_voucher: bool
    codec: ClassVar[VoucherCodec]
    gas: ClassVar[Gas]
    usual_gas: ClassVar[Gas]
    """What the same transactions take as a rule, measured."""
    opened_topic: ClassVar[str]
    closed_topic: ClassVar[str]

    # -- what a version says

    @abstractmethod
    def channel_id(self, scope: PaymentScope, descriptor: Mapping[str, str]) -> str:
        """Recomputed from the descriptor: an id is never taken from a peer.

        Raises ``ValueError`` if the descriptor is malformed or belongs to another scope.
        """

    @abstractmethod
    def open_calls(self, scope: PaymentScope, deposit: int, salt: str) -> tuple[Call, ...]: ...
    @abstractmethod
    def descriptor(self, scope: PaymentScope, salt: str, transaction: TempoTransaction) -> dict[str, str]: ...
    @abstractmethod
    def top_up_calls(self, channel: Channel, amount: int) -> tuple[Call, ...]: ...
    @abstractmethod
    def request_close_call(self, channel: Channel) -> Call: ...
    @abstractmethod
    def withdraw_call(self, channel: Channel) -> Call: ...
    @abstractmethod
    def identity(self, channel: Channel) -> dict[str, Any]:
        """What names the channel in every payload."""

    @abstractmethod
    def parse_opened_event(self, log: EventLog) -> OpenedEvent:
        """Raises ``ValueError``."""

    @abstractmethod
    def encode_get_state(self, channel: Channel) -> bytes: ...
    @abstractmethod
    def parse_state(self, channel: Channel, data: bytes) -> EscrowState:
        """Raises ``ValueError`` for what no escrow of this version can have answered."""

    # -- challenges and vouchers

    def terms(self, challenge: Challenge) -> Terms:
        return parse_terms(challenge, self.version)

    def scope(self, terms: Terms, *, payer: str, voucher_signer: str, origin: str) -> PaymentScope:
        return PaymentScope(
            family=FAMILY,
            version=self.version,
            chain=terms.chain,
            escrow=terms.escrow,
            token=terms.token,
            payee=terms.payee,
            payer=parse_address(payer, "payer"),
            voucher_signer=parse_address(voucher_signer, "voucher signer"),
            discriminator=terms.discriminator,
            origin=origin,
        )

    def voucher_digest(self, channel: Channel, amount: int) -> bytes:
        """The 32 bytes to sign for a cumulative `amount`. Raises ``ValueError`` outside the integer type."""
        return self.codec.digest_for(channel, amount)

    # -- transactions

    def plan_open(
        self,
        scope: PaymentScope,
        *,
        deposit: int,
        salt: bytes,
        head: ChainHead,
        fee_payer: bool,
        signer: TransactionSigner,
    ) -> OpenPlan:
        """A signed opening that can land until `valid_before`, in the chain's own time.

        Nothing is sent and nothing durable yet: whoever has the bytes can open the channel, so they are on
        record before they leave. Raises ``ValueError`` for a deposit or salt that does not fit, and whatever
        the signer raises when it refuses.
        """
        if not 0 < deposit <= self.codec.limit:
            raise ValueError(f"a deposit of {deposit} is not between 1 and {self.codec.limit}")
        if len(salt) != 32:
            raise ValueError(f"a salt has 32 bytes, not {len(salt)}")
        calls = self.open_calls(scope, deposit, to_hex(salt))
        transaction = transaction_of(scope, calls, head=head, gas=self.gas.open, fee_payer=fee_payer)
        descriptor = self.descriptor(scope, to_hex(salt), transaction)
        plan = plan_of(transaction, signer)
        return OpenPlan(
            channel_id=self.channel_id(scope, descriptor),
            descriptor=descriptor,
            transaction=plan.transaction,
            tx_hash=plan.tx_hash,
            valid_before=plan.valid_before,
            max_fee=plan.max_fee,
        )

    def plan_top_up(
        self, channel: Channel, *, amount: int, head: ChainHead, fee_payer: bool, signer: TransactionSigner
    ) -> TransactionPlan:
        """A signed top-up by `amount`; as with an opening, on record before it leaves.

        Raises ``ValueError`` if the deposit would not fit, and whatever the signer raises when it refuses.
        """
        if not 0 < amount <= self.codec.limit - channel.deposit:
            raise ValueError(
                f"a top-up of {amount} does not take a deposit of {channel.deposit} to"
                f" {self.codec.limit} at most"
            )
        transaction = transaction_of(
            channel.scope,
            self.top_up_calls(channel, amount),
            head=head,
            gas=self.gas.top_up,
            fee_payer=fee_payer,
            variant=variant_of(channel),
        )
        return plan_of(transaction, signer)

    def plan_request_close(
        self, channel: Channel, head: ChainHead, signer: TransactionSigner
    ) -> TransactionPlan:
        """Starts a forced close. It takes nothing from anybody; a second one changes nothing."""
        return self._own(channel, self.request_close_call(channel), head, signer, self.gas.request_close)

    def plan_withdraw(self, channel: Channel, head: ChainHead, signer: TransactionSigner) -> TransactionPlan:
        """Ends a forced close once its grace is over; before that the escrow reverts it, for a fee."""
        return self._own(channel, self.withdraw_call(channel), head, signer, self.gas.withdraw)

    @staticmethod
    def _own(
        channel: Channel, call: Call, head: ChainHead, signer: TransactionSigner, gas: int
    ) -> TransactionPlan:
        """At the payer's own cost: nobody else has an interest in it."""
        transaction = transaction_of(channel.scope, (call,), head=head, gas=gas, variant=variant_of(channel))
        return plan_of(transaction, signer)

    def forced_fees(self, head: ChainHead, *, requested: bool) -> ForcedFees:
        """See `contract.Method.forced_fees`."""
        price, most_price = head.base_fee + PRIORITY_FEE, max_fee_for(head.base_fee)
        limits = [self.gas.withdraw] if requested else [self.gas.request_close, self.gas.withdraw]
        usual = (
            [self.usual_gas.withdraw]
            if requested
            else [self.usual_gas.request_close, self.usual_gas.withdraw]
        )
        return ForcedFees(
            usual=sum(fee_in_base_units(gas, price) for gas in usual),
            most=sum(fee_in_base_units(gas, most_price) for gas in limits),
            most_at_once=max(fee_in_base_units(gas, most_price) for gas in limits),
        )

    # -- payloads

    def open_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
        """Raises ``ValueError`` if the record has no opening on its way."""
        if channel.pending is None or channel.pending.kind != "open":
            raise ValueError(f"channel {channel.channel_id} has no opening transaction on record")
        return {
            "action": "open",
            "type": "transaction",
            **self.identity(channel),
            "transaction": channel.pending.raw,
            "signature": to_hex(signature),
            "cumulativeAmount": str(amount),
            "authorizedSigner": channel.descriptor["authorizedSigner"],
        }

    def top_up_payload(self, channel: Channel, *, amount: int, transaction: str) -> dict[str, Any]:
        return {
            "action": "topUp",
            "type": "transaction",
            **self.identity(channel),
            "transaction": transaction,
            "additionalDeposit": str(amount),
        }

    def voucher_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
        return self._voucher("voucher", channel, amount, signature)

    def close_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
        return self._voucher("close", channel, amount, signature)

    def _voucher(self, action: str, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
        return {
            "action": action,
            **self.identity(channel),
            "cumulativeAmount": str(amount),
            "signature": to_hex(signature),
        }

    # -- the chain

    async def read_channel(self, chain: ChainReader, channel: Channel) -> ChainState:
        """The channel's state in one block, the newest that is firm. Raises `ChainUnavailable`.

        `exists` is false before the opening and after the end, whether the escrow forgets or remembers it.
        """
        head = await chain.firm_head()
        data = await chain.firm_call(channel.scope.escrow, self.encode_get_state(channel), head)
        try:
            state = self.parse_state(channel, data)
        except ValueError as error:
            raise ChainUnavailable(
                f"{channel.scope.chain} answered nonsense for channel {channel.channel_id} at {channel.scope.escrow}:"
                f" {error}; is that escrow on this chain, and the RPC endpoint the right one?"
            ) from error
        return ChainState(
            exists=state.exists,
            deposit=state.deposit,
            settled=state.settled,
            close_requested_at=state.close_requested_at or None,
            block=head,
        )

    async def read_closing(self, chain: LogReader, channel: Channel, head: ChainHead) -> Closing | None:
        """How a channel ended, from its last event, the newest blocks first, as far back as to its opening.

        None if no event tells. Raises `ChainUnavailable`, also for an event that contradicts the deposit on record.
        """
        topics = (self.closed_topic, channel.channel_id)
        first = block_before(head, channel.opened_at // 1000)
        async for _, logs in newest_first(chain, channel.scope.escrow, topics, first=first, last=head.number):
            if logs:
                return self._closing(channel, logs[-1])
        return None

    def opened_topics(self, payer: str) -> tuple[str | None, ...]:
        """See `contract.Method.opened_topics`."""
        return (self.opened_topic, None, payer_topic(payer))

    def parse_opened(self, log: EventLog, *, chain: str, origin: str) -> FoundChannel:
        """See `contract.Method.parse_opened`. An event whose parts do not make up its channel's id is none."""
        event = self.parse_opened_event(log)
        descriptor = event.descriptor
        signer = descriptor["authorizedSigner"]
        scope = PaymentScope(
            family=FAMILY,
            version=self.version,
            chain=chain,
            escrow=log.address,
            token=descriptor["token"],
            payee=descriptor["payee"],
            payer=descriptor["payer"],
            voucher_signer=descriptor["payer"] if signer == ZERO_ADDRESS else signer,
            discriminator=descriptor.get("operator", ""),
            origin=origin,
        )
        if self.channel_id(scope, descriptor) != event.channel_id:
            raise ValueError(f"the event of {event.channel_id} names another channel's parts")
        return FoundChannel(event.channel_id, scope, descriptor, log.tx_hash, log.block_number)

    def _closing(self, channel: Channel, log: EventLog) -> Closing:
        try:
            event = parse_closed(log.data, self.codec.amount_bits)
            total = event.captured + event.refunded
            # A top-up that we never heard of may have added to the deposit.
            if not channel.deposit <= total <= self.codec.limit:
                raise ValueError(f"it divides {total}, the deposit is {channel.deposit}")
        except ValueError as error:
            raise ChainUnavailable(
                f"{channel.scope.chain} shows a nonsensical end of channel {channel.channel_id} in {log.tx_hash}:"
                f" {error}"
            ) from error
        return Closing(captured=event.captured, refunded=event.refunded, tx_hash=log.tx_hash)
