"""The last event of a channel, which the escrows of all versions write in the same form."""

from __future__ import annotations

from dataclasses import dataclass

from proxy_addon.methods.abi import keccak256, read_uint, to_hex, words


@dataclass(frozen=True, slots=True)
class ClosedEvent:
    """What ``ChannelClosed`` says, of a close and of a withdrawal. The two add up to the deposit."""

    captured: int  # what the payee got over the channel's whole life, not with this transaction alone
    refunded: int


def closed_topic(bits: int) -> str:
    """The first topic of ``ChannelClosed``, where amounts are unsigned integers of so many bits."""
    return to_hex(keccak256(f"ChannelClosed(bytes32,address,address,uint{bits},uint{bits})".encode()))


def parse_closed(data: bytes, bits: int) -> ClosedEvent:
    """The data of a ``ChannelClosed`` event whose amounts fit so many bits. Raises ``ValueError``."""
    captured, refunded = words(data, 2, "ChannelClosed")
    return ClosedEvent(
        captured=read_uint(captured, bits, "settledToPayee"),
        refunded=read_uint(refunded, bits, "refundedToPayer"),
    )
