"""That every threat of `docs/threats.md` that is said to be shown names a test that exists."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest

from tests.unit.test_promises import ROOT, exists

PAGE = (ROOT / "docs" / "threats.md").read_text(encoding="utf-8")
IDS = {*(f"F{n}" for n in range(1, 11)), *(f"A{n}" for n in range(1, 16))}


class Row(NamedTuple):
    id: str
    promise: str
    status: str
    tests: list[tuple[str, str]]


def rows(page: str) -> list[Row]:
    found = []
    for line in page.splitlines():
        if re.match(r"\| [FA]\d+ \|", line):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.append(
                Row(cells[0], cells[2], cells[3], re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[4]))
            )
    return found


def complaint(row: Row) -> str | None:
    if row.status not in ("shown", "open"):
        return f"{row.id} is {row.status!r}: neither shown nor open"
    if row.status == "shown" and not row.tests:
        return f"{row.id} is said to be shown, and names no test"
    gone = [f"{file}::{name}" for file, name in row.tests if not exists(file, name)]
    return f"{row.id}: there is no {', '.join(gone)}" if gone else None


def test_every_id_has_one_row() -> None:
    assert sorted(row.id for row in rows(PAGE)) == sorted(IDS)
    assert all(row.promise for row in rows(PAGE))


@pytest.mark.parametrize("row", rows(PAGE), ids=lambda row: row.id)
def test_what_is_shown_has_its_test(row: Row) -> None:
    assert complaint(row) is None


@pytest.mark.parametrize(
    ("status", "tests"),
    [("shown", ""), ("shown", "`tests/unit/test_threats.py::test_that_is_not_there`"), ("sure", "")],
)
def test_a_claim_without_a_test_is_found(status: str, tests: str) -> None:
    (row,) = rows(f"| F1 | it rains | no harm | {status} | {tests} |")
    assert complaint(row) is not None
