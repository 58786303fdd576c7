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


def play(seed: int, steps: int, *, whole: bool = False) -> Counter[str]:
    """One scene, for so many steps or (unless `whole`) until it is dull. Raises what does not hold."""
    loop = VirtualLoop()
    asyncio.set_event_loop(loop)
    try:
        with listening():
            return loop.run_until_complete(_play(loop, seed, steps, whole))
    finally:
        asyncio.set_event_loop(None)
        loop.close()


async def _play(loop: VirtualLoop, seed: int, steps: int, whole: bool) -> Counter[str]:
    scene = Scene(seed, loop)
    paid = dull = 0
    try:
        for number in range(steps):
            (name,) = scene.random.choices(_NAMES, _WEIGHTS)
            try:
                await scene.step(name)
            except Exception as error:
                error.add_note(f"seed {seed}, step {number} ({name})")
                raise
            dull = dull + 1 if scene.done["vouchers"] == paid else 0
            paid = scene.done["vouchers"]
            if dull == DULL and not whole:
                break
        await scene.rest()
    finally:
        await scene.close()
    return scene.summary()


def run(steps: int, seed: int, say: Callable[[str], None]) -> bool:
    """Did anything fail?"""
    begun, told = time.monotonic(), time.monotonic()
    total: Counter[str] = Counter()
    first, done = seed, 0
    while done < steps:
        size = min(STEPS_OF_A_SCENE, steps - done)
        try:
            found = play(seed, size)
        except Exception as error:
            say(f"the model failed after {done} steps: {type(error).__name__}: {error}")
            for note in getattr(error, "__notes__", ()):
                say(f"  {note}")
            say(f"  again: python -m tests.hostile --no-attacks --steps {STEPS_OF_A_SCENE} --seed {seed}")
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
    say("  " + ", ".join(f"{count} {name}" for name, count in total.most_common()))
    return False
