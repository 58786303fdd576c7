"""Transactions of channels: what all of them have in common, whatever they do.

An expiring transaction is told from another by its bytes alone: two of the same content are one, and the chain
takes it once. `variant` makes a difference where two of the same content can be meant.
"""

from __future__ import annotations

from typing import Final

from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.contract import ChainHead, TransactionPlan, TransactionSigner
from proxy_addon.methods.tempo_tx import (
    PRIORITY_FEE,
    VALIDITY_S,
    Call,
    TempoTransaction,
    fee_in_base_units,
    max_fee_for,
)
from store.records import Channel, PaymentScope

SPONSOR_LIMIT: Final = 5 * 10**16
"""Attodollars: mppx's sponsors refuse what could cost them more than 0.05 dollars."""

_VARIANTS: Final = 4096  # as much gas more at most: of no weight in the fee


def transaction_of(
    scope: PaymentScope,
    calls: tuple[Call, ...],
    *,
    head: ChainHead,
    gas: int,
    fee_payer: bool = False,
    variant: int = 0,
) -> TempoTransaction:
    """What the payer signs: valid from `head` on for some seconds, its fee in the channel's own token."""
    gas_limit = gas + variant % _VARIANTS
    price = max_fee_for(head.base_fee)
    if fee_payer:
        price = max(min(price, SPONSOR_LIMIT // gas_limit), head.base_fee + PRIORITY_FEE)
    return TempoTransaction(
        chain_id=scope.chain_id,
        gas_limit=gas_limit,
        max_fee_per_gas=price,
        max_priority_fee_per_gas=PRIORITY_FEE,
        calls=calls,
        valid_before=head.timestamp + VALIDITY_S,
        fee_token=None if fee_payer else to_bytes(scope.token),
        sponsored=fee_payer,
    )


def plan_of(transaction: TempoTransaction, signer: TransactionSigner) -> TransactionPlan:
    """`transaction`, signed. Raises whatever the signer raises when it refuses."""
    signature = signer.sign_transaction(transaction.encode_for_signing())
    assert transaction.valid_before is not None
    return TransactionPlan(
        transaction=to_hex(transaction.encode_signed(signature)),
        tx_hash=to_hex(transaction.tx_hash(signature)),
        valid_before=transaction.valid_before,
        max_fee=max_fee_of(transaction),
    )


def max_fee_of(transaction: TempoTransaction) -> int:
    """The most that the network may charge the payer, in the fee token's base units; 0 if another one pays."""
    if transaction.sponsored:
        return 0
    return fee_in_base_units(transaction.gas_limit, transaction.max_fee_per_gas)


def variant_of(channel: Channel) -> int:
    """Another one for each transaction that the channel has had."""
    return len(channel.transactions)
