"""Calls of the contract escrow of session v1, and what its getter says.

An ordinary contract: it takes what the payer has approved, and remembers a channel that is closed. A channel is
named by its id alone; the five fields that make it up are on record as its descriptor, and do not go on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy_addon.methods.abi import (
    ZERO_ADDRESS,
    address_word,
    bytes32_word,
    keccak256,
    parse_address,
    parse_bytes32,
    read_address,
    read_uint,
    selector,
    to_hex,
    uint_word,
    words,
)

APPROVE: Final = selector("approve(address,uint256)")
OPEN: Final = selector("open(address,address,uint128,bytes32,address)")
TOP_UP: Final = selector("topUp(bytes32,uint256)")
REQUEST_CLOSE: Final = selector("requestClose(bytes32)")
WITHDRAW: Final = selector("withdraw(bytes32)")
GET_CHANNEL: Final = selector("getChannel(bytes32)")

DESCRIPTOR_FIELDS: Final = ("payer", "payee", "token", "salt", "authorizedSigner")
AMOUNT_BITS: Final = 128


def parse_descriptor(value: Mapping[str, object]) -> dict[str, str]:
    """The five fields, normalised. Raises ``ValueError`` naming the field that is missing or malformed."""
    return {
        name: (parse_bytes32 if name == "salt" else parse_address)(value.get(name), f"descriptor.{name}")
        for name in DESCRIPTOR_FIELDS
    }


def channel_id(descriptor: Mapping[str, str], *, escrow: str, chain_id: int) -> str:
    fields = [
        (bytes32_word if name == "salt" else address_word)(descriptor[name]) for name in DESCRIPTOR_FIELDS
    ]
    return to_hex(keccak256(b"".join((*fields, address_word(escrow), uint_word(chain_id)))))


def encode_approve(spender: str, amount: int) -> bytes:
    """The token's call that lets `spender` take `amount`, and no more."""
    return APPROVE + address_word(spender) + uint_word(amount)


def parse_approve(data: bytes) -> tuple[str, int]:
    """Spender and amount. Raises ``ValueError`` for any other call."""
    if data[:4] != APPROVE:
        raise ValueError("not an approve call")
    spender, amount = words(data[4:], 2, "approve's arguments")
    return read_address(spender, "spender"), read_uint(amount, 256, "amount")


@dataclass(frozen=True, slots=True)
class OpenCall:
    """The arguments of ``open``: what a payer puts into the escrow, and for whom."""

    payee: str
    token: str
    deposit: int
    salt: str
    authorized_signer: str

    def encode(self) -> bytes:
        return OPEN + b"".join(
            (
                address_word(self.payee),
                address_word(self.token),
                uint_word(self.deposit, AMOUNT_BITS),
                bytes32_word(self.salt),
                address_word(self.authorized_signer),
            )
        )


def parse_open(data: bytes) -> OpenCall:
    """The arguments of an ``open`` call. Raises ``ValueError`` for any other call, and for padded arguments."""
    if data[:4] != OPEN:
        raise ValueError("not an open call")
    payee, token, deposit, salt, signer = words(data[4:], 5, "open's arguments")
    return OpenCall(
        payee=read_address(payee, "payee"),
        token=read_address(token, "token"),
        deposit=read_uint(deposit, AMOUNT_BITS, "deposit"),
        salt=to_hex(salt),
        authorized_signer=read_address(signer, "authorizedSigner"),
    )


def encode_top_up(channel: str, amount: int) -> bytes:
    """The argument is a uint256 in the deployed contract, whatever the draft's appendix says."""
    return TOP_UP + bytes32_word(channel) + uint_word(amount, AMOUNT_BITS)


def parse_top_up(data: bytes) -> tuple[str, int]:
    """The channel's id and the additional deposit of a ``topUp`` call. Raises ``ValueError`` for any other."""
    if data[:4] != TOP_UP:
        raise ValueError("not a topUp call")
    channel, amount = words(data[4:], 2, "topUp's arguments")
    return to_hex(channel), read_uint(amount, AMOUNT_BITS, "additionalDeposit")


def encode_request_close(channel: str) -> bytes:
    return REQUEST_CLOSE + bytes32_word(channel)


def parse_request_close(data: bytes) -> str:
    """The channel's id of a ``requestClose`` call. Raises ``ValueError`` for any other."""
    if data[:4] != REQUEST_CLOSE:
        raise ValueError("not a requestClose call")
    (channel,) = words(data[4:], 1, "requestClose's argument")
    return to_hex(channel)


def encode_withdraw(channel: str) -> bytes:
    return WITHDRAW + bytes32_word(channel)


def parse_withdraw(data: bytes) -> str:
    """The channel's id of a ``withdraw`` call. Raises ``ValueError`` for any other."""
    if data[:4] != WITHDRAW:
        raise ValueError("not a withdraw call")
    (channel,) = words(data[4:], 1, "withdraw's argument")
    return to_hex(channel)


def encode_get_channel(channel: str) -> bytes:
    return GET_CHANNEL + bytes32_word(channel)


@dataclass(frozen=True, slots=True)
class StoredChannel:
    """What the contract stores of a channel; all zero if there never was one."""

    finalized: bool
    close_requested_at: int  # Unix seconds; 0: none
    payer: str
    payee: str
    token: str
    authorized_signer: str
    deposit: int
    settled: int

    @property
    def is_open(self) -> bool:
        return self.payer != ZERO_ADDRESS and not self.finalized


def parse_channel(data: bytes) -> StoredChannel:
    """Raises ``ValueError`` for what no such contract can have answered."""
    finalized, requested, payer, payee, token, signer, deposit, settled = words(data, 8, "a channel")
    channel = StoredChannel(
        finalized=bool(read_uint(finalized, 1, "finalized")),
        close_requested_at=read_uint(requested, 64, "closeRequestedAt"),
        payer=read_address(payer, "payer"),
        payee=read_address(payee, "payee"),
        token=read_address(token, "token"),
        authorized_signer=read_address(signer, "authorizedSigner"),
        deposit=read_uint(deposit, AMOUNT_BITS, "deposit"),
        settled=read_uint(settled, AMOUNT_BITS, "settled"),
    )
    if channel.settled > channel.deposit:
        raise ValueError(f"settled {channel.settled} is more than the deposit {channel.deposit}")
    return channel
