"""Tempo session v2: channels of the TIP-1034 reserve precompile.

Bytes only: channel ids, voucher digests, payloads, the opening transaction. `payer` decides and pays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import parse_address, to_bytes, to_hex
from proxy_addon.methods.contract import (
    ChainHead,
    ChainReader,
    ChainState,
    Closing,
    EventLog,
    LogReader,
    OpenPlan,
    TransactionPlan,
    TransactionSigner,
)
from proxy_addon.methods.tempo_session.calls import (
    CHANNEL_CLOSED,
    OpenCall,
    channel_id,
    encode_get_state,
    encode_request_close,
    encode_top_up,
    encode_withdraw,
    parse_closed,
    parse_descriptor,
    parse_state,
)
from proxy_addon.methods.tempo_session.guards import own_signer
from proxy_addon.methods.tempo_session.terms import parse_terms
from proxy_addon.methods.tempo_session.transactions import plan_of, transaction_of, variant_of
from proxy_addon.methods.tempo_session.voucher import FAMILY, V2
from proxy_addon.methods.tempo_tx import Call
from store.amounts import UINT96_MAX
from store.records import Channel, PaymentScope

if TYPE_CHECKING:
    from proxy_addon.core.messages import Challenge
    from proxy_addon.core.terms import Terms

VERSION: Final = "v2"
RESERVE: Final = "0x4d50500000000000000000000000000000000000"
OPEN_GAS: Final = 1_000_000
"""Measured: 312k; a token's first channel writes one slot more (250k, TIP-1000). Only what is used is charged.
mppx's sponsors refuse more than 2M gas, or 0.05 dollars at the maximum fee: more would not be safer."""
TOP_UP_GAS: Final = 500_000
REQUEST_CLOSE_GAS: Final = 200_000
WITHDRAW_GAS: Final = 400_000
"""No more than is safe: a wallet must have the gas limit at the maximum fee, even to take its own money back."""

LOG_BLOCKS: Final = 10_000  # what endpoints allow at least for one look at the logs
LOG_LOOKS: Final = 50


