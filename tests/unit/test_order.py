"""The order in which several test processes take the files, and what it is made from."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests import conftest

TESTS = Path(conftest.__file__).parent


class Test:
    __test__ = False

    def __init__(self, name: str) -> None:
        self.path = TESTS / name


def test_what_is_named_is_there() -> None:
    assert all((TESTS / name).is_file() for name in conftest.LONGEST)
    assert all((TESTS / name).is_dir() for name in conftest.WAITING)


def test_each_file_once_and_whole_those_that_wait_beside_those_that_compute() -> None:
    names = (
        ["e2e/a.py"] * 2 + ["unit/core/a.py"] * 3 + ["e2e/b.py"] * 3 + ["unit/core/b.py", "e2e/test_vault.py"]
    )
    items = [cast(pytest.Item, Test(name)) for name in names]
    ordered = conftest.in_turn(items)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    told = [str(item.path.relative_to(TESTS)) for item in ordered]
    files = list(dict.fromkeys(told))
    assert told == [name for file in files for name in [file] * names.count(file)]
    assert files == ["e2e/test_vault.py", "unit/core/a.py", "e2e/b.py", "unit/core/b.py", "e2e/a.py"]
