from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store.lmdb_pages import Damaged, check_pages

PAGE = 4096


def build(path: Path, seed: int, commits: int = 12) -> Path:
    """A file of all kinds of pages: branches, leaves, long values, free lists, free pages at its end."""
    dice = random.Random(seed)
    with lmdb.open(str(path), map_size=2**26, sync=False) as env:
        for _ in range(commits):
            share = dice.random()
            with env.begin(write=True) as txn:
                for key in dice.sample(range(2000), dice.choice([1, 20, 300])):
                    if dice.random() < share:
                        txn.put(b"%05d" % key, b"x" * dice.choice([10, 300, 1500, 6000, 30_000]))
                    else:
                        txn.delete(b"%05d" % key)
    return path / "data.mdb"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("pages"), 7)


@pytest.mark.parametrize("seed", range(5))
def test_sound_files_pass(tmp_path: Path, seed: int) -> None:
    check_pages(build(tmp_path / "s", seed))


def test_an_empty_store_passes(tmp_path: Path) -> None:
    check_pages(build(tmp_path / "s", 0, commits=0))


def test_a_cut_file_passes_until_a_page_in_use_is_gone(data: Path, tmp_path: Path) -> None:
    """What is cut off beyond the highest page in use does not matter; what is cut off of that does."""
    cut = tmp_path / "data.mdb"
    cut.write_bytes(data.read_bytes())
    whole = cut.stat().st_size // PAGE
    passed = []
    for pages in (*range(whole, whole - 50, -1), *range(whole - 50, 0, -31), 1, 0):
        os.truncate(cut, pages * PAGE)
        try:
            check_pages(cut)
        except Damaged:
            passed.append(False)
        else:
            passed.append(True)
    assert passed[0]
    assert not passed[-1]
    assert passed == sorted(passed, reverse=True)


def _flags(value: int) -> Callable[[bytearray], None]:
    return lambda page: struct.pack_into("=H", page, 10, value)


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (0, lambda page: page.__setitem__(slice(16, 20), b"none"), "page 0 does not describe a store"),
        (1, lambda page: page.__setitem__(slice(20, 24), b"\x03\0\0\0"), "page 1 does not describe a store"),
        (0, lambda page: struct.pack_into("=I", page, 40, 100), "pages of 100 bytes"),
        (0, lambda page: struct.pack_into("=I", page, 40, 5000), "pages of 5000 bytes"),
        (0, lambda page: struct.pack_into("=I", page, 40, 256), "pages of 256 bytes"),
        (0, lambda page: struct.pack_into("=I", page, 40, 512), "page 1 does not describe a store"),
        (0, lambda page: struct.pack_into("=I", page, 40, 2**16), "page 1 (does not describe|is missing)"),
        (0, lambda page: struct.pack_into("=I", page, 40, 2**17), "pages of 131072 bytes"),
        (-1, lambda page: page.__setitem__(slice(0, PAGE), bytes(PAGE)), "is none of this tree"),
        (-1, lambda page: struct.pack_into("=Q", page, 0, 99_999), "is none of this tree"),
        (-1, _flags(0x03), "is none of this tree"),
        (-1, _flags(0x22), "is none of this tree"),
        (-1, lambda page: struct.pack_into("=H", page, 12, 0xFFFF), "page [0-9]+ "),
        (-1, lambda page: struct.pack_into("=H", page, 16, 0xFFF0), "points outside itself"),
    ],
)
def test_damage_is_named(
    data: Path, tmp_path: Path, number: int, change: Callable[[bytearray], None], message: str
) -> None:
    content = bytearray(data.read_bytes())
    if number < 0:  # the root of the records
        newest = max((0, 1), key=lambda meta: struct.unpack_from("=Q", content, meta * PAGE + 144)[0])
        (number,) = struct.unpack_from("=Q", content, newest * PAGE + 128)
    page = content[number * PAGE : (number + 1) * PAGE]
    change(page)
    content[number * PAGE : (number + 1) * PAGE] = page
    damaged = tmp_path / "data.mdb"
    damaged.write_bytes(content)
    with pytest.raises(Damaged, match=message):
        check_pages(damaged)


def test_a_tree_that_contains_itself_is_damage(tmp_path: Path) -> None:
    data = build(tmp_path / "s", 7)
    content = bytearray(data.read_bytes())
    newest = max((0, 1), key=lambda meta: struct.unpack_from("=Q", content, meta * PAGE + 144)[0])
    (root,) = struct.unpack_from("=Q", content, newest * PAGE + 128)
    (node,) = struct.unpack_from("=H", content, root * PAGE + 16)
    struct.pack_into("=HHH", content, root * PAGE + node, root & 0xFFFF, root >> 16, 0)
    data.write_bytes(content)
    with pytest.raises(Damaged, match="used twice"):
        check_pages(data)


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\0" * 8192, b"\xff" * 8192])
def test_what_is_no_store_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(Damaged):
        check_pages(tmp_path / "data.mdb")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(changes=st.lists(st.tuples(st.integers(0, 2**31), st.binary(min_size=1, max_size=8)), max_size=12))
def test_no_damage_raises_anything_else(data: Path, tmp_path: Path, changes: list[tuple[int, bytes]]) -> None:
    content = bytearray(data.read_bytes())
    for place, value in changes:
        # Mostly within headers and node pointers, where it matters.
        start = place % (len(content) - 8)
        start -= start % PAGE - place % 64
        content[start : start + len(value)] = value
    damaged = tmp_path / "data.mdb"
    with damaged.open("wb") as file:
        file.write(content)
    with suppress(Damaged):
        check_pages(damaged)
    assert os.path.getsize(damaged) == len(content)