class TempoSessionV2:
    """`contract.Method` for ``tempo``/``session`` challenges with ``sessionProtocol: "v2"``."""

    family: str = FAMILY
    version: str = VERSION
    escrows: Mapping[str, str] = {"*": RESERVE}

    def terms(self, challenge: Challenge) -> Terms:
        return parse_terms(challenge, VERSION)

    def scope(self, terms: Terms, *, payer: str, voucher_signer: str, origin: str) -> PaymentScope:
        return PaymentScope(
            family=FAMILY,
            version=VERSION,
            chain=terms.chain,
            escrow=terms.escrow,
            token=terms.token,
            payee=terms.payee,
            payer=parse_address(payer, "payer"),
            voucher_signer=parse_address(voucher_signer, "voucher signer"),
            discriminator=terms.discriminator,
            origin=origin,
        )

    def channel_id(self, scope: PaymentScope, descriptor: Mapping[str, str]) -> str:
        """Recomputed from the descriptor: an id is never taken from a peer.

        Raises ``ValueError`` if the descriptor is malformed or belongs to another scope.
        """
        parsed = parse_descriptor(descriptor)
        expected = _descriptor(scope, salt=parsed["salt"], nonce_hash=parsed["expiringNonceHash"])
        for name, value in expected.items():
            # A zero signer and the payer's own address mean the same to the reserve, and give different ids.
            own_signer = name == "authorizedSigner" and parsed[name] == scope.voucher_signer
            if parsed[name] != value and not own_signer:
                raise ValueError(f"descriptor.{name} is {parsed[name]}: this scope has {value}")
        return channel_id(parsed, escrow=scope.escrow, chain_id=scope.chain_id)

    def voucher_digest(self, channel: Channel, amount: int) -> bytes:
        """The 32 bytes to sign for a cumulative `amount`. Raises ``ValueError`` outside uint96."""
        return V2.digest_for(channel, amount)

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
        if not 0 < deposit <= UINT96_MAX:
            raise ValueError(f"a deposit of {deposit} is not between 1 and {UINT96_MAX}")
        if len(salt) != 32:
            raise ValueError(f"a salt has 32 bytes, not {len(salt)}")
        opening = OpenCall(
            payee=scope.payee,
            operator=scope.discriminator,
            token=scope.token,
            deposit=deposit,
            salt=to_hex(salt),
            authorized_signer=own_signer(scope),
        )
        call = Call(to_bytes(scope.escrow), opening.encode())
        transaction = transaction_of(scope, (call,), head=head, gas=OPEN_GAS, fee_payer=fee_payer)
        nonce_hash = to_hex(transaction.expiring_nonce_hash(to_bytes(scope.payer)))
        descriptor = _descriptor(scope, salt=opening.salt, nonce_hash=nonce_hash)
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
        if not 0 < amount <= UINT96_MAX - channel.deposit:
            raise ValueError(
                f"a top-up of {amount} does not take a deposit of {channel.deposit} to {UINT96_MAX} at most"
            )
        data = encode_top_up(channel.descriptor, amount)
        return _plan(channel, data, head, signer, gas=TOP_UP_GAS, fee_payer=fee_payer)

    def top_up_payload(self, channel: Channel, *, amount: int, transaction: str) -> dict[str, Any]:
        return {
            "action": "topUp",
            "type": "transaction",
            "channelId": channel.channel_id,
            "transaction": transaction,
            "descriptor": dict(channel.descriptor),
            "additionalDeposit": str(amount),
        }

    def plan_request_close(
        self, channel: Channel, head: ChainHead, signer: TransactionSigner
    ) -> TransactionPlan:
        """Starts a forced close. It takes nothing from anybody; a second one changes nothing."""
        return _plan(channel, encode_request_close(channel.descriptor), head, signer, gas=REQUEST_CLOSE_GAS)

    def plan_withdraw(self, channel: Channel, head: ChainHead, signer: TransactionSigner) -> TransactionPlan:
        """Ends a forced close once its grace is over; before that the reserve reverts it, for a fee."""
        return _plan(channel, encode_withdraw(channel.descriptor), head, signer, gas=WITHDRAW_GAS)

    def open_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
        """Raises ``ValueError`` if the record has no opening on its way."""
        if channel.pending is None or channel.pending.kind != "open":
            raise ValueError(f"channel {channel.channel_id} has no opening transaction on record")
        return {
            "action": "open",
            "type": "transaction",
            "channelId": channel.channel_id,
            "transaction": channel.pending.raw,
            "signature": to_hex(signature),
            "descriptor": dict(channel.descriptor),
            "cumulativeAmount": str(amount),
            "authorizedSigner": channel.descriptor["authorizedSigner"],
        }

    def voucher_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
        return _voucher("voucher", channel, amount, signature)

    def close_payload(self, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
        return _voucher("close", channel, amount, signature)

    async def read_channel(self, chain: ChainReader, channel: Channel) -> ChainState:
        """The channel's state in one block, the head of the moment. Raises `ChainUnavailable`.

        The reserve forgets a channel that is closed: `exists` is false before the opening and after the end.
        """
        head = await chain.head()
        data = await chain.call(
            channel.scope.escrow, encode_get_state(channel.channel_id), block=hex(head.number)
        )
        try:
            state = parse_state(data)
        except ValueError as error:
            raise ChainUnavailable(
                f"{channel.scope.chain} answered nonsense for channel {channel.channel_id} at {channel.scope.escrow}:"
                f" {error}; is that escrow on this chain, and the RPC endpoint the right one?"
            ) from error
        return ChainState(
            exists=state.deposit > 0,
            deposit=state.deposit,
            settled=state.settled,
            close_requested_at=state.close_requested_at or None,
            block=head,
        )

    async def read_closing(self, chain: LogReader, channel: Channel, head: ChainHead) -> Closing | None:
        """How a channel ended that the reserve has forgotten, from its last event, the newest blocks first.

        None if no event of the last 500,000 blocks tells. Raises `ChainUnavailable`, also for an event that
        contradicts the deposit on record.
        """
        escrow, topics = channel.scope.escrow, (CHANNEL_CLOSED, channel.channel_id)
        last = head.number
        for _ in range(LOG_LOOKS):
            first = max(0, last - LOG_BLOCKS + 1)
            logs = await chain.logs(escrow, topics, from_block=first, to_block=last)
            if logs:
                return _closing(channel, logs[-1])
            if first == 0:
                break
            last = first - 1
        return None


def _plan(
    channel: Channel,
    data: bytes,
    head: ChainHead,
    signer: TransactionSigner,
    *,
    gas: int,
    fee_payer: bool = False,
) -> TransactionPlan:
    transaction = transaction_of(
        channel.scope,
        (Call(to_bytes(channel.scope.escrow), data),),
        head=head,
        gas=gas,
        fee_payer=fee_payer,
        variant=variant_of(channel),
    )
    return plan_of(transaction, signer)


def _closing(channel: Channel, log: EventLog) -> Closing:
    try:
        event = parse_closed(log.data)
        total = event.captured + event.refunded
        if not channel.deposit <= total <= UINT96_MAX:  # a top-up that we never heard of may have added to it
            raise ValueError(f"it divides {total}, the deposit is {channel.deposit}")
    except ValueError as error:
        raise ChainUnavailable(
            f"{channel.scope.chain} shows a nonsensical end of channel {channel.channel_id} in {log.tx_hash}: {error}"
        ) from error
    return Closing(captured=event.captured, refunded=event.refunded, tx_hash=log.tx_hash)


def _descriptor(scope: PaymentScope, *, salt: str, nonce_hash: str) -> dict[str, str]:
    return {
        "payer": scope.payer,
        "payee": scope.payee,
        "operator": scope.discriminator,
        "token": scope.token,
        "salt": salt,
        "authorizedSigner": own_signer(scope),
        "expiringNonceHash": nonce_hash,
    }


def _voucher(action: str, channel: Channel, amount: int, signature: bytes) -> dict[str, Any]:
    return {
        "action": action,
        "channelId": channel.channel_id,
        "descriptor": dict(channel.descriptor),
        "cumulativeAmount": str(amount),
        "signature": to_hex(signature),
    }
