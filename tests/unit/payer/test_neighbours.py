"""What other processes leave open, read from their ledgers as they grow."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.payer import neighbours
from proxy_addon.payer.neighbours import Neighbours
from proxy_addon.payer.retries import KEPT_MS, Retries

NOW = 1_800_000_000_000
AT = "2027-01-15T08:00:00.000Z"


class Others:
    """Journals as processes write them, and which of those processes live."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.alive: set[str] = set()
        self.retries = Retries(lambda: NOW)
        self.reader = Neighbours(
            self.retries, directory, mine="me", alive=self.alive.__contains__, now=lambda: NOW
        )

    def write(self, name: str, *lines: dict[str, Any] | str, segment: int = 1) -> None:
        path = self.directory / (f"{name}.jsonl" if segment == 1 else f"{name}.{segment:04d}.jsonl")
        with path.open("a") as file:
            for line in lines:
                file.write(line if isinstance(line, str) else json.dumps(line, separators=(",", ":")) + "\n")

    def look(self) -> set[str]:
        """The fingerprints that are open."""
        self.reader.look()
        return set(self.retries._kept)


def sent(request: str, fingerprint: str, **more: Any) -> dict[str, Any]:
    where = {"host": "h", "method": "POST", "path": "/", "channel": "0xc", "amount": "10", "t": AT}
    return {
        "kind": "sent",
        "request": request,
        **where,
        "move": {"kind": "sent", "fingerprint": fingerprint},
        **more,
    }


def ended(request: str, outcome: str = "paid", **more: Any) -> dict[str, Any]:
    return {"kind": "ended", "request": request, "t": AT, "outcome": outcome, **more}


def lost(request: str, fingerprint: str) -> dict[str, Any]:
    return ended(request, "unknown", unanswered=fingerprint)


@pytest.fixture
def others(tmp_path: Path) -> Others:
    made = Others(tmp_path / "ledger")
    made.alive |= {"me", "a", "b"}
    return made


def test_as_it_grows(others: Others) -> None:
    assert others.look() == set()
    others.write("a", sent("1", "f"))
    assert others.look() == set()  # on its way
    others.write("a", lost("1", "f"))
    assert others.look() == {"f"}
    others.write("b", sent("2", "f", retry_of="1"))
    assert others.look() == set()  # used up by another neighbour
    others.write("b", lost("2", "f"))
    assert others.look() == {"f"}
    one = others.retries.find("f")
    assert one is not None
    assert (one.first, one.request_id) == ("1", "2")
    others.write("b", sent("3", "f", retry_of="1"), ended("3", "free"))
    assert others.look() == {"f"}  # that did nothing
    others.write("b", sent("4", "f", retry_of="1"), ended("4"))
    assert others.look() == set()


def test_half_a_line_is_read_when_it_is_whole(others: Others) -> None:
    text = json.dumps(lost("1", "f"), separators=(",", ":"))
    others.write("a", sent("1", "f"), text[:20])
    assert others.look() == set()
    others.write("a", text[20:])
    assert others.look() == set()
    others.write("a", "\n")
    assert others.look() == {"f"}


def test_what_was_on_its_way_when_its_process_died(others: Others) -> None:
    others.write("a", sent("1", "f"), sent("2", "g"), ended("2"), sent("3", "h"))
    assert others.look() == set()
    others.write("a", lost("3", "h"), sent("4", "i"))
    others.alive.discard("a")
    assert others.look() == {"f", "h", "i"}
    assert not others.reader._whose
    assert not others.reader._raw
    assert not others.reader._sent


def test_a_retry_of_what_a_dead_process_had_on_its_way(others: Others) -> None:
    others.write("a", sent("1", "f"))
    others.look()
    others.write("b", sent("2", "f", retry_of="1"), ended("2"))
    others.look()
    others.alive.discard("a")
    assert others.look() == set()


def test_one_that_came_and_died_between_two_looks(others: Others) -> None:
    others.look()
    others.write("c", sent("1", "f"))
    assert others.look() == {"f"}
    assert not others.reader._followed.keys() - {"a", "b"}


def test_one_that_was_dead_before_is_left_to_the_start(others: Others) -> None:
    others.write("old", sent("1", "f"))
    assert others.look() == set()


def test_a_further_file(others: Others) -> None:
    others.write("a", sent("1", "f"))
    others.look()
    others.write("a", lost("1", "f"), segment=2)
    assert others.look() == {"f"}


def test_what_is_old_is_left_alone(others: Others) -> None:
    others.write("a", sent("1", "f", t="2027-01-15T06:59:59.999Z"))
    others.look()
    others.alive.discard("a")
    assert KEPT_MS == 3_600_000
    assert others.look() == set()


def test_my_own_lines_are_not_read(others: Others) -> None:
    others.write("me", sent("1", "f"), lost("1", "f"))
    assert others.look() == set()


@pytest.mark.parametrize(
    "junk",
    ["not JSON\n", '{"kind":"sent"}\n', '{"kind":"ended","request":"1","unanswered":"f"\n', "~\n", "\n"],
)
def test_lines_that_say_nothing_do_no_harm(others: Others, junk: str) -> None:
    others.write("a", junk, sent("1", "f"), junk, lost("1", "f"), junk)
    assert others.look() == {"f"}


def test_too_much_at_once(others: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MOST_AT_ONCE", 1000)
    monkeypatch.setattr(neighbours, "MOST_SENT", 3)
    others.look()
    others.write("a", *(sent(str(number), f"f{number}") for number in range(50)))
    others.look()
    assert len(others.reader._whose) == 3
    others.write("a", lost("49", "f49"))
    assert others.look() == {"f49"}


def test_a_directory_that_cannot_be_read(others: Others, caplog: pytest.LogCaptureFixture) -> None:
    others.write("a", sent("1", "f"))
    others.look()
    os.remove(others.directory / "a.jsonl")
    assert others.look() == set()
    others.look()
    assert caplog.text.count("are not recognised") == 1


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_looking_often_seldom_or_only_at_the_start_finds_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    often, seldom = (Others(tmp_path_factory.mktemp(name) / "ledger") for name in ("often", "seldom"))
    for each in (often, seldom):
        each.alive |= {"me", "a"}
        each.look()
    on_its_way: dict[str, str] = {}
    for number in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()) and on_its_way:
            request = data.draw(st.sampled_from(sorted(on_its_way)))
            fingerprint = on_its_way.pop(request)
            line = data.draw(
                st.sampled_from([ended(request), ended(request, "free"), lost(request, fingerprint)])
            )
        else:
            request, fingerprint = str(number), data.draw(st.sampled_from("fgh"))
            before = often.retries.find(fingerprint)
            repeats = before is not None and data.draw(st.booleans(), label="it repeats that")
            line = sent(request, fingerprint, **({"retry_of": before.first} if before and repeats else {}))
            on_its_way[request] = fingerprint
        for each in (often, seldom):
            each.write("a", line)
        often.look()
        if data.draw(st.integers(0, 4)) == 0:
            seldom.look()
    if data.draw(st.booleans()):
        for each in (often, seldom):
            each.alive.discard("a")
    os.utime(seldom.directory / "a.jsonl", ns=(NOW * 1_000_000, NOW * 1_000_000))
    start = Retries(lambda: NOW)
    start.recall(seldom.directory, seldom.alive.__contains__)
    assert often.look() == seldom.look() == set(start._kept)
    firsts = [
        {key: one.first for key, one in index._kept.items()}
        for index in (often.retries, seldom.retries, start)
    ]
    assert firsts[0] == firsts[1] == firsts[2]
