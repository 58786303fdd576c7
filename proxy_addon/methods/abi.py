"""Just enough of Ethereum's encodings: keccak-256, ABI words of static types, addresses, hex.

Only static types occur in what we build and read (channel calls, balances, channel states), so that a word is
32 bytes and a tuple is its words in a row. `eth_abi` would do it too, for almost a second of import time.
"""

from __future__ import annotations

import re
from typing import Final

from Crypto.Hash import keccak

ZERO_ADDRESS: Final = "0x" + "00" * 20
WORD: Final = 32

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_BYTES32: Final = re.compile(r"0x[0-9a-fA-F]{64}\Z")


def keccak256(data: bytes) -> bytes:
    return keccak.new(digest_bits=256, data=data).digest()


def selector(signature: str) -> bytes:
    """The first four bytes of a call: ``selector("open(address,uint96)")``."""
    return keccak256(signature.encode())[:4]


def shown(value: object) -> str:
    """A decoded JSON value for an error: its beginning, at no cost, however long or deep it is."""
    match value:
        case str():
            return ascii(value[:60])
        case dict():
            return "an object"
        case list():
            return "an array"
        case _:
            return repr(value)[:60]


def parse_address(value: object, what: str) -> str:
    """A 20-byte address in lower case; mixed case is taken as it comes (the checksum is not checked).

    Raises ``ValueError`` naming `what`.
    """
    if not isinstance(value, str) or not _ADDRESS.match(value):
        raise ValueError(f"{what} is {shown(value)}: expected an address, 0x and 40 hex digits")
    return value.lower()


def parse_bytes32(value: object, what: str) -> str:
    """32 bytes as lower-case hex. Raises ``ValueError`` naming `what`."""
    if not isinstance(value, str) or not _BYTES32.match(value):
        raise ValueError(f"{what} is {shown(value)}: expected 32 bytes, 0x and 64 hex digits")
    return value.lower()


def to_hex(data: bytes) -> str:
    return "0x" + data.hex()


def to_bytes(text: str) -> bytes:
    """The bytes of ``0x…``. Raises ``ValueError``."""
    if not text.startswith("0x"):
        raise ValueError(f"{text[:20]!r} has no 0x")
    return bytes.fromhex(text[2:])


def uint_word(value: int, bits: int = 256) -> bytes:
    """Raises ``ValueError`` if `value` does not fit an unsigned integer of so many bits."""
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{value} does not fit uint{bits}")
    return value.to_bytes(WORD, "big")


def address_word(address: str) -> bytes:
    return bytes(12) + to_bytes(parse_address(address, "address"))


def bytes32_word(value: str) -> bytes:
    return to_bytes(parse_bytes32(value, "bytes32"))


def words(data: bytes, count: int, what: str) -> tuple[bytes, ...]:
    """`data` as exactly `count` words. Raises ``ValueError`` naming `what`."""
    if len(data) != count * WORD:
        raise ValueError(f"{what} has {len(data)} bytes: expected {count * WORD}")
    return tuple(data[at : at + WORD] for at in range(0, len(data), WORD))


def read_uint(word: bytes, bits: int, what: str) -> int:
    """Raises ``ValueError`` if the word holds more than so many bits: no encoder would have written it."""
    value = int.from_bytes(word, "big")
    if value >> bits:
        raise ValueError(f"{what} does not fit uint{bits}")
    return value


def read_address(word: bytes, what: str) -> str:
    return to_hex(read_uint(word, 160, what).to_bytes(20, "big"))
