"""Which format a store is of: read as every version writes it, shown in few words if it is another."""

from __future__ import annotations

import pytest

from store import marker
from store.codec import decode_int
from store.contract import UnknownVersion
from store.memory_store import SharedMemory


def test_only_our_format_is_read() -> None:
    marker.check_format(b"1", "/store")
    for other in (b"", b"2", b"01", b"1 ", b"11", b"\xff"):
        with pytest.raises(UnknownVersion, match="this bursar reads format 1"):
            marker.check_format(other, "/store")


def test_what_may_be_rubbish_is_shown_in_part() -> None:
    with pytest.raises(UnknownVersion, match=f"the store in /store is of format {'x' * 20}; this"):
        marker.check_format(b"x" * 1_000, "/store")


def test_a_new_store_in_memory_is_marked_as_one_on_disk() -> None:
    shared = SharedMemory()
    assert shared.get(marker.FORMAT_KEY) == b"1"
    store_id = shared.get(marker.STORE_ID_KEY)
    assert store_id is not None
    assert len(bytes.fromhex(store_id.decode())) == 16
    assert decode_int(shared.get(marker.COMMITS_KEY) or b"") == 0
