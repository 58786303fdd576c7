"""The harness itself: one small row through the real proxy, and its refusal to report what the books contradict."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from bench import __main__ as command
from bench.groups import Group
from bench.homes import Charged, Home, check_books
from bench.latency import one_opening
from bench.processes import Failed
from bench.rows import Row
from bench.world import World, world


@pytest.fixture(scope="module")
def surroundings() -> Iterator[World]:
    with world(quick=True) as one:
        yield one


@pytest.fixture(scope="module")
def measured(surroundings: World, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What ``python -m bench --quick --only openings`` writes."""
    out: Path = tmp_path_factory.mktemp("bench") / "results.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "GROUPS", {"openings": Group(one_opening, ("cold-",))})
        patch.setattr(command, "world", lambda **_: contextlib.nullcontext(surroundings))
        assert command.main(["--only", "openings", "--quick", "--out", str(out)]) == 0
    rows: list[dict[str, Any]] = json.loads(out.read_text())
    return rows


@pytest.fixture(scope="module")
def said(surroundings: World, measured: list[dict[str, Any]]) -> str:
    """What the ledger command writes after that run; once, since its process takes a while to start."""
    assert measured
    return surroundings.homes[-1].bursar("ledger", "--sum", "--json").stdout


def test_a_row_is_measured_and_written(measured: list[dict[str, Any]]) -> None:
    rows = {row["name"]: row for row in measured}
    assert rows.keys() == {"cold-openings", "cold-requests"}
    assert all(row.keys() >= {"name", "value", "goal", "ok"} for row in measured)
    assert (rows["cold-openings"]["value"], rows["cold-openings"]["ok"]) == (1, True)
    assert rows["cold-requests"]["value"] >= 1


@pytest.mark.parametrize(
    ("amount", "requests", "left"),
    [(1, 0, False), (0, 1, False), (-1, 0, False), (1, 1, True), (-1, -1, True)],
    ids=["more", "more-requests", "less", "more-than-known", "less-than-paid"],
)
def test_books_that_do_not_agree_are_no_figure(
    surroundings: World, said: str, amount: int, requests: int, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = surroundings.homes[-1]
    answers = {"ledger": said, "channels": '[{"uncertain": "0"}]'}
    monkeypatch.setattr(Home, "bursar", lambda _, command, *__: CompletedProcess([], 0, answers[command], ""))
    account = surroundings.account(home)
    surroundings.agree(home)
    with pytest.raises(Failed, match="do not agree"):
        check_books(home, Charged(account["spent"] + amount, account["units"] + requests), left=left)


def test_a_ledger_that_its_own_command_refuses_is_no_figure(
    surroundings: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CompletedProcess([], 4, "{}", "channel 0x01: the ledger has 2 paid, the store 1")
    monkeypatch.setattr(Home, "bursar", lambda *_: done)
    with pytest.raises(Failed, match="the store 1"):
        check_books(surroundings.home(), Charged(0, 0))


def test_an_answer_that_is_no_200_is_no_figure(surroundings: World) -> None:
    port = int(surroundings.base.rpartition(":")[2])
    with pytest.raises(Failed, match="402"):
        surroundings.run(port, f"{surroundings.base}/paid", direct=True, connections=1, requests=2)


def test_a_run_that_failed_has_no_figures_and_the_others_have(
    surroundings: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bad(_: World) -> list[Row]:
        raise Failed("the books do not agree: on purpose")

    good = Group(lambda _: [Row("good", "good", 9.0, 1.0, "less")], ("good",))
    names = {"good": good, "bad": Group(bad, ("bad",))}
    monkeypatch.setattr(command, "GROUPS", names)
    monkeypatch.setattr(command, "chosen", lambda _: list(names))
    monkeypatch.setattr(command, "world", lambda **_: contextlib.nullcontext(surroundings))
    out = tmp_path / "results.json"
    assert command.main(["--out", str(out)]) == 1
    assert [row["name"] for row in json.loads(out.read_text())] == ["good"]
    assert "bad: no figures: the books do not agree: on purpose" in capsys.readouterr().err
    names.pop("bad")
    assert command.main(["--out", str(out)]) == 0  # however far it is from its goal
