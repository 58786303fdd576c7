"""What the network has charged us for a channel's transactions, by the chain."""

from __future__ import annotations

from dataclasses import replace

from proxy_addon.audit import amount_fields
from proxy_addon.chain import fee_of
from proxy_addon.payer.parts import Parts
from proxy_addon.payer.till import Till


async def book_fees(parts: Parts, till: Till) -> None:
    """What our transactions for this channel have cost, as far as nobody has written it down yet.

    A process that dies, or a chain that does not answer, between a transaction and its receipt leaves a fee out.
    The lines come before the record: after a crash between, a line may be there twice, and counts once by its hash.
    Which fees are missing the record does not say: where no single one explains the difference, each has a line.
    A sponsor's fee is none of ours. Raises `ChainUnavailable`, `StoreError`.
    """
    channel, chain = till.channel, parts.chain(till.channel.scope.chain)
    receipts = [await chain.receipt(tx_hash) for tx_hash in channel.transactions]
    fees = [
        (receipt.tx_hash, fee_of(receipt))
        for receipt in receipts
        if receipt is not None and receipt.fee_payer in (None, channel.scope.payer)
    ]
    total = sum(fee for _, fee in fees)
    more = total - channel.fees
    if more <= 0:  # the chain forgets old receipts
        return
    token = parts.token(channel.scope.chain, channel.scope.token)
    alike = [one for one in fees if one[1] == more]
    for tx_hash, fee in alike if len(alike) == 1 else fees:
        parts.audit.note(
            "fee",
            f"network fee of {token.show(fee)} for channel {channel.channel_id} of {channel.scope.host}",
            channel_id=channel.channel_id,
            host=channel.scope.host,
            tx=tx_hash,
            fee=str(fee),
            fields=amount_fields(token, fee),
        )
    await till.commit(change=lambda record: replace(record, fees=total))
