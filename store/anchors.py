"""How far the store has seen each journal's chain of hashes: what shows that a journal's end is missing.

A process registers its journal before it writes the first line, and each of its commits, whatever it is for,
carries along where its journal stands. So whatever was written before a commit cannot be taken away unnoticed.
The last commit of an orderly end says that the journal is closed; the end of one whose process died is put on
record by the next process that starts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from store import codec
from store.contract import Transaction, UnknownVersion

PREFIX: Final = b"j/"


@dataclass(frozen=True, slots=True)
class Anchor:
    """The last line of a journal that the store knows of."""

    journal: str
    line: int
    digest: bytes  # of that line; of the journal's name, before there is one
    boot_id: str  # the machine's run in which it was written
    closed: bool = False  # nothing was written after it


def put(txn: Transaction, anchor: Anchor) -> None:
    txn.put(PREFIX + anchor.journal.encode(), encode(anchor))


def put_all(txn: Transaction, anchors: Iterable[Anchor]) -> None:
    for anchor in anchors:
        put(txn, anchor)


def read_all(txn: Transaction) -> dict[str, Anchor]:
    """By the journal's name."""
    found = (decode(key[len(PREFIX) :].decode(), value) for key, value in txn.scan(PREFIX))
    return {anchor.journal: anchor for anchor in found}


def encode(anchor: Anchor) -> bytes:
    return codec.seal(orjson.dumps([anchor.line, anchor.digest.hex(), anchor.boot_id, anchor.closed]))


def decode(journal: str, data: bytes) -> Anchor:
    """Raises `UnknownVersion`, and nothing else, for what `encode` cannot have written."""
    payload = codec.unseal(data, "journal's anchor")
    try:
        row: Any = orjson.loads(payload)
        match row:
            case [int(line), str(digest), str(boot_id), bool(closed)] if type(line) is int and line >= 0:
                return Anchor(journal, line, bytes.fromhex(digest), boot_id, closed)
    except ValueError:
        pass
    raise UnknownVersion(f"the anchor of journal {journal} in the store is none that this bursar writes")
