"""The store's own few keys: which format it is of, which store it is, how many commits it has seen.

They sit under ``m/``; work may read them (a seal beside the key remembers store id and commit number, and so
notices that an older copy was put back), and only the backend writes them.
"""

from __future__ import annotations

from typing import Final

from store.codec import decode_int
from store.contract import StoreError, UnknownVersion
from store.overlay import Base

FORMAT: Final = 1

FORMAT_KEY: Final = b"m/format"  # decimal, plain ASCII: the one thing that every version must be able to read
STORE_ID_KEY: Final = b"m/store"  # hex, made at random when the store is created
COMMITS_KEY: Final = b"m/commits"  # `codec.encode_int`: rises by one with every commit that changed something

KEYS: Final = frozenset({FORMAT_KEY, STORE_ID_KEY, COMMITS_KEY})


def check_format(found: bytes, where: str) -> None:
    """Raises `UnknownVersion` if this bursar cannot read a store marked `found`."""
    if found == b"%d" % FORMAT:
        return
    version = found.decode("ascii", "backslashreplace")[:20]
    raise UnknownVersion(
        f"the store in {where} is of format {version}; this bursar reads format {FORMAT}. It was left as it is."
        " Install the newer bursar that wrote it, or name another directory."
    )


def refuse_own_keys(changes: dict[bytes, bytes | None]) -> None:
    """Raises `StoreError` if work was to write one of the keys above."""
    if changes and not KEYS.isdisjoint(changes):
        names = ", ".join(sorted(repr(key) for key in KEYS & changes.keys()))
        raise StoreError(f"{names}: kept by the store itself, work may only read it")


def commits(base: Base) -> int:
    found = base.get(COMMITS_KEY)
    return 0 if found is None else decode_int(found)
