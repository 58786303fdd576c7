"""``python -m tests.hostile``: every attack through the real proxy, then so many steps of the hostile model.

Ends with 1 if a loss is over its bound, a client saw what it must not, the proxy died or hung, or the books are wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.hostile import driver, table
from tests.hostile.attack import Attack, Verdict
from tests.hostile.world import World

AT_A_TIME = 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--only", default="", help="attacks whose row or name holds this")
    parser.add_argument(
        "--mitmdump", action="store_true", help="plain mitmdump with the addon, not bursar run"
    )
    parser.add_argument("--steps", type=int, default=20_000, help="of the model; 0: none")
    parser.add_argument("--seed", type=int, default=0, help="the model's first seed")
    parser.add_argument("--no-attacks", action="store_true", help="the model only")
    chosen = parser.parse_args(arguments)
    failed = False
    if not chosen.no_attacks:
        failed = attack(chosen.only, mitmdump=chosen.mitmdump)
    if chosen.steps and not chosen.only:
        failed = driver.run(chosen.steps, chosen.seed, say) or failed
    return int(failed)


def say(line: str) -> None:
    print(line, flush=True)


def attack(only: str, *, mitmdump: bool) -> bool:
    """Did anything fail?"""
    attacks = [one for one in table.ATTACKS if only in one.name or only == one.row]
    verdicts: list[Verdict] = []
    begun = time.monotonic()
    for line in table.heading():
        say(line)
    broken = ""
    try:
        with World(attacks, mitmdump=mitmdump) as world:
            for verdict in play(world, attacks):
                verdicts.append(verdict)
                say(table.line(verdict))
                for complaint in verdict.complaints:
                    say(f"      {complaint[:1_000]}")
    except AssertionError as error:
        broken = str(error)[-4_000:]
        say(f"the books, or the proxy's log, are wrong:\n{broken}")
    say(f"{table.summary(verdicts)} ({time.monotonic() - begun:.0f} s)")
    return bool(broken) or any(not one.passed for one in verdicts)


def play(world: World, attacks: Sequence[Attack]) -> Iterator[Verdict]:
    """Some at a time: most of them wait. Those that look at clocks come one by one, in the end."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        yield from pool.map(world.play, [one for one in attacks if not one.alone])
    yield from map(world.play, [one for one in attacks if one.alone])


if __name__ == "__main__":
    sys.exit(main())
