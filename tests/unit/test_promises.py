"""That every promise of `docs/promises.md` names a test that exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMED = re.findall(
    r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
)


def exists(file: str, name: str) -> bool:
    path = ROOT / file
    return (
        path.is_file()
        and re.search(rf"\b(?:def|class) {name}\b", path.read_text(encoding="utf-8")) is not None
    )


def test_the_table_is_read() -> None:
    assert len(NAMED) >= 13
    assert not exists("tests/unit/test_promises.py", "test_that_is_not_there")


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_promise_has_its_test(file: str, name: str) -> None:
    assert exists(file, name)