def one_record(path: Path, value: bytes) -> tuple[Path, bytearray, int]:
    """A store of one record: its file, what is in it, and where its only leaf begins."""
    with lmdb.open(str(path), map_size=2**20, sync=False) as env, env.begin(write=True) as txn:
        txn.put(b"key", value)
    content = bytearray((path / "data.mdb").read_bytes())
    newest = max((0, 1), key=lambda meta: struct.unpack_from("=Q", content, meta * PAGE + 144)[0])
    (root,) = struct.unpack_from("=Q", content, newest * PAGE + 128)
    return path / "data.mdb", content, root * PAGE


@pytest.mark.parametrize("flag", [0x02, 0x04, 0x06])
def test_a_tree_within_a_tree_is_damage(tmp_path: Path, flag: int) -> None:
    """bursar makes none: what looks like one is a flipped bit."""
    path, content, leaf = one_record(tmp_path / "s", b"value")
    (node,) = struct.unpack_from("=H", content, leaf + 16)
    struct.pack_into("=H", content, leaf + node + 4, flag)
    path.write_bytes(content)
    with pytest.raises(Damaged, match="has a tree of its own"):
        check_pages(path)


@pytest.mark.parametrize(
    ("at", "form", "value", "says"),
    [
        (0, "=Q", 77, "is no long value"),  # its own number
        (10, "=H", 0x02, "is no long value"),  # a leaf
        (12, "=I", 1_000, "page [0-9]+ is missing"),  # more pages than there are
        (12, "=I", 0x1_0003, "page [0-9]+ is missing"),  # the upper half of that number
    ],
)
def test_a_long_value_that_is_none_is_damage(
    tmp_path: Path, at: int, form: str, value: int, says: str
) -> None:
    path, content, leaf = one_record(tmp_path / "s", b"x" * 3 * PAGE)
    check_pages(path)
    (node,) = struct.unpack_from("=H", content, leaf + 16)
    (number,) = struct.unpack_from("=Q", content, leaf + node + 8 + len(b"key"))
    struct.pack_into(form, content, number * PAGE + at, value)
    path.write_bytes(content)
    with pytest.raises(Damaged, match=says):
        check_pages(path)


@pytest.mark.parametrize("half", [0, 1])
def test_all_of_a_page_number_counts(tmp_path: Path, half: int) -> None:
    """A branch keeps 48 bits of it in three pieces, a long value's count of pages comes in two."""
    data = build(tmp_path / "s", 7)
    content = bytearray(data.read_bytes())
    newest = max((0, 1), key=lambda meta: struct.unpack_from("=Q", content, meta * PAGE + 144)[0])
    (root,) = struct.unpack_from("=Q", content, newest * PAGE + 128)
    assert struct.unpack_from("=H", content, root * PAGE + 10)[0] & 0x01, "a branch"
    (node,) = struct.unpack_from("=H", content, root * PAGE + 16)
    struct.pack_into("=H", content, root * PAGE + node + 2 + 2 * half, 1)
    data.write_bytes(content)
    (low,) = struct.unpack_from("=H", content, root * PAGE + node)
    with pytest.raises(Damaged, match=f"page {low + (1 << 16 * (half + 1))} is missing"):
        check_pages(data)


def test_a_long_value_may_have_any_number_of_pages(tmp_path: Path) -> None:
    path, content, leaf = one_record(tmp_path / "s", b"x" * 3 * PAGE)
    (node,) = struct.unpack_from("=H", content, leaf + 16)
    (number,) = struct.unpack_from("=Q", content, leaf + node + 8 + len(b"key"))
    pages = len(content) // PAGE - number
    for count, sound in ((pages, True), (pages + 1, False), (1 << 16, False), (1 << 17, False)):
        struct.pack_into("=HH", content, number * PAGE + 12, count & 0xFFFF, count >> 16)
        path.write_bytes(content)
        if sound:
            check_pages(path)
            continue
        with pytest.raises(Damaged, match=f"page {number + count - 1} is missing"):
            check_pages(path)


@pytest.mark.parametrize("size", [511, 513, 1000, 4097, 6144])
def test_a_page_is_a_power_of_two(data: Path, tmp_path: Path, size: int) -> None:
    content = bytearray(data.read_bytes())
    struct.pack_into("=I", content, 40, size)
    (tmp_path / "data.mdb").write_bytes(content)
    with pytest.raises(Damaged, match=f"pages of {size} bytes"):
        check_pages(tmp_path / "data.mdb")


@pytest.mark.parametrize("commits", [1, 2, 3, 4])
def test_the_newer_commit_counts_whatever_became_of_the_older(tmp_path: Path, commits: int) -> None:
    """Its pages may be in use again: what the older of the two heads refers to says nothing."""
    path = tmp_path / "s"
    with lmdb.open(str(path), map_size=2**20, sync=False) as env:
        for number in range(commits + 6):  # at last no page more is needed
            with env.begin(write=True) as txn:
                txn.put(b"key", b"%d" % number)
    content = bytearray((path / "data.mdb").read_bytes())
    older = min((0, 1), key=lambda meta: struct.unpack_from("=Q", content, meta * PAGE + 144)[0])
    struct.pack_into("=Q", content, older * PAGE + 128, 99_999)
    (path / "data.mdb").write_bytes(content)
    check_pages(path / "data.mdb")
    struct.pack_into("=Q", content, (1 - older) * PAGE + 128, 99_999)
    (path / "data.mdb").write_bytes(content)
    with pytest.raises(Damaged, match="page 99999 is missing"):
        check_pages(path / "data.mdb")
