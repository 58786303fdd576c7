"""The ledger file: what was written is read back, what was not written whole is not believed."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import journal
from store.account import (
    Ended,
    Ending,
    Grown,
    IllegalMove,
    Move,
    Probed,
    Reconciled,
    Sent,
    WrittenOff,
)
from store.contract import StoreUnavailable
from store.journal import Journal, boot_id, moves_after, read_lines
from store.records import Hold, JournalMark

amounts = st.integers(0, 2**128 - 1)
times = st.integers(0, 2**53)
names = st.text(min_size=1, max_size=20)
moves = st.one_of(
    st.builds(
        Sent,
        st.builds(Hold, names, amounts, amounts, times, times, st.integers(-1, 2**53), st.text(max_size=64)),
    ),
    st.builds(Ended, names, st.sampled_from(Ending), times, st.none() | amounts, amounts, amounts),
    st.builds(Grown, names, amounts, amounts),
    st.builds(Probed, st.integers(0, 2**53), times, times, amounts, amounts),
    st.builds(WrittenOff, amounts, times),
    st.builds(Reconciled, amounts),
)
SENT = Sent(Hold("r1", 10, 2**100, 1, 2, -1, "f"))
ENDED = Ended("r1", Ending.PAID, 3, 2**99, 2**100)


def test_the_file_is_ours_alone_and_new(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a" / "ledger", "me", "boot")
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(journal.path.parent.stat().st_mode) == 0o700
    assert os.get_inheritable(journal._fd) is False
    with pytest.raises(StoreUnavailable, match=r"cannot write the ledger .*me\.jsonl: File exists"):
        Journal(tmp_path / "a" / "ledger", "me", "boot")
    journal.close()
    journal.close()


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot write the ledger"):
        Journal(tmp_path / "file" / "ledger", "me", "boot")


def test_lines_are_numbered_and_marked(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me", "boot")
    assert journal.mark == JournalMark("me", 0, "boot")
    assert journal.append({"kind": "note"}) == 1
    assert journal.append({"kind": "sent"}, channel_id="0xc", move=SENT) == 2
    assert journal.mark == JournalMark("me", 2, "boot")
    first, second = read_lines(journal.path)
    assert (first.number, first.channel_id, first.move) == (1, None, None)
    assert (second.number, second.channel_id, second.move) == (2, "0xc", SENT)
    assert second.fields["kind"] == "sent"
    assert journal.path.read_bytes().count(b"\n") == 2


@given(st.lists(moves, min_size=1, max_size=6))
def test_every_move_is_read_back_equal(tmp_path_factory: pytest.TempPathFactory, written: list[Move]) -> None:
    journal = Journal(tmp_path_factory.mktemp("ledger"), "me", "boot")
    for one in written:
        journal.append({}, channel_id="0xc", move=one)
    journal.close()
    assert [line.move for line in read_lines(journal.path)] == written
    mark = JournalMark("me", 0, "boot")
    assert moves_after(journal.path.parent, mark, "0xc") == written
    assert moves_after(journal.path.parent, JournalMark("me", 1, "boot"), "0xc") == written[1:]
    assert moves_after(journal.path.parent, mark, "0xother") == []


def test_fields_of_any_kind_make_a_line(tmp_path: Path) -> None:
    """A client chooses its path, and a server its words: neither may keep us from writing a line."""
    journal = Journal(tmp_path, "me", "boot")
    journal.append({"path": Path("/x"), "none": None})
    journal.append(
        {
            "path": "/caf\udce9",
            "much": 2**100,
            "less": -(2**80),
            "flag": True,
            "list": ["\udcff", (1, 2**70)],
            "map": {"\udc80": 0.5, 3: None},
        },
        channel_id="0xc",
        move=SENT,
    )
    first, second = read_lines(journal.path)
    assert first.fields["path"] == "/x"
    assert second.move == SENT
    assert second.fields["path"] == "/caf\\udce9"
    assert (second.fields["much"], second.fields["less"]) == (str(2**100), str(-(2**80)))
    assert second.fields["flag"] is True
    assert second.fields["list"] == ["\\udcff", [1, str(2**70)]]
    assert second.fields["map"] == {"\\udc80": 0.5, "3": None}


# -- torn and damaged lines


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    journal = Journal(tmp_path, "me", "boot")
    journal.append({}, channel_id="0xc", move=SENT)
    journal.append({}, channel_id="0xc", move=ENDED)
    journal.close()
    return journal.path


def test_a_last_line_cut_at_any_byte_is_not_read(whole: Path) -> None:
    data = whole.read_bytes()
    first = data.index(b"\n") + 1
    for size in range(len(data)):
        whole.write_bytes(data[:size])
        found = [line.move for line in read_lines(whole)]
        assert found == ([SENT] if size >= first else []), size
    whole.write_bytes(data)
    assert [line.move for line in read_lines(whole)] == [SENT, ENDED]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\x00\x00\x00",
        b"{}",
        b"[1, 2]",
        b"null",
        b'"n"',
        b'{"n": "2"}',
        b'{"n": true}',
        b'{"n": 2.0}',
        b'{"n": 2, "move": null}',
        b'{"n": 2, "move": {}}',
        b'{"n": 2, "move": {"kind": "stolen"}}',
        b'{"n": 2, "move": {"kind": "ended", "request": "r", "ending": "lucky", "at": 1, "spent": null}}',
        b'{"n": 2, "move": {"kind": "probed", "seq": 1, "sent_at": 1, "at": 1, "spent": "1e3", "voucher": "1"}}',
        b"\xff\xfe",
    ],
)
def test_a_line_that_says_nothing_is_passed_over(whole: Path, line: bytes) -> None:
    data = whole.read_bytes()
    whole.write_bytes(line + b"\n" + data)
    assert [one.move for one in read_lines(whole)] == [SENT, ENDED]


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "none.jsonl")) == []


def test_lines_that_are_lost_are_noticed(whole: Path) -> None:
    """Otherwise what they name would be taken for free, and it may have been charged."""
    directory, data = whole.parent, whole.read_bytes()
    first, second = data.splitlines(keepends=True)
    with pytest.raises(IllegalMove, match=r"other\.jsonl is gone, but 0xc was folded up to its line 7"):
        moves_after(directory, JournalMark("other", 7, "boot"), "0xc")
    with pytest.raises(IllegalMove, match=r"ends at line 2, but 0xc was folded up to 3"):
        moves_after(directory, JournalMark("me", 3, "boot"), "0xc")
    damaged = first.replace(b'"n":1', b'"n":\x00')
    whole.write_bytes(damaged + second)
    with pytest.raises(IllegalMove, match=r"goes from line 0 to 2: lines are lost"):
        moves_after(directory, JournalMark("me", 0, "boot"), "0xc")
    whole.write_bytes(first + first + second)
    with pytest.raises(IllegalMove, match=r"goes from line 1 to 1"):
        moves_after(directory, JournalMark("me", 0, "boot"), "0xc")


def test_a_full_disk_is_said_and_the_line_is_not_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "me", "boot")
    journal.append({}, channel_id="0xc", move=SENT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room, says in ((0, "cannot write the ledger .*free some space"), (9, "took only a part of a line")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + room, hard))
        try:
            with pytest.raises(StoreUnavailable, match=says):
                journal.append({}, channel_id="0xc", move=ENDED)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal.mark.line == 1
    assert journal.append({}, channel_id="0xc", move=ENDED) == 2
    assert moves_after(tmp_path, JournalMark("me", 0, "boot"), "0xc") == [SENT, ENDED]


_DISK_FULL = """
import json, resource, sys
from pathlib import Path
from store.account import Ended, Ending, Sent
from store.contract import StoreUnavailable
from store.journal import Journal
from store.records import Hold

