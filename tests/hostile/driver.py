"""Runs the hostile model for so many steps: scene after scene, each from a seed of its own."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.hostile.scene import ACTIONS, Scene, VirtualLoop, listening

STEPS_OF_A_SCENE: Final = 500
DULL: Final = 100
"""So many steps without a voucher: its limits are used up, and the next scene has more to tell."""
_NAMES: Final = tuple(ACTIONS)
_WEIGHTS: Final = tuple(ACTIONS.values())


Change = Callable[[Scene], None]


class Failed(Exception):
    """Something did not hold: its cause says what. `steps` of `seed` lead there."""

    def __init__(self, seed: int, steps: int, name: str) -> None:
        super().__init__(f"seed {seed}, step {steps} ({name})")
        self.again = f"python -m tests.hostile --no-attacks --steps {steps} --seed {seed}"


def play(seed: int, steps: int, *, whole: bool = False, change: Change = lambda scene: None) -> Counter[str]:
    """One scene, for so many steps or (unless `whole`) until it is dull. Raises `Failed`."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        with listening():
            return loop.run_until_complete(_play(loop, seed, steps, whole, change))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _play(loop: VirtualLoop, seed: int, steps: int, whole: bool, change: Change) -> Counter[str]:
    scene = Scene(seed, loop)
    change(scene)
    number = paid = dull = 0
    name = "the beginning"
    try:
        for number in range(1, steps + 1):  # noqa: B007 (told if it fails)
            (name,) = scene.random.choices(_NAMES, _WEIGHTS)
            await scene.step(name)
            dull = dull + 1 if scene.done["vouchers"] == paid else 0
            paid = scene.done["vouchers"]
            if dull == DULL and not whole:
                break
        name = "the end"
        await scene.rest()
    except Exception as error:
        raise Failed(seed, number, name) from error
    finally:
        await scene.close()
    return scene.summary()


def run(steps: int, seed: int, say: Callable[[str], None], *, change: Change = lambda scene: None) -> bool:
    """Did anything fail?"""
    begun, told = time.monotonic(), time.monotonic()
    total: Counter[str] = Counter()
    first, done = seed, 0
    while done < steps:
        size = min(STEPS_OF_A_SCENE, steps - done)
        try:
            found = play(seed, size, change=change)
        except Failed as failed:
            say(f"the model failed after {done} steps: {failed}: {type(failed.__cause__).__name__}")
            say(f"  {failed.__cause__}")
            say(f"  again: {failed.again}")
            return True
        total += found
        done, seed = done + found["steps"], seed + 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            say(f"  {done} steps, {done / (told - begun):.0f} a second")
    seconds = time.monotonic() - begun
    say(
        f"the model: {done} steps in {seed - first} scenes from seed {first}, {seconds:.0f} s"
        f" ({done / seconds:.0f} a second): no invariant broken, no limit passed"
    )
    say("  " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in total.most_common()))
    return False
