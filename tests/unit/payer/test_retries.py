"""The index of requests whose outcome is unknown: bounded, forgetful, and filled from whatever the ledger holds."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from proxy_addon.payer import retries
from proxy_addon.payer.retries import KEPT_MS, MOST_KEPT, TAIL_BYTES, Retries, Unknown, is_open
from store.account import Ending

NOW = 1_800_000_000_000
PLACE = ("api.example", "POST", "/orders")


def unknown(fingerprint: str = "f", *, at: int = NOW, place: tuple[str, str, str] = PLACE) -> Unknown:
    return Unknown(fingerprint, "first", "last", "0xc", place, 10, at)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("status", [None, 200, 402, 404, 499, 500, 503])
@pytest.mark.parametrize("ending", [None, *Ending])
def test_which_ends_leave_a_client_without_an_answer(
    ending: Ending | None, status: int | None, answered: bool
) -> None:
    in_doubt = ending in (Ending.UNKNOWN, Ending.UNDELIVERED, Ending.METERED)
    failed = status in (500, 503)
    assert is_open(ending, answered=answered, status=status) == (in_doubt and (failed or not answered))


class TestIndex:
    def test_what_is_noted_is_found_until_it_is_forgotten(self) -> None:
        index = Retries(lambda: NOW)
        assert (index.find("f"), index.at(PLACE), len(index)) == (None, False, 0)
        one = unknown()
        index.note(one)
        index.note(one)
        assert (index.find("f"), index.at(PLACE), len(index)) == (one, True, 1)
        assert index.forget("f") is one
        assert index.forget("f") is None
        assert (index.find("f"), index.at(PLACE), len(index)) == (None, False, 0)

    def test_one_place_may_have_several(self) -> None:
        index = Retries(lambda: NOW)
        for name in "ab":
            index.note(unknown(name))
        index.forget("a")
        assert index.at(PLACE)
        index.forget("b")
        assert not index.at(PLACE)

    def test_the_oldest_gives_way(self) -> None:
        index = Retries(lambda: NOW)
        for number in range(MOST_KEPT + 10):
            index.note(unknown(str(number), place=("h", "GET", str(number))))
        assert len(index) == MOST_KEPT
        assert index.find("9") is None
        assert not index.at(("h", "GET", "9"))
        assert index.find("10") is not None

    def test_after_an_hour_the_same_bytes_are_another_request(self) -> None:
        now = NOW
        index = Retries(lambda: now)
        index.note(unknown())
        now += KEPT_MS
        assert index.find("f") is not None
        now += 1
        assert index.find("f") is None
        assert not index.at(PLACE)


class Ledger:
    """Lines as the payer writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[str] = []

    def sent(
        self, request: str, fingerprint: str = "f", t: str = "2027-01-15T08:00:00.000Z", **more: Any
    ) -> None:
        fields = {
            "request": request,
            "host": PLACE[0],
            "method": PLACE[1],
            "path": PLACE[2],
            "channel": "0xc",
        }
        self.line(
            {"kind": "sent", "t": t, **fields, "amount": "10", "move": {"fingerprint": fingerprint}, **more}
        )

    def ended(self, request: str, outcome: str, **more: Any) -> None:
        self.line(
            {"kind": "ended", "t": "2027-01-15T08:00:01.000Z", "request": request, "outcome": outcome, **more}
        )

    def line(self, fields: dict[str, Any]) -> None:
        self.lines.append(json.dumps({"n": len(self.lines) + 1, **fields}))

    def write(self, end: str = "\n", *, modified: int = NOW) -> None:
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text("\n".join(self.lines) + end)
        os.utime(self.path, ns=(modified * 1_000_000, modified * 1_000_000))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger" / "p1.jsonl")


def recalled(ledger: Ledger) -> Retries:
    index = Retries(lambda: NOW)
    index.recall(ledger.path.parent)
    return index


