"""Tempo transactions (type 0x76): build, sign, hash, read back.

Only what a payer needs: calls without access lists, authorisation lists or key authorisations, signed by one
secp256k1 key, with an expiring nonce (TIP-1009), paid by the sender or by a sponsor.

With a sponsor the sender signs a placeholder (one zero byte) for the sponsor's signature and an empty fee
token, and does so whatever the sponsor fills in later: the signed bytes, and with them the channel's id, stay
the same. The transaction's hash does not: who opens a sponsored channel finds it by its id, never by hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from coincurve import PublicKey

from proxy_addon.methods.abi import keccak256

TRANSACTION_TYPE: Final = 0x76
SPONSOR_TYPE: Final = 0x78  # first byte of what a sponsor signs
EXPIRING_NONCE_KEY: Final = 2**256 - 1
VALIDITY_S: Final = 25
"""How long an expiring transaction stays valid, counted from the head's own time: nodes accept one of more than
30 seconds and then never mine it, and some blocks pass between our read and the broadcast."""

PRIORITY_FEE: Final = 1_000_000_000  # attodollars per gas, on top of the base fee
SECP256K1_ORDER: Final = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_PLACEHOLDER: Final = b"\x00"
_ATTO_PER_BASE_UNIT: Final = 10**12  # fees are counted in 1e-18 dollars, fee tokens have 6 decimals

_Item: TypeAlias = "bytes | list[_Item]"


def fee_in_base_units(gas: int, price: int) -> int:
    """What `gas` costs at `price` attodollars, in a fee token's base units (6 decimals), rounded up."""
    return -(-gas * price // _ATTO_PER_BASE_UNIT)


def max_fee_for(base_fee: int) -> int:
    """A price per gas that outlives some rise of the base fee; only what a block asks is charged."""
    return 2 * base_fee + PRIORITY_FEE


@dataclass(frozen=True, slots=True)
class Call:
    to: bytes  # 20 bytes
    data: bytes = b""
    value: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TempoTransaction:
    """What the sender signs. Prices are attodollars (1e-18) per gas, times Unix seconds of block time."""

    chain_id: int
    gas_limit: int
    max_fee_per_gas: int
    calls: tuple[Call, ...]
    max_priority_fee_per_gas: int = PRIORITY_FEE
    nonce_key: int = EXPIRING_NONCE_KEY
    nonce: int = 0
    valid_before: int | None = None
    valid_after: int | None = None
    fee_token: bytes | None = None
    sponsored: bool = False

    def __post_init__(self) -> None:
        if self.chain_id <= 0 or self.gas_limit <= 0 or not self.calls:
            raise ValueError("a transaction needs a chain, a gas limit and at least one call")
        if not 0 <= self.max_priority_fee_per_gas <= self.max_fee_per_gas:
            raise ValueError("a priority fee lies between zero and the maximum fee")
        if any(len(call.to) != 20 for call in self.calls):
            raise ValueError("a call's target has 20 bytes")
        if self.fee_token is not None and len(self.fee_token) != 20:
            raise ValueError("a fee token's address has 20 bytes")
        if self.valid_before == 0 or self.valid_after == 0:
            raise ValueError("a validity bound of 0 is encoded as none at all")
        if self.nonce_key == EXPIRING_NONCE_KEY and (self.nonce != 0 or self.valid_before is None):
            raise ValueError("an expiring transaction has nonce 0 and says until when it is valid")

    def encode_for_signing(self) -> bytes:
        """The exact bytes whose keccak-256 the sender signs."""
        return _encode(self._fields(b"" if self.sponsored else self.fee_token or b"", self._marker))

    def signing_hash(self) -> bytes:
        return keccak256(self.encode_for_signing())

    def encode_signed(self, signature: bytes) -> bytes:
        """What is sent: to the chain as it is, or to the sponsor who completes it.

        A sponsored one carries the placeholder and no fee token, whatever `fee_token` says.
        """
        _check_signature(signature)
        fee_token = b"" if self.sponsored else self.fee_token or b""
        return _encode([*self._fields(fee_token, self._marker), signature])

    def tx_hash(self, signature: bytes) -> bytes:
        """The hash that the chain knows it by, unless a sponsor adds to it."""
        return keccak256(self.encode_signed(signature))

    def expiring_nonce_hash(self, sender: bytes) -> bytes:
        """What TIP-1034 mixes into the id of a channel that this transaction opens."""
        return keccak256(self.encode_for_signing() + sender)

    @property
    def _marker(self) -> bytes:
        return _PLACEHOLDER if self.sponsored else b""

    def _fields(self, fee_token: bytes, sponsor: _Item) -> list[_Item]:
        return [
            _uint(self.chain_id),
            _uint(self.max_priority_fee_per_gas),
            _uint(self.max_fee_per_gas),
            _uint(self.gas_limit),
            [[call.to, _uint(call.value), call.data] for call in self.calls],
            [],  # access list
            _uint(self.nonce_key),
            _uint(self.nonce),
            _uint(self.valid_before or 0),
            _uint(self.valid_after or 0),
            fee_token,
            sponsor,
            [],  # authorisation list
        ]


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """A transaction that was read back; its sender is who signed it."""

    transaction: TempoTransaction
    signature: bytes
    sender: bytes
    sponsor_signature: bytes | None = None

    @property
    def expiring_nonce_hash(self) -> bytes:
        return self.transaction.expiring_nonce_hash(self.sender)


def decode(raw: bytes) -> SignedTransaction:
    """A signed transaction from its bytes, and who sent it.

    Raises ``ValueError`` for whatever is not exactly one of the kind that this module builds: another type,
    an access list, another kind of key, numbers that are padded, bytes left over.
    """
    fields = _decode_fields(raw)
    if len(fields) != 14:
        raise ValueError(f"a signed transaction has 14 fields, this one {len(fields)}")
    signature = _bytes(fields[13], "signature")
    _check_signature(signature)
    transaction, sponsor_signature = _transaction(fields)
    sender = recover(transaction.signing_hash(), signature)
    return SignedTransaction(transaction, signature, sender, sponsor_signature)


def decode_for_signing(payload: bytes) -> TempoTransaction:
    """The transaction of what `encode_for_signing` wrote. Raises ``ValueError``."""
    fields = _decode_fields(payload)
    if len(fields) != 13:
        raise ValueError(f"a signing payload has 13 fields, this one {len(fields)}")
    transaction, sponsor_signature = _transaction(fields)
    if sponsor_signature is not None or transaction.encode_for_signing() != payload:
        raise ValueError("not what a sender signs")
    return transaction


def recover(digest: bytes, signature: bytes) -> bytes:
    """The address whose key made `signature`. Raises ``ValueError`` if none can have."""
    _check_signature(signature)
    try:
        key = PublicKey.from_signature_and_message(
            signature[:64] + bytes([signature[64] - 27]), digest, hasher=None
        )
    except Exception as error:  # coincurve raises bare exceptions for a point that is not on the curve
        raise ValueError("no key can have made this signature") from error
    return address_of(key)


def address_of(key: PublicKey) -> bytes:
    return keccak256(key.format(compressed=False)[1:])[12:]


def _check_signature(signature: bytes) -> None:
    """65 bytes, v 27 or 28, s in the lower half: servers compare the bytes, contracts refuse a high s."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise ValueError("a signature is r, s and v in 65 bytes, v 27 or 28")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big")
    if not (0 < r < SECP256K1_ORDER and 0 < s <= SECP256K1_ORDER // 2):
        raise ValueError("a signature whose r or s is out of range")


def preload() -> Any:
    """rlp takes a fifth of a second to import, and only openings, top-ups and closes need it."""
    import rlp

    return rlp


def _encode(fields: list[_Item]) -> bytes:
    return bytes([TRANSACTION_TYPE]) + bytes(preload().encode(fields))


def _uint(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def _decode_fields(raw: bytes) -> list[_Item]:
    if not raw or raw[0] != TRANSACTION_TYPE:
        raise ValueError("not a Tempo transaction: its first byte is not 0x76")
    rlp = preload()
    try:
        fields = rlp.decode(raw[1:], strict=True)
    except Exception as error:  # rlp's own errors, and a RecursionError for lists in lists in lists
        raise ValueError("not a Tempo transaction: bad RLP") from error
    if not isinstance(fields, list | tuple):
        raise ValueError("not a Tempo transaction: no list of fields")
    return list(fields)


def _transaction(fields: list[_Item]) -> tuple[TempoTransaction, bytes | None]:
    if _list(fields[5], "access list") or _list(fields[12], "authorisation list"):
        raise ValueError("a transaction with an access list or authorisations is not one of ours")
    fee_token = _bytes(fields[10], "fee token") or None
    sponsor = fields[11]
    return (
        TempoTransaction(
            chain_id=_read_uint(fields[0], "chain id"),
            max_priority_fee_per_gas=_read_uint(fields[1], "priority fee"),
            max_fee_per_gas=_read_uint(fields[2], "maximum fee"),
            gas_limit=_read_uint(fields[3], "gas limit"),
            calls=tuple(_call(item) for item in _list(fields[4], "calls")),
            nonce_key=_read_uint(fields[6], "nonce key"),
            nonce=_read_uint(fields[7], "nonce"),
            valid_before=_read_optional(fields[8], "valid before"),
            valid_after=_read_optional(fields[9], "valid after"),
            fee_token=fee_token,
            sponsored=bool(sponsor),
        ),
        _sponsor_signature(sponsor),
    )


def _sponsor_signature(item: _Item) -> bytes | None:
    if item in (b"", _PLACEHOLDER):
        return None
    parts = _list(item, "sponsor signature")
    if len(parts) != 3:
        raise ValueError("a sponsor's signature has three parts")
    v, r, s = (_read_uint(part, "sponsor signature") for part in parts)
    if v > 1 or r >= SECP256K1_ORDER or s >= SECP256K1_ORDER:
        raise ValueError("a sponsor's signature out of range")
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes([27 + v])
    _check_signature(signature)
    return signature


def _call(item: _Item) -> Call:
    parts = _list(item, "call")
    if len(parts) != 3:
        raise ValueError("a call has three parts")
    to, value, data = parts
    return Call(_bytes(to, "target"), _bytes(data, "call data"), _read_uint(value, "value"))


def _list(item: _Item, what: str) -> list[_Item]:
    if isinstance(item, bytes):
        raise ValueError(f"{what} should be a list")
    return list(item)


def _bytes(item: _Item, what: str) -> bytes:
    if not isinstance(item, bytes):
        raise ValueError(f"{what} should be bytes")
    return item


def _read_uint(item: _Item, what: str) -> int:
    data = _bytes(item, what)
    if len(data) > 32 or data[:1] == b"\x00":
        raise ValueError(f"{what} is no number of at most 256 bits without leading zeros")
    return int.from_bytes(data, "big")


def _read_optional(item: _Item, what: str) -> int | None:
    return None if item == b"" else _read_uint(item, what)
