"""The hostile model as a state machine: what breaks it is told as the shortest way there that Hypothesis finds.

The same scene and the same attacks as in `driver`; each step draws from a seed of its own, so that any of them can be
left out. ``make nightly`` searches for hours; ``python -m tests.hostile --no-attacks`` is faster, and tells a seed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.hostile import driver
from tests.hostile.liar import PRICE
from tests.hostile.scene import ACTIONS, Scene, VirtualLoop, listening
from tests.properties.steps import taken

SEEDS = st.integers(0, 2**32 - 1)
OFTEN = ("client_begins", "answer", "stream_flows", "errand_answered")
"""These are several rules each: Hypothesis draws them all alike."""


class HostileMachine(RuleBasedStateMachine):
    """One process of ours after the other, two liars, and whatever they think of."""

    scene: Scene | None = None

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._loop = VirtualLoop()
        self._stack.callback(self._loop.close)
        self._stack.enter_context(listening())

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(work)
        finally:
            asyncio.set_event_loop(None)

    @initialize(seed=SEEDS)
    def limits(self, seed: int) -> None:
        """Those of the config, and how the two servers are tempered."""

        async def begin() -> None:
            self.scene = Scene(seed, self._loop)

        self._run(begin())

    def _step(self, name: str, seed: int) -> None:
        assert self.scene is not None
        self.scene.random.seed(seed)
        taken[type(self).__name__] += 1
        self._run(self.scene.step(name))

    def teardown(self) -> None:
        try:
            if self.scene is not None:
                try:
                    self._run(self.scene.rest())
                finally:
                    self._run(self.scene.close())
        finally:
            self._stack.close()


def _rule(name: str) -> Callable[..., None]:
    def step(self: HostileMachine, seed: int) -> None:
        self._step(name, seed)

    return step


for action in ACTIONS:
    for number in range(3 if action in OFTEN else 1):
        made = _rule(action)
        made.__name__ = action if not number else f"{action}_{number + 1}"
        setattr(HostileMachine, made.__name__, rule(seed=SEEDS)(made))


TestHostileMachine = HostileMachine.TestCase
TestHostileMachine.settings = settings(max_examples=max(8, settings().max_examples // 12))


def test_a_seed_is_played_alike_twice() -> None:
    first, second = driver.play(7, 300, whole=True), driver.play(7, 300, whole=True)
    assert first == second
    assert first["steps"] == 300
    assert first["vouchers"]


def test_a_broken_invariant_is_told_with_its_seed() -> None:
    """The measure itself: with one unit taken off a limit, the model notices, and says how to see it again."""
    told: list[str] = []

    def strict(scene: Scene) -> None:
        """As if a unit less had been allowed than is, in the end, used up."""
        for origin, limits in scene.limits.items():
            scene.limits[origin] = replace(limits, price=min(limits.price, PRICE - 1))

    assert driver.run(20_000, 3, told.append, change=strict)
    assert "the model failed after " in told[0]
    assert "over max_price 9999" in told[1]
    steps, seed = map(int, re.findall(r"--steps (\d+) --seed (\d+)", told[2])[0])
    with pytest.raises(driver.Failed) as again:
        driver.play(seed, steps, change=strict)
    assert str(again.value.__cause__) == told[1].strip()
