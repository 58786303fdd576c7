"""What the ledger says, the log says too: to whom it is heard by."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from proxy_addon import audit
from proxy_addon.audit import Audit
from store.journal import Journal


class Records(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


class Alone:
    """A logger that nobody else listens to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log = logging.Logger("bursar", logging.DEBUG)
        self.log.parent = self.parent = logging.Logger("parent", logging.DEBUG)
        monkeypatch.setattr(audit, "log", self.log)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Alone:
    return Alone(monkeypatch)


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Audit]:
    journal = Journal(tmp_path / "ledger", "one", "boot")
    yield Audit(journal, lambda: 0)
    journal.close()


@pytest.mark.parametrize("on", ["log", "parent"])
@pytest.mark.parametrize(
    ("level", "heard"),
    [(logging.NOTSET, ["free", "paid", "refused"]), (logging.INFO, ["paid", "refused"]), (logging.ERROR, [])],
)
def test_who_listens_hears_all_from_its_level_on(
    alone: Alone, written: Audit, on: str, level: int, heard: list[str]
) -> None:
    handler = Records(level)
    getattr(alone, on).addHandler(handler)
    written.note("ended", "free", level=logging.DEBUG)
    written.note("ended", "paid")
    written.note("decision", "refused", level=logging.WARNING)
    assert handler.seen == heard
    lines = written.journal.path.read_bytes().splitlines()
    assert [orjson.loads(line)["message"] for line in lines] == ["free", "paid", "refused"]


def test_a_record_that_nobody_takes_is_not_made(
    alone: Alone, written: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(alone.log, "makeRecord", lambda *given, **more: made.append(given[0]))
    alone.log.addHandler(Records(logging.ERROR))
    written.note("ended", "paid")
    assert made == []


def test_without_any_handler_python_has_one_of_its_own(
    alone: Alone, written: Audit, capsys: pytest.CaptureFixture[str]
) -> None:
    written.note("decision", "refused", level=logging.WARNING)
    assert "refused" in capsys.readouterr().err


def test_a_parent_that_is_cut_off_hears_nothing(alone: Alone, written: Audit) -> None:
    handler = Records(logging.NOTSET)
    alone.parent.addHandler(handler)
    alone.log.propagate = False
    alone.log.addHandler(Records(logging.ERROR))
    written.note("ended", "paid")
    assert handler.seen == []
