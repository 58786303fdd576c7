from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from proxy_addon.payer import closing, forcing, opening, topping
from tests.unit.payer.conftest import make_payer, payer, shop
from tests.unit.watchdog.scene import Scene

__all__ = ["make_payer", "payer", "shop"]

MakeScene = Callable[..., Scene]


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain is asked without pauses, and not waited for when it does not change."""
    for module in (opening, topping):
        monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.001)
    for module in (closing, forcing):
        monkeypatch.setattr(module, "POLL_S", 0.001)
        monkeypatch.setattr(module, "CHAIN_WAIT_S", 0.05)


@pytest.fixture
def make_scene(make_payer: Any) -> MakeScene:
    """A watchdog beside a payer's gate; see `Scene`."""

    def make(**options: Any) -> Scene:
        return Scene(make_payer(), **options)

    return make


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    return make_scene()
