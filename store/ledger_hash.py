"""The hash chain of a journal: each line carries a hash over the line before it and its own bytes.

A line is a JSON object whose last member is ``"h"``. Its hash is BLAKE2b (16 bytes) over the hash of the line
before it, followed by the line's bytes without that member; the first line's predecessor is the hash of the
journal's name. So a line that is altered, dropped, added or moved breaks the chain at its place, and so does a
file that is put in another's. What no chain can show is a missing end: for that the store keeps anchors.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

DIGEST_BYTES: Final = 16
_MEMBER: Final = b',"h":"'
_MEMBER_BYTES: Final = len(_MEMBER) + 2 * DIGEST_BYTES + len(b'"}')


def first(name: str) -> bytes:
    """What the first line of the journal `name` is hashed onto."""
    return blake2b(
        b"bursar ledger\x00" + name.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES
    ).digest()


def link(before: bytes, body: bytes) -> bytes:
    """The hash of the line `body` (without its hash) after the line whose hash is `before`."""
    digest = blake2b(before, digest_size=DIGEST_BYTES)
    digest.update(body)
    return digest.digest()


def with_hash(body: bytes, digest: bytes) -> bytes:
    """The JSON object `body`, which has members, with its hash as the last of them."""
    return b'%b%b%b"}' % (body[:-1], _MEMBER, digest.hex().encode())


def without_hash(line: bytes) -> tuple[bytes, bytes | None]:
    """A line (without its newline) as its body and its hash; None if it has no hash at its end."""
    if line[-_MEMBER_BYTES : len(_MEMBER) - _MEMBER_BYTES] != _MEMBER or not line.endswith(b'"}'):
        return line, None
    try:
        return line[:-_MEMBER_BYTES] + b"}", bytes.fromhex(
            line[len(_MEMBER) - _MEMBER_BYTES : -2].decode("ascii")
        )
    except ValueError:
        return line, None
