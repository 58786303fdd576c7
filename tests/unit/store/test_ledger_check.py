"""What is done to a journal behind our back is found; what a crash or a full disk does to it is no alarm."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import ledger_files
from store.anchors import Anchor
from store.contract import StoreUnavailable
from store.journal import Journal, read_lines
from store.ledger_check import JournalReport, check_journal, check_missing
from tests.unit.store.disk import largest_file

LINES = 12


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """In three files."""
    journal = Journal(tmp_path, "me", "boot", segment_bytes=300)
    for number in range(1, LINES + 1):
        journal.append({"kind": "sent", "amount": str(number * 1000)}, channel_id="0xc")
    journal.close()
    return journal


def check(directory: Path, anchor: Anchor | None, *, known: bool = True, boot: str = "boot") -> JournalReport:
    files = ledger_files.segments(directory, "me")
    report, lines = check_journal("me", files, anchor, known=known, boot=boot)
    for _ in lines:
        pass
    return report


def kinds(report: JournalReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def rewrite(directory: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """All lines of all files go through `change`; the files keep how many each had."""
    files = ledger_files.segments(directory, "me")
    sizes = [len(path.read_bytes().splitlines()) for path in files]
    lines = change([line for path in files for line in path.read_bytes().splitlines(keepends=True)])
    for path, size in zip(files[:-1], sizes[:-1], strict=True):
        path.write_bytes(b"".join(lines[:size]))
        lines = lines[size:]
    files[-1].write_bytes(b"".join(lines))


def test_what_was_written_is_verified(tmp_path: Path, journal: Journal) -> None:
    report = check(tmp_path, journal.anchor)
    assert (report.files, report.lines, report.torn, report.chained) == (4, LINES, 0, True)
    assert report.findings == []
    assert report.behind_anchor == 0
    behind = check(tmp_path, replace(journal.anchor, line=0, closed=False))
    assert (behind.findings, behind.behind_anchor) == ([], LINES)


def altered(lines: list[bytes]) -> list[bytes]:
    return [line.replace(b'"5000"', b'"4000"') for line in lines]


def dropped(lines: list[bytes]) -> list[bytes]:
    return lines[:4] + lines[5:]


def swapped(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[5], lines[4], *lines[6:]]


def twice(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], lines[4], *lines[5:]]


def cut(lines: list[bytes]) -> list[bytes]:
    return lines[:-2]


def foreign(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], b'{"kind":"sent"}\n', *lines[5:]]


def garbage(lines: list[bytes]) -> list[bytes]:
    return [*lines[:5], b"\x00\x00\x00\n", *lines[5:]]


def first_dropped(lines: list[bytes]) -> list[bytes]:
    return lines[1:]


def without_hash(lines: list[bytes]) -> list[bytes]:
    return [*lines[:4], lines[4][: -len(',"h":""}\n') - 32] + b"}\n", *lines[5:]]


@pytest.mark.parametrize(
    ("change", "found", "says"),
    [
        (altered, ["altered"], "line 5, or the one before it, is not what was written"),
        (dropped, ["dropped"], "line 5 is missing"),
        (swapped, ["dropped", "reordered"], "line 5 is missing"),
        (twice, ["reordered"], "line 5 stands after line 5"),
        (cut, ["cut-short"], "ends at line 10, and the store has seen line 12"),
        (foreign, ["altered"], "what stands after line 5 is no line of a ledger"),
        (garbage, ["altered"], "what stands after line 5 is no line of a ledger"),
        (first_dropped, ["dropped"], "line 1 is missing"),
        (without_hash, ["altered", "altered"], "line 5, or"),
    ],
)
def test_each_change_is_found(
    tmp_path: Path,
    journal: Journal,
    change: Callable[[list[bytes]], list[bytes]],
    found: list[str],
    says: str,
) -> None:
    rewrite(tmp_path, change)
    report = check(tmp_path, journal.anchor)
    assert kinds(report) == found
    assert says in report.findings[0].text
    assert not any(finding.doubtful for finding in report.findings)


def test_a_journal_that_was_written_anew_is_found_by_its_anchor(tmp_path: Path, journal: Journal) -> None:
    """All hashes are right; only the store has seen others."""
    for path in ledger_files.segments(tmp_path, "me"):
        path.unlink()
    forged = Journal(tmp_path, "me", "boot")
    for number in range(1, LINES + 1):
        forged.append({"kind": "sent", "amount": str(number * 900)}, channel_id="0xc")
    forged.close()
    report = check(tmp_path, journal.anchor)
    assert kinds(report) == ["altered"]
    assert "the store has seen another line 12" in report.findings[0].text


def test_hashes_that_were_taken_off_are_missed(tmp_path: Path, journal: Journal) -> None:
    """A forged ledger from before there were hashes is none: the store has seen them."""
    bodies = [line.body for path in ledger_files.segments(tmp_path, "me") for line in read_lines(path)]
    rewrite(tmp_path, lambda lines: [body + b"\n" for body in bodies])
    assert set(kinds(check(tmp_path, journal.anchor))) == {"altered"}


def test_nobody_passes_for_an_old_ledger_by_taking_one_hash_off(tmp_path: Path, journal: Journal) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        return [lines[0][: -len(',"h":""}\n') - 32] + b"}\n", *altered(lines[1:])]

    rewrite(tmp_path, change)
    assert set(kinds(check(tmp_path, journal.anchor))) == {"altered"}
    assert "altered" in kinds(check(tmp_path, None))


def test_a_file_of_a_journal_that_is_gone(tmp_path: Path, journal: Journal) -> None:
    first, second, third, last = ledger_files.segments(tmp_path, "me")
    data = last.read_bytes()
    last.unlink()
    assert kinds(check(tmp_path, journal.anchor)) == ["cut-short"]
    last.write_bytes(data)
    second.unlink()
    assert kinds(check(tmp_path, journal.anchor)) == ["missing", "dropped"]
    for path in (first, third, last):
        path.unlink()
    (missing,) = check_missing({"me": journal.anchor}, frozenset(), "boot")
    assert kinds(missing) == ["missing"]
    assert "is gone, with at least 12 lines" in missing.findings[0].text
    assert list(check_missing({"me": replace(journal.anchor, line=0)}, frozenset(), "boot")) == []
    assert list(check_missing({"me": journal.anchor}, frozenset({"me"}), "boot")) == []


def test_lines_that_were_added_after_the_end(tmp_path: Path, journal: Journal) -> None:
    assert kinds(check(tmp_path, replace(journal.anchor, line=11))) == ["altered", "added"]


def test_a_journal_that_the_store_does_not_know(tmp_path: Path, journal: Journal) -> None:
    assert kinds(check(tmp_path, None)) == ["unknown"]
    assert kinds(check(tmp_path, None, known=False)) == []


def test_ledgers_from_before_are_unchained_and_said_to_be(tmp_path: Path, journal: Journal) -> None:
    bodies = [line.body for path in ledger_files.segments(tmp_path, "me") for line in read_lines(path)]
    rewrite(tmp_path, lambda lines: [body + b"\n" for body in bodies])
    report = check(tmp_path, None)
    assert (report.chained, report.findings, report.lines) == (False, [], LINES)


def test_a_power_cut_makes_a_missing_end_doubtful(tmp_path: Path, journal: Journal) -> None:
    rewrite(tmp_path, cut)
    running = replace(journal.anchor, closed=False)
    (finding,) = check(tmp_path, running, boot="a later one").findings
    assert (finding.kind, finding.doubtful) == ("cut-short", True)
    (closed,) = check(tmp_path, journal.anchor, boot="a later one").findings
    assert closed.doubtful is False  # it was synced before it was closed
    (same,) = check(tmp_path, running).findings
    assert same.doubtful is False
    (gone,) = check_missing({"me": running}, frozenset(), "a later one")
    assert gone.findings[0].doubtful is True


# -- no false alarms


def test_a_line_torn_at_any_byte_is_no_alarm(tmp_path: Path, journal: Journal) -> None:
    anchor = replace(journal.anchor, line=LINES - 1, digest=_digest(tmp_path, LINES - 1), closed=False)
    last = ledger_files.segments(tmp_path, "me")[-1]
    data = last.read_bytes()
    start = data.rstrip(b"\n").rfind(b"\n") + 1
    for size in range(start, len(data)):
        last.write_bytes(data[:size])
        assert check(tmp_path, anchor).findings == [], size


@pytest.mark.parametrize("rooms", [(0,), (1,), (50,), (5, 1, 2, 3, 0, 4, 150), (120, 120)])
def test_a_full_disk_is_no_alarm(tmp_path: Path, rooms: tuple[int, ...]) -> None:
    journal = Journal(tmp_path, "me", "boot")
    journal.append({"kind": "sent"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in rooms:
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + room, hard))
        try:
            with suppress(StoreUnavailable):
                journal.append({"kind": "sent", "pad": "x" * 60})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.append({"kind": "ended"})
    journal.close()
    report = check(tmp_path, journal.anchor)
    assert report.findings == []
    assert report.lines == journal.lines


@settings(max_examples=60)
@given(st.data())
def test_any_one_byte_that_changes_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("ledger")
    journal = Journal(directory, "me", "boot")
    for number in range(1, 5):
        journal.append({"kind": "sent", "amount": str(number)}, channel_id="0xc")
    journal.close()
    content = bytearray(journal.path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    journal.path.write_bytes(bytes(content))
    assert check(directory, journal.anchor).findings


def _digest(directory: Path, number: int) -> bytes:
    lines = (line for path in ledger_files.segments(directory, "me") for line in read_lines(path))
    digest = next(line.digest for line in lines if line.number == number)
    assert digest is not None
    return digest


def test_a_line_that_was_not_taken_whole_is_counted_and_no_alarm(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me", "boot")
    for _ in range(2):
        journal.append({"kind": "sent"})
        with largest_file(journal.path.stat().st_size + 9), pytest.raises(StoreUnavailable):
            journal.append({"kind": "torn"})
    journal.append({"kind": "sent"})
    journal.close()
    report = check(tmp_path, journal.anchor)
    assert (report.torn, report.lines, report.findings) == (2, 3, [])


def test_a_journal_that_was_cut_short_has_nothing_behind_its_anchor(tmp_path: Path, journal: Journal) -> None:
    rewrite(tmp_path, cut)
    assert check(tmp_path, journal.anchor).behind_anchor == 0
    assert check(tmp_path, None).behind_anchor == 0
