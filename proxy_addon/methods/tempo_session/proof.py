"""What a server's snapshot of a channel proves. All of it is a claim, but for our own signature in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.registry import method_of
from proxy_addon.methods.tempo_tx import recover
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.core.snapshot import SessionSnapshot


def proves(channel: Channel, snapshot: SessionSnapshot) -> int | None:
    """The cumulative amount of our own voucher that the server shows: it has that one, and can cash it.

    It counts only if the signature is that of the channel's voucher signer, over exactly this channel on this chain
    and escrow, in the one form that we sign in (low s); the channel's id is made anew from both descriptors.
    None for everything else, whatever it looks like: nothing in it is then more than a claim.

    The amount can be more than ``channel.authorised``: then the record is older than our signature (an old copy was
    put back, or another machine pays from the same channel), and nothing may be signed until that is settled.
    """
    voucher, scope = snapshot.highest_voucher, channel.scope
    if voucher is None:
        return None
    told = (snapshot.channel_id, voucher.channel_id, snapshot.chain_id, snapshot.escrow)
    if told != (channel.channel_id, channel.channel_id, scope.chain_id, scope.escrow):
        return None
    if not (_names(channel, channel.descriptor) and _names(channel, snapshot.descriptor)):
        return None
    try:
        digest = method_of(scope.family, scope.version).voucher_digest(channel, voucher.cumulative_amount)
        signer = recover(digest, to_bytes(voucher.signature))
        ours = signer == to_bytes(scope.voucher_signer)
    except ValueError:
        return None
    return voucher.cumulative_amount if ours and voucher.cumulative_amount > 0 else None


def _names(channel: Channel, descriptor: Mapping[str, str]) -> bool:
    try:
        method = method_of(channel.scope.family, channel.scope.version)
        return method.channel_id(channel.scope, descriptor) == channel.channel_id
    except (KeyError, ValueError):  # an unknown family; a descriptor that is none of this scope
        return False
