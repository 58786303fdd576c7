"""Calls of the TIP-1034 channel reserve, and what its getters say.

A descriptor is the mapping that goes on the wire: seven fields, lower-case hex.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from proxy_addon.methods.abi import (
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

_TUPLE: Final = "(address,address,address,address,bytes32,address,bytes32)"
OPEN: Final = selector("open(address,address,address,uint96,bytes32,address)")
TOP_UP: Final = selector(f"topUp({_TUPLE},uint96)")
REQUEST_CLOSE: Final = selector(f"requestClose({_TUPLE})")
WITHDRAW: Final = selector(f"withdraw({_TUPLE})")
GET_STATE: Final = selector("getChannelState(bytes32)")

DESCRIPTOR_FIELDS: Final = (
    "payer",
    "payee",
    "operator",
    "token",
    "salt",
    "authorizedSigner",
    "expiringNonceHash",
)
_BYTES32_FIELDS: Final = frozenset({"salt", "expiringNonceHash"})
AMOUNT_BITS: Final = 96


def parse_descriptor(value: Mapping[str, object]) -> dict[str, str]:
    """The seven fields, normalised. Raises ``ValueError`` naming the field that is missing or malformed."""
    return {
        name: (parse_bytes32 if name in _BYTES32_FIELDS else parse_address)(
            value.get(name), f"descriptor.{name}"
        )
        for name in DESCRIPTOR_FIELDS
    }


def descriptor_words(descriptor: Mapping[str, str]) -> bytes:
    return b"".join(
        (bytes32_word if name in _BYTES32_FIELDS else address_word)(descriptor[name])
        for name in DESCRIPTOR_FIELDS
    )


def channel_id(descriptor: Mapping[str, str], *, escrow: str, chain_id: int) -> str:
    return to_hex(keccak256(descriptor_words(descriptor) + address_word(escrow) + uint_word(chain_id)))


@dataclass(frozen=True, slots=True)
class OpenCall:
    """The arguments of ``open``: what a payer puts into the escrow, and for whom."""

    payee: str
    operator: str
    token: str
    deposit: int
    salt: str
    authorized_signer: str

    def encode(self) -> bytes:
        return OPEN + b"".join(
            (
                address_word(self.payee),
                address_word(self.operator),
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
    payee, operator, token, deposit, salt, signer = words(data[4:], 6, "open's arguments")
    return OpenCall(
        payee=read_address(payee, "payee"),
        operator=read_address(operator, "operator"),
        token=read_address(token, "token"),
        deposit=read_uint(deposit, AMOUNT_BITS, "deposit"),
        salt=to_hex(salt),
        authorized_signer=read_address(signer, "authorizedSigner"),
    )


def encode_top_up(descriptor: Mapping[str, str], amount: int) -> bytes:
    return TOP_UP + descriptor_words(descriptor) + uint_word(amount, AMOUNT_BITS)


def parse_top_up(data: bytes) -> tuple[dict[str, str], int]:
    """The descriptor and the additional deposit of a ``topUp`` call. Raises ``ValueError`` for any other."""
    if data[:4] != TOP_UP:
        raise ValueError("not a topUp call")
    *descriptor, amount = words(data[4:], len(DESCRIPTOR_FIELDS) + 1, "topUp's arguments")
    return _read_descriptor(descriptor), read_uint(amount, AMOUNT_BITS, "additionalDeposit")


def encode_request_close(descriptor: Mapping[str, str]) -> bytes:
    return REQUEST_CLOSE + descriptor_words(descriptor)


def parse_request_close(data: bytes) -> dict[str, str]:
    """The descriptor of a ``requestClose`` call. Raises ``ValueError`` for any other."""
    if data[:4] != REQUEST_CLOSE:
        raise ValueError("not a requestClose call")
    return _read_descriptor(words(data[4:], len(DESCRIPTOR_FIELDS), "requestClose's arguments"))


def encode_withdraw(descriptor: Mapping[str, str]) -> bytes:
    return WITHDRAW + descriptor_words(descriptor)


def parse_withdraw(data: bytes) -> dict[str, str]:
    """The descriptor of a ``withdraw`` call. Raises ``ValueError`` for any other."""
    if data[:4] != WITHDRAW:
        raise ValueError("not a withdraw call")
    return _read_descriptor(words(data[4:], len(DESCRIPTOR_FIELDS), "withdraw's arguments"))


def _read_descriptor(found: Sequence[bytes]) -> dict[str, str]:
    return {
        name: to_hex(word) if name in _BYTES32_FIELDS else read_address(word, name)
        for name, word in zip(DESCRIPTOR_FIELDS, found, strict=True)
    }


def encode_get_state(channel: str) -> bytes:
    return GET_STATE + bytes32_word(channel)


@dataclass(frozen=True, slots=True)
class ReserveState:
    """What the reserve stores of a channel; all zero if there is none, or none any more."""

    settled: int
    deposit: int
    close_requested_at: int  # Unix seconds; 0: none


def parse_state(data: bytes) -> ReserveState:
    """Raises ``ValueError`` for what no reserve can have answered."""
    settled_word, deposit_word, requested_word = words(data, 3, "a channel's state")
    settled = read_uint(settled_word, AMOUNT_BITS, "settled")
    deposit = read_uint(deposit_word, AMOUNT_BITS, "deposit")
    requested = read_uint(requested_word, 32, "closeRequestedAt")
    if settled > deposit:
        raise ValueError(f"settled {settled} is more than the deposit {deposit}")
    return ReserveState(settled, deposit, requested)
