"""The quick attacks, through one real proxy; all of them: ``make hostile``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.attack import Attack
from tests.hostile.table import ATTACKS, QUICK
from tests.hostile.world import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(QUICK) as running:  # on its way out it looks at all the books
        yield running


@pytest.mark.parametrize("attack", QUICK, ids=[one.name.replace(" ", "-") for one in QUICK])
def test_what_it_takes_is_bounded(world: World, attack: Attack) -> None:
    verdict = world.play(attack, check_others=False)
    assert not verdict.complaints, verdict.complaints
    assert verdict.loss <= verdict.bound


def test_others_are_served_all_the_same(world: World) -> None:
    assert list(world.unwell()) == []


def test_each_attack_has_a_name_of_its_own() -> None:
    names = [one.name for one in ATTACKS]
    assert len(set(names)) == len(names)
    assert {"A1", "A2", "A3", "A4", "A5", "A6", "A7", "A10", "A11", "A13", "F6", "F7"} <= {
        one.row for one in QUICK
    }


def test_a_peer_that_takes_more_is_noticed(world: World) -> None:
    """The measure itself: with a bound below what it really takes, an attack fails."""
    import dataclasses

    from tests.hostile.attack import NOTHING

    taken = next(one for one in QUICK if one.name.startswith("502 for the money"))
    harmless = dataclasses.replace(taken, bound=NOTHING, exact=False, play=lambda stage: None)
    verdict = world.play(harmless, check_others=False)
    assert verdict.loss > 0
    assert any("over the bound of 0" in complaint for complaint in verdict.complaints)
