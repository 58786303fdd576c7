"""A journal in several files: written, read and folded as one; and its chain of hashes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import ledger_files, ledger_hash
from store.account import Ended, Ending, IllegalMove, Sent
from store.anchors import Anchor
from store.contract import StoreUnavailable
from store.journal import Journal, end_of, moves_after, read_journal, read_lines
from store.records import Hold, JournalMark

SEGMENT = 1000


def sent(number: int) -> Sent:
    return Sent(Hold(f"r{number}", 1, number, 1, 2, -1, "f"))


def written(directory: Path, count: int, name: str = "me", segment_bytes: int = SEGMENT) -> Journal:
    journal = Journal(directory, name, "boot", segment_bytes=segment_bytes)
    for number in range(1, count + 1):
        journal.append({"kind": "sent"}, channel_id="0xa" if number % 2 else "0xb", move=sent(number))
    return journal


def test_a_full_file_is_followed_by_another(tmp_path: Path) -> None:
    journal = written(tmp_path, 30)
    names = [path.name for path in ledger_files.segments(tmp_path, "me")]
    assert names[:3] == ["me.jsonl", "me.0002.jsonl", "me.0003.jsonl"]
    assert journal.path.name == names[-1]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())
    assert [line.number for line in read_journal(tmp_path, "me")] == list(range(1, 31))
    sizes = [path.stat().st_size for path in ledger_files.segments(tmp_path, "me")]
    assert all(SEGMENT <= size < 2 * SEGMENT for size in sizes[:-1])
    journal.close()
    with pytest.raises(StoreUnavailable, match="is closed"):
        journal.append({})


@pytest.mark.parametrize("mark", [0, 1, 5, 6, 7, 15, 29, 30])
def test_a_fold_reads_across_files(tmp_path: Path, mark: int) -> None:
    written(tmp_path, 30).close()
    found = moves_after(tmp_path, JournalMark("me", mark, "boot"), "0xa")
    assert found == [sent(number) for number in range(mark + 1, 31) if number % 2]


def test_a_fold_needs_no_file_from_before_its_mark_and_each_behind_it(tmp_path: Path) -> None:
    written(tmp_path, 30).close()
    files = ledger_files.segments(tmp_path, "me")
    first_of_third = next(read_lines(files[2])).number
    files[0].unlink()
    assert moves_after(tmp_path, JournalMark("me", first_of_third, "boot"), "0xa")[0] == sent(
        first_of_third + 1 + first_of_third % 2
    )
    files[-2].unlink()
    with pytest.raises(IllegalMove, match="lines are lost"):
        moves_after(tmp_path, JournalMark("me", first_of_third, "boot"), "0xa")
    with pytest.raises(IllegalMove, match="lines are lost"):
        moves_after(tmp_path, JournalMark("me", 1, "boot"), "0xa")


def test_journals_whose_names_begin_alike_are_told_apart(tmp_path: Path) -> None:
    for name in ("me", "me.also", "me[1]", "m?"):
        written(tmp_path, 20, name).close()
    found = ledger_files.journals(tmp_path)
    assert list(found) == ["m?", "me", "me.also", "me[1]"]
    for name, files in found.items():
        assert list(ledger_files.segments(tmp_path, name)) == files
        assert [line.number for line in read_journal(tmp_path, name)] == list(range(1, 21))


def test_where_no_further_file_can_be_made_the_old_one_goes_on(tmp_path: Path) -> None:
    blocked = tmp_path / "me.0002.jsonl"
    blocked.write_text("")
    journal = written(tmp_path, 12)
    assert [line.number for line in read_lines(journal.path)] == list(range(1, 13))
    blocked.unlink()
    journal.append({"kind": "sent"}, channel_id="0xa", move=sent(13))
    assert journal.path == blocked
    journal.close()
    assert [line.number for line in read_journal(tmp_path, "me")] == list(range(1, 14))


def test_no_file_stays_open_while_lines_are_read(tmp_path: Path) -> None:
    journals = [written(tmp_path, 2, f"p{number}") for number in range(20)]
    for journal in journals:
        journal.close()
    before = len(os.listdir("/proc/self/fd"))
    readers = [read_lines(journal.path) for journal in journals]
    assert [next(reader).number for reader in readers] == [1] * 20
    assert len(os.listdir("/proc/self/fd")) == before


# -- the chain of hashes


@given(st.binary(max_size=40), st.binary(min_size=16, max_size=16))
def test_a_hash_is_taken_off_as_it_was_put_on(content: bytes, digest: bytes) -> None:
    body = b'{"n":1,"x":"' + content.hex().encode() + b'"}'
    assert ledger_hash.without_hash(ledger_hash.with_hash(body, digest)) == (body, digest)
    assert ledger_hash.without_hash(body) == (body, None)


@pytest.mark.parametrize("line", [b"", b"{}", b'{"h":""}', b'{"n":1,"h":"' + b"g" * 32 + b'"}', b"x" * 60])
def test_what_has_no_hash_at_its_end_is_left_as_it_is(line: bytes) -> None:
    assert ledger_hash.without_hash(line) == (line, None)


def test_two_journals_never_chain_alike(tmp_path: Path) -> None:
    one, two = written(tmp_path, 1, "one"), written(tmp_path, 1, "two")
    assert one.anchor.digest != two.anchor.digest
    first, second = next(read_lines(one.path)), next(read_lines(two.path))
    assert first.body == second.body
    one.close()
    two.close()


def test_a_fold_believes_no_line_that_was_altered(tmp_path: Path) -> None:
    journal = written(tmp_path, 6, segment_bytes=2**20)
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes().replace(b'"voucher":"3"', b'"voucher":"1"'))
    with pytest.raises(IllegalMove, match=r"line 3 of the ledger .* is not what was written"):
        moves_after(tmp_path, JournalMark("me", 1, "boot"), "0xa")
    unaltered = JournalMark("me", 6, "boot")
    with pytest.raises(IllegalMove, match="line 3"):
        moves_after(tmp_path, unaltered, "0xb")


def test_ledgers_from_before_there_were_hashes_fold(tmp_path: Path) -> None:
    journal = written(tmp_path, 4, segment_bytes=2**20)
    journal.close()
    bodies = [line.body for line in read_lines(journal.path)]
    journal.path.write_bytes(b"".join(body + b"\n" for body in bodies))
    assert moves_after(tmp_path, JournalMark("me", 1, "boot"), "0xa") == [sent(3)]


# -- where a journal has ended


def test_the_end_of_a_journal_is_found_in_its_last_file(tmp_path: Path) -> None:
    journal = written(tmp_path, 30)
    seen = Anchor("me", 12, b"", "boot")
    assert end_of(tmp_path, seen) == Anchor("me", 30, journal.anchor.digest, "boot", closed=True)
    with journal.path.open("ab") as file:
        file.write(b'{"n":31,"torn')
    assert end_of(tmp_path, seen) == Anchor("me", 30, journal.anchor.digest, "boot", closed=True)
    assert (
        end_of(tmp_path, Anchor("me", 31, b"", "boot")) is None
    )  # lines are missing: nothing to be proud of
    assert end_of(tmp_path, Anchor("gone", 3, b"", "boot")) is None
    assert end_of(tmp_path, Anchor("gone", 0, b"x", "boot")) == Anchor("gone", 0, b"x", "boot", closed=True)
    journal.close()


def test_the_end_is_found_behind_a_very_long_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me", "boot")
    journal.append({"kind": "note"})
    journal.append({"kind": "sent", "path": "x" * 300_000}, channel_id="0xa", move=Ended("r", Ending.FREE, 1))
    journal.close()
    assert end_of(tmp_path, Anchor("me", 1, b"", "boot")) == Anchor(
        "me", 2, journal.anchor.digest, "boot", closed=True
    )
    assert [line.number for line in read_lines(journal.path)] == [1, 2]


def test_the_end_is_found_in_the_file_before_one_without_a_line(tmp_path: Path) -> None:
    """A crash after a file was made, and before its first line was."""
    journal = written(tmp_path, 6)
    journal.close()
    following = ledger_files.segment_path(tmp_path, "me", len(ledger_files.segments(tmp_path, "me")) + 1)
    for content in (b"", b"~\n", b'{"n":7'):
        following.write_bytes(content)
        assert end_of(tmp_path, Anchor("me", 2, b"", "boot")) == replace(journal.anchor, closed=True)


def test_a_file_that_vanishes_meanwhile_has_no_lines(tmp_path: Path) -> None:
    assert list(ledger_files.last_lines(tmp_path / "gone.jsonl")) == []
    assert list(ledger_files.raw_lines(tmp_path / "gone.jsonl")) == []


@pytest.mark.parametrize("size", [0, 1, 2**18 - 1, 2**18, 2**18 + 1, 2**18 + 5, 2**19 + 3])
def test_the_last_lines_come_first_and_none_is_left_out(tmp_path: Path, size: int) -> None:
    """However the file lies to the piece of it that is read first."""
    path = tmp_path / "me.jsonl"
    lines = [b"%06d" % number for number in range(size // 7 + 1)]
    lines[0] += b"x" * (size - len(b"\n".join(lines)) - 1 if size > 7 else 0)
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = list(ledger_files.last_lines(path))
    assert found[:3] == lines[::-1][:3]
    assert list(dict.fromkeys(found)) == lines[::-1]
    assert list(ledger_files.raw_lines(path)) == lines


def test_a_file_is_full_when_it_has_as_many_bytes_as_it_may(tmp_path: Path) -> None:
    size = written(tmp_path / "probe", 1, segment_bytes=2**20).path.stat().st_size
    for room, files in ((size - 1, 2), (size, 2), (size + 1, 1)):
        directory = tmp_path / str(room)
        written(directory, 2, segment_bytes=room).close()
        assert len(ledger_files.segments(directory, "me")) == files
