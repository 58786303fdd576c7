"""Vouchers of every Tempo session version: EIP-712 typed data over a channel id and a cumulative amount.

The versions differ in the domain's name and the width of the amount, and in nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from proxy_addon.methods.abi import ZERO_ADDRESS, address_word, keccak256, to_bytes, uint_word
from store.records import Channel, PaymentScope

_DOMAIN_TYPE: Final = keccak256(
    b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
_DOMAIN_VERSION: Final = keccak256(b"1")


@lru_cache(maxsize=256)
def domain_separator(name: str, chain_id: int, escrow: str) -> bytes:
    return keccak256(
        _DOMAIN_TYPE + keccak256(name.encode()) + _DOMAIN_VERSION + uint_word(chain_id) + address_word(escrow)
    )


@dataclass(frozen=True, slots=True)
class VoucherCodec:
    """One version's voucher: the name in its signing domain and the bits of its amount."""

    domain_name: str
    amount_bits: int
    type_hash: bytes

    @property
    def limit(self) -> int:
        return (1 << self.amount_bits) - 1

    def digest(self, *, chain_id: int, escrow: str, channel_id: str, amount: int) -> bytes:
        """The 32 bytes to sign. Raises ``ValueError`` for an amount outside the integer type."""
        struct = keccak256(self.type_hash + to_bytes(channel_id) + uint_word(amount, self.amount_bits))
        return keccak256(b"\x19\x01" + domain_separator(self.domain_name, chain_id, escrow) + struct)

    def digest_for(self, channel: Channel, amount: int) -> bytes:
        """`digest` with everything but the amount taken from the channel's record."""
        scope = channel.scope
        return self.digest(
            chain_id=scope.chain_id, escrow=scope.escrow, channel_id=channel.channel_id, amount=amount
        )


def _codec(domain_name: str, amount_bits: int) -> VoucherCodec:
    type_hash = keccak256(f"Voucher(bytes32 channelId,uint{amount_bits} cumulativeAmount)".encode())
    return VoucherCodec(domain_name, amount_bits, type_hash)


def authorized_signer(scope: PaymentScope) -> str:
    """``authorizedSigner`` of an opening: the zero address, where the payer signs the vouchers itself."""
    return ZERO_ADDRESS if scope.voucher_signer == scope.payer else scope.voucher_signer


V1: Final = _codec("Tempo Stream Channel", 128)
V2: Final = _codec("TIP20 Channel Reserve", 96)

FAMILY: Final = "tempo-session"
CODECS: Final[Mapping[tuple[str, str], VoucherCodec]] = {(FAMILY, "v1"): V1, (FAMILY, "v2"): V2}
"""By family and version of a channel's scope: what the signer knows how to sign."""