journal = Journal(Path(sys.argv[1]), "me", "boot")
sent = lambda name: Sent(Hold(name, 10, 2**100, 1, 2, -1, "f"))
journal.append({}, channel_id="0xc", move=sent("before"))
whole = journal.path.stat().st_size

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

outcomes = []
for room in (int(one) for one in sys.argv[2].split(",")):
    limit(journal.path.stat().st_size + room)
    lines = journal.lines
    try:
        journal.append({}, channel_id="0xc", move=sent("torn"))
        outcomes.append("written")
    except StoreUnavailable as error:
        outcomes.append(str(error))
        assert journal.lines == lines
    limit(resource.RLIM_INFINITY)
journal.append({}, channel_id="0xc", move=Ended("before", Ending.PAID, 3))
print(json.dumps([whole, outcomes]))
"""


def _fill_the_disk(directory: Path, *rooms: int) -> tuple[int, list[str], list[object]]:
    done = subprocess.run(
        [sys.executable, "-c", _DISK_FULL, str(directory), ",".join(map(str, rooms))],
        capture_output=True,
        text=True,
        check=True,
    )
    size, outcomes = json.loads(done.stdout)
    mark = JournalMark("me", 0, "boot")
    found = moves_after(directory, mark, "0xc")
    return size, outcomes, [one.hold.request_id if isinstance(one, Sent) else "ended" for one in found]


def test_a_disk_that_fills_up_at_any_byte_of_a_line(tmp_path: Path) -> None:
    """Whoever was told that a line is not there does not find it later: not even if only its newline is missing."""
    size = _fill_the_disk(tmp_path / "probe", 0)[0]
    torn_line = size - len("before") + len("torn")
    for room in (0, 1, 2, torn_line // 2, torn_line - 2, torn_line - 1):
        _, outcomes, found = _fill_the_disk(tmp_path / str(room), room)
        assert outcomes != ["written"]
        assert "free some space" in outcomes[0]
        assert found == ["before", "ended"], room
    assert _fill_the_disk(tmp_path / "fits", torn_line)[2] == ["before", "torn", "ended"]


def test_torn_again_and_again(tmp_path: Path) -> None:
    """Also where the room is just enough to end the torn line, or to begin the next."""
    rooms = (5, 1, 2, 3, 0, 4, 150)
    _, outcomes, found = _fill_the_disk(tmp_path, *rooms)
    assert "written" not in outcomes
    assert found == ["before", "ended"]


_WRITER = """
import sys
from pathlib import Path
from store.account import Sent
from store.journal import Journal
from store.records import Hold