class TestLedger:
    """2027-01-15T08:00:00Z is `NOW`."""

    def test_one_without_an_end(self, ledger: Ledger) -> None:
        ledger.sent("r1")
        ledger.write()
        assert recalled(ledger).find("f") == Unknown("f", "r1", "r1", "0xc", PLACE, 10, NOW)

    @pytest.mark.parametrize(
        ("outcome", "unanswered", "found"),
        [
            ("unknown", "f", True),
            ("undelivered", "f", True),
            ("undelivered", None, False),
            ("paid", None, False),
            ("free", None, False),
        ],
    )
    def test_one_with_an_end(self, ledger: Ledger, outcome: str, unanswered: str | None, found: bool) -> None:
        ledger.sent("r1")
        ledger.ended("r1", outcome, **({} if unanswered is None else {"unanswered": unanswered}))
        ledger.write()
        one = recalled(ledger).find("f")
        assert (one is not None) == found
        assert one is None or one.at == NOW + 1000

    def test_the_body_may_have_been_known_only_at_the_end(self, ledger: Ledger) -> None:
        ledger.sent("r1", "without its body")
        ledger.ended("r1", "unknown", unanswered="whole")
        ledger.write()
        index = recalled(ledger)
        assert index.find("without its body") is None
        assert index.find("whole") is not None

    def test_a_retry_carries_the_first_ones_key_on(self, ledger: Ledger) -> None:
        ledger.sent("r1")
        ledger.ended("r1", "unknown", unanswered="f")
        ledger.sent("r2", retry_of="r1")
        ledger.write()
        one = recalled(ledger).find("f")
        assert one is not None
        assert (one.first, one.request_id) == ("r1", "r2")

    @pytest.mark.parametrize(("outcome", "found"), [("paid", False), ("free", True)])
    def test_a_retry_that_was_answered_ends_it(self, ledger: Ledger, outcome: str, found: bool) -> None:
        ledger.sent("r1")
        ledger.sent("r2", retry_of="r1")
        ledger.ended("r2", outcome)
        ledger.write()
        one = recalled(ledger).find("f")
        assert (one is not None) == found
        assert one is None or one.first == "r1"

    def test_several_processes_one_after_the_other(self, ledger: Ledger, tmp_path: Path) -> None:
        ledger.sent("r1")
        ledger.write(modified=NOW - 1000)
        later = Ledger(tmp_path / "ledger" / "a-name-that-sorts-first.jsonl")
        later.sent("r2", retry_of="r1")
        later.ended("r2", "paid")
        later.write()
        assert len(recalled(ledger)) == 0

    def test_what_another_process_has_in_flight_is_not_open(self, ledger: Ledger) -> None:
        ledger.sent("r1")
        ledger.sent("r2", "g")
        ledger.ended("r2", "unknown", unanswered="g")
        ledger.write()
        index = Retries(lambda: NOW)
        index.recall(ledger.path.parent, lambda name: name == "p1")
        assert (index.find("f"), index.find("g") is not None) == (None, True)

    def test_what_is_old_is_left_alone(self, ledger: Ledger) -> None:
        ledger.sent("r1", t="2027-01-15T06:59:59.999Z")
        ledger.sent("r2", "g")
        ledger.write()
        index = recalled(ledger)
        assert (index.find("f"), index.find("g") is not None) == (None, True)
        ledger.write(modified=NOW - KEPT_MS - 1)
        assert len(recalled(ledger)) == 0

    def test_only_the_last_lines_are_read(self, ledger: Ledger) -> None:
        ledger.sent("r0", "early")
        ledger.line({"kind": "note", "message": "x" * TAIL_BYTES})
        ledger.sent("r1")
        ledger.write()
        index = recalled(ledger)
        assert (index.find("early"), index.find("f") is not None) == (None, True)

    @pytest.mark.parametrize(
        "junk",
        [
            "not JSON",
            "[]",
            "7",
            "{}",
            '{"kind": "sent"}',
            '{"kind": "sent", "request": "r9", "move": []}',
            '{"kind": "sent", "request": "r9", "t": "noon", "host": "", "method": "", "path": "", "amount": "1",'
            ' "channel": "c", "move": {"fingerprint": "x"}}',
            '{"kind": "ended", "request": ["r1"]}',
            '{"kind": "ended", "request": "nobody"}',
        ],
    )
    def test_lines_that_say_nothing_do_no_harm(self, ledger: Ledger, junk: str) -> None:
        ledger.lines.append(junk)
        ledger.sent("r1")
        ledger.lines.append(junk)
        ledger.write()
        index = recalled(ledger)
        assert len(index) == 1
        assert index.find("f") is not None

    def test_a_torn_line_is_none(self, ledger: Ledger) -> None:
        ledger.sent("r1")
        ledger.sent("r2", "g")
        ledger.write(end="")
        index = recalled(ledger)
        assert (index.find("f") is not None, index.find("g")) == (True, None)

    def test_no_ledger_at_all(self, tmp_path: Path) -> None:
        index = Retries(lambda: NOW)
        index.recall(tmp_path / "nowhere")
        assert len(index) == 0

    def test_one_that_cannot_be_read_is_no_reason_not_to_start(
        self, ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(path: Path) -> None:
            raise OSError("input/output error")

        ledger.sent("r1")
        ledger.write()
        monkeypatch.setattr(retries, "_tail", broken)
        assert len(recalled(ledger)) == 0
        assert "not recognised" in caplog.text
