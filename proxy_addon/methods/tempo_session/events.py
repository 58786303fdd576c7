"""The first and the last event of a channel. The last has the same form for the escrows of all versions.

The first carries everything that makes up the channel's id, the salt too: who has lost all records and still has
the payer's address finds the channels, and can name them in a call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy_addon.methods.abi import keccak256, read_address, read_uint, to_hex, words
from proxy_addon.methods.contract import EventLog


@dataclass(frozen=True, slots=True)
class ClosedEvent:
    """What ``ChannelClosed`` says, of a close and of a withdrawal. The two add up to the deposit."""

    captured: int  # what the payee got over the channel's whole life, not with this transaction alone
    refunded: int


def closed_topic(bits: int) -> str:
    """The first topic of ``ChannelClosed``, where amounts are unsigned integers of so many bits."""
    return _topic(f"ChannelClosed(bytes32,address,address,uint{bits},uint{bits})")


def parse_closed(data: bytes, bits: int) -> ClosedEvent:
    """The data of a ``ChannelClosed`` event whose amounts fit so many bits. Raises ``ValueError``."""
    captured, refunded = words(data, 2, "ChannelClosed")
    return ClosedEvent(
        captured=read_uint(captured, bits, "settledToPayee"),
        refunded=read_uint(refunded, bits, "refundedToPayer"),
    )


@dataclass(frozen=True, slots=True)
class OpenedEvent:
    """What ``ChannelOpened`` says. `descriptor` has the fields that go on the wire, all but those of its version."""

    channel_id: str
    descriptor: Mapping[str, str]
    deposit: int


def payer_topic(payer: str) -> str:
    """How an event names the payer that it is about: its third topic."""
    return "0x" + payer.removeprefix("0x").lower().rjust(64, "0")


V1_OPENED = "ChannelOpened(bytes32,address,address,address,address,bytes32,uint256)"
V2_OPENED = "ChannelOpened(bytes32,address,address,address,address,address,bytes32,bytes32,uint96)"


def opened_topic(signature: str) -> str:
    return _topic(signature)


def parse_v1_opened(log: EventLog) -> OpenedEvent:
    """Raises ``ValueError``, also for padded values: no escrow has written those."""
    channel_id, payer, payee = _parties(log)
    token, signer, salt, deposit = words(log.data, 4, "ChannelOpened")
    descriptor = {
        "payer": payer,
        "payee": payee,
        "token": read_address(token, "token"),
        "salt": to_hex(salt),
        "authorizedSigner": read_address(signer, "authorizedSigner"),
    }
    return OpenedEvent(channel_id, descriptor, read_uint(deposit, 128, "deposit"))


def parse_v2_opened(log: EventLog) -> OpenedEvent:
    """Raises ``ValueError``, also for padded values: no reserve has written those."""
    channel_id, payer, payee = _parties(log)
    operator, token, signer, salt, nonce_hash, deposit = words(log.data, 6, "ChannelOpened")
    descriptor = {
        "payer": payer,
        "payee": payee,
        "operator": read_address(operator, "operator"),
        "token": read_address(token, "token"),
        "salt": to_hex(salt),
        "authorizedSigner": read_address(signer, "authorizedSigner"),
        "expiringNonceHash": to_hex(nonce_hash),
    }
    return OpenedEvent(channel_id, descriptor, read_uint(deposit, 96, "deposit"))


def _parties(log: EventLog) -> tuple[str, str, str]:
    """The channel's id, the payer and the payee, which are topics."""
    if len(log.topics) != 4:
        raise ValueError(f"ChannelOpened has {len(log.topics)} topics: expected 4")
    _, channel_id, payer, payee = log.topics
    return channel_id, _address(payer, "payer"), _address(payee, "payee")


def _address(topic: str, what: str) -> str:
    return read_address(bytes.fromhex(topic[2:]), what)


def _topic(signature: str) -> str:
    return to_hex(keccak256(signature.encode()))