journal = Journal(Path(sys.argv[1]), "me", "boot")
number = 0
while True:
    number += 1
    journal.append({"pad": "x" * (number % 97)}, channel_id="0xc", move=Sent(Hold(f"r{number}", 1, 1, 1, 1, 1, "f")))
    sys.stdout.write(f"{number}\\n")  # from here on it may have left
    sys.stdout.flush()
"""


def test_no_line_is_lost_by_kill_9(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    for _ in range(300):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    rest = writer.stdout.read().splitlines(keepends=True)
    writer.wait()
    writer.stdout.close()
    told = 300 + sum(line.endswith(b"\n") for line in rest)
    found = moves_after(tmp_path, JournalMark("me", 0, "boot"), "0xc")
    ids = [one.hold.request_id for one in found if isinstance(one, Sent)]
    assert len(ids) >= told
    assert ids == [f"r{number}" for number in range(1, len(ids) + 1)]


def test_the_boot_is_known_and_stays() -> None:
    assert boot_id() == boot_id() != ""


def test_an_unknown_boot_is_like_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", refuse)
    assert boot_id() != boot_id()
    assert boot_id().startswith("unknown-")


SENT_JSON = {
    **{"kind": "sent", "request": "r1", "amount": "10", "voucher": str(2**100)},
    **{"sent_at": 1, "expires_at": 2, "seq": -1, "fingerprint": "f"},
}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"amount": 10},  # a number is as good as its digits
        {"amount": "-10"},  # would be given back by the fold
        {"amount": -10},
        {"voucher": -1},
        {"amount": "010"},
        {"amount": " 10"},
        {"amount": "1" * 41},
        {"amount": "1" * 5_000},
        {"amount": True},
        {"amount": 10.0},
        {"request": 1},
        {"request": None},
        {"fingerprint": ["f"]},
        {"sent_at": "x"},
    ],
)
def test_a_move_is_taken_only_as_it_was_written(whole: Path, changed: dict[str, object]) -> None:
    line = {"v": 1, "n": 3, "channel": "0xc", "move": {**SENT_JSON, **changed}}
    whole.write_bytes(json.dumps(line).encode() + b"\n")
    taken = repr(changed) in ("{}", "{'amount': 10}")
    assert [one.move for one in read_lines(whole)] == ([SENT] if taken else [])


@pytest.mark.parametrize(
    ("voucher", "taken"),
    [("1" * 39, True), (str(2**128 - 1), True), (str(2**128), False), ("1" * 40, False), ("1" * 41, False)],
)
def test_the_largest_amount_that_a_line_holds(whole: Path, voucher: str, taken: bool) -> None:
    move = {**SENT_JSON, "voucher": voucher}
    whole.write_bytes(json.dumps({"v": 1, "n": 3, "channel": "0xc", "move": move}).encode() + b"\n")
    assert [line.number for line in read_lines(whole)] == ([3] if taken else [])


def test_a_channel_is_named_by_text(whole: Path) -> None:
    whole.write_bytes(b'{"v":1,"n":3,"channel":7}\n{"v":1,"n":4,"channel":"0xc"}\n')
    assert [line.number for line in read_lines(whole)] == [4]


def test_a_journal_that_lost_its_head_is_not_believed(whole: Path) -> None:
    """It is the first file: what is missing before its first line was written, too."""
    _, second = whole.read_bytes().splitlines(keepends=True)
    whole.write_bytes(second)
    with pytest.raises(IllegalMove, match="goes from line 0 to 2: lines are lost"):
        moves_after(whole.parent, JournalMark("me", 2, "boot"), "0xc")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        *((number, number) for number in (0, 126, 127, 2**31, 2**63 - 1, -(2**63))),
        *((number, str(number)) for number in (2**63, -(2**63) - 1, 2**128)),
    ],
)
def test_a_number_is_written_as_text_only_where_json_cannot_carry_it(value: int, plain: object) -> None:
    assert journal._plain({"n": value, "flag": True}) == {"n": plain, "flag": True}


def test_each_line_has_its_number_however_it_is_written(tmp_path: Path) -> None:
    ledger = Journal(tmp_path, "me", "boot")
    for number in range(1, 201):
        assert ledger.append({"much": 2**100}) == number
    ledger.close()
    assert [line.number for line in read_lines(ledger.path)] == list(range(1, 201))


def test_once_closed_nothing_is_written_anywhere(tmp_path: Path) -> None:
    ledger = Journal(tmp_path, "me", "boot")
    ledger.append({})
    before = len(os.listdir("/proc/self/fd"))
    ledger.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1
    with pytest.raises(StoreUnavailable, match="is closed"):
        ledger.append({})
    assert ledger.mark.line == 1
    assert ledger.anchor.closed
