from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import groups, plots, report
from bench.rows import Better, Row, missing, of_rounds


@pytest.mark.parametrize(
    ("value", "better", "goal", "ok"),
    [
        (1.0, "less", 1.0, True),
        (1.01, "less", 1.0, False),
        (1.25, "more", 1.25, True),
        (1.24, "more", 1.25, False),
        (-3.0, "less", 1.0, True),
        (None, "less", 1.0, None),
        (5.0, "", None, None),
    ],
)
def test_a_goal_is_a_bound_of_one_side(
    value: float | None, better: Better, goal: float | None, ok: bool | None
) -> None:
    assert Row("a", "A", value, goal, better).ok is ok


def test_rounds_give_their_median_and_their_range() -> None:
    row = of_rounds("a", "A", [3.0, 1.0, 9.0], goal=2.0, better="less")
    assert (row.value, row.spread, row.ok) == (3.0, (1.0, 9.0), False)


def test_the_json_has_what_was_and_what_was_not_measured(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    rows = [
        Row("a", "A", 1.5, 1.25, "more", "×"),
        missing("b", "B", "no such option", goal=1.8, better="more"),
    ]
    report.write_json(path, rows)
    first, second = json.loads(path.read_text())
    assert {"name": "a", "value": 1.5, "goal": 1.25, "ok": True}.items() <= first.items()
    assert {
        "name": "b",
        "value": None,
        "goal": 1.8,
        "ok": None,
        "note": "no such option",
    }.items() <= second.items()
    assert "not available" in report.table(rows)


def test_the_table_says_what_falls_short() -> None:
    lines = report.table(
        [Row("a", "A", 1.0, 1.25, "more", "×"), Row("b", "B", 2.0, 1.25, "more", "×")]
    ).splitlines()
    assert ["**short**" in line for line in lines[2:]] == [True, False]


def test_the_page_keeps_what_people_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "PAGE", page)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    for _ in range(2):
        report.write_all([Row("x-cpu", "X", 0.5, 0.8, "less", "×")], {"cores": "2"}, quick=True)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| x-cpu") == 1
    assert (tmp_path / "performance" / "cpu.svg").is_file()


def test_the_markers_are_in_the_page() -> None:
    text = report.PAGE.read_text()
    assert text.index(report.BEGIN) < text.index(report.END)


def test_a_plot_is_an_image_with_a_bar_for_each_row() -> None:
    rows = [
        of_rounds("a-cpu", "<A>", [0.5, 0.6, 0.9], goal=0.8, better="less", unit="×"),
        Row("b-cpu", "B", -0.2, None, "", "×"),
    ]
    image = ElementTree.fromstring(plots.draw("CPU & more", rows))
    texts = [one.text for one in image.iter("{http://www.w3.org/2000/svg}text")]
    assert {"CPU & more", "a-cpu", "b-cpu", "0.60×"} <= set(texts)
    widths = [
        float(one.attrib["width"])
        for one in image.iter("{http://www.w3.org/2000/svg}rect")
        if "x" in one.attrib
    ]
    assert len(widths) == 2
    assert all(width >= 0 for width in widths)


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("", list(groups.GROUPS)),
        ("warm", ["warm"]),
        ("warm-paid-64", ["warm"]),
        ("requests-1,lookup", ["per-call", "channels"]),
    ],
)
def test_what_is_asked_for_is_measured(only: str, names: list[str]) -> None:
    assert groups.chosen(only) == names


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no measurement is named nothing"):
        groups.chosen("nothing")


def test_only_the_rows_that_were_asked_for_are_shown() -> None:
    asked = [
        name
        for name in ("warm-paid-64-cpu", "warm-paid-1-cpu", "unpaid-16-cpu", "lookup")
        if groups.wanted(Row(name, "", 1.0), "warm-paid-64,lookup")
    ]
    assert asked == ["warm-paid-64-cpu", "lookup"]
    assert groups.wanted(Row("unpaid-16-cpu", "", 1.0), "warm")
