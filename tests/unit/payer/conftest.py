from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.payer.shop import Payer, Shop

MakePayer = Callable[..., Payer]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture
async def make_payer(shop: Shop, tmp_path: Path) -> AsyncIterator[MakePayer]:
    """Payers whose books are checked in the end."""
    made: list[Payer] = []

    def make(**options: Any) -> Payer:
        made.append(Payer(shop, tmp_path, **options))
        return made[-1]

    yield make
    for payer in made:
        await payer.close()


@pytest.fixture
def payer(make_payer: MakePayer) -> Payer:
    return make_payer()
