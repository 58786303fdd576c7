from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.contract import StoreError
from store.memory_store import SharedMemory
from store.overlay import Overlay, Snapshot

keys = st.text("abc", min_size=1, max_size=3).map(str.encode)


@pytest.mark.parametrize("view", [Overlay, Snapshot])
def test_a_closed_one_is_refused_everywhere(view: type[Snapshot]) -> None:
    opened = view(SharedMemory())
    scanning = opened.scan(b"m/")
    assert next(scanning)[0] == b"m/commits"
    opened.close()
    for use in (
        lambda: opened.get(b"a"),
        lambda: opened.put(b"a", b"1"),
        lambda: opened.delete(b"a"),
        lambda: opened.scan(b"a"),
        lambda: next(scanning),
    ):
        with pytest.raises(StoreError):
            use()


def test_a_scan_shows_what_was_there_when_it_was_asked_for() -> None:
    overlay = Overlay(SharedMemory())
    overlay.put(b"a", b"1")
    scanning = overlay.scan(b"a")
    overlay.put(b"a", b"2")
    overlay.put(b"ab", b"3")
    assert list(scanning) == [(b"a", b"1")]
    assert list(overlay.scan(b"a")) == [(b"a", b"2"), (b"ab", b"3")]


def test_overlays_stack() -> None:
    shared = SharedMemory()
    shared.apply({b"a": b"0", b"b": b"0", b"c": b"0"})
    lower = Overlay(shared)
    lower.put(b"a", b"1")
    lower.delete(b"b")
    upper = Overlay(lower)
    upper.put(b"b", b"2")
    upper.delete(b"c")
    pairs = [pair for pair in upper.scan(b"") if not pair[0].startswith(b"m/")]
    assert pairs == [(b"a", b"1"), (b"b", b"2")]
    assert [upper.get(key) for key in (b"a", b"b", b"c")] == [b"1", b"2", None]
    assert [lower.get(key) for key in (b"a", b"b", b"c")] == [b"1", None, b"0"]
    assert [shared.get(key) for key in (b"a", b"b", b"c")] == [b"0", b"0", b"0"]


def test_values_are_bytes() -> None:
    overlay = Overlay(SharedMemory())
    with pytest.raises(TypeError, match="must be bytes, not bytearray"):
        overlay.put(b"a", bytearray(b"1"))  # type: ignore[arg-type]
    assert overlay.get(b"a") is None


@given(
    st.dictionaries(keys, st.binary(max_size=2), max_size=6),
    st.lists(st.tuples(keys, st.none() | st.binary(max_size=2)), max_size=8),
    st.binary(max_size=2),
)
def test_a_scan_is_what_a_commit_would_leave(
    stored: dict[bytes, bytes], changes: list[tuple[bytes, bytes | None]], prefix: bytes
) -> None:
    """In order, each key once, with nothing of what was deleted."""
    shared, after = SharedMemory(), dict(stored)
    shared.apply(dict(stored))
    overlay = Overlay(shared)
    for key, value in changes:
        if value is None:
            overlay.delete(key)
            after.pop(key, None)
        else:
            overlay.put(key, value)
            after[key] = value
    expected = sorted((key, value) for key, value in after.items() if key.startswith(prefix))
    assert [pair for pair in overlay.scan(prefix) if not pair[0].startswith(b"m/")] == expected


@pytest.mark.parametrize(("length", "fits"), [(0, False), (1, True), (511, True), (512, False)])
def test_how_long_a_key_may_be(length: int, fits: bool) -> None:
    overlay, key = Overlay(SharedMemory()), b"k" * length
    if fits:
        overlay.put(key, b"1")
        assert overlay.get(key) == b"1"
        overlay.delete(key)
        assert overlay.get(key) is None
        return
    says = f"a key of {length} bytes .*: 1 to 511 are allowed"
    with pytest.raises(ValueError, match=says):
        overlay.put(key, b"")
    with pytest.raises(ValueError, match=says):
        overlay.delete(key)
    with pytest.raises(ValueError, match=says):
        overlay.get(key)
