"""``python -m tests.crash --kills 10000 --seed 7``: kills, and what they did to the books. Exit code 1 for any harm."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.crash.budgets import Spending, spend_all
from tests.crash.campaign import Tally, campaign
from tests.crash.proxies import Proxied, kill_proxies


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--wallet", type=int, help="only this wallet of the campaign, to repeat what it found"
    )
    parser.add_argument("--lanes", type=int, default=2, help="wallets at a time")
    parser.add_argument("--proxies", type=int, metavar="KILLS", help="whole proxies instead, under load")
    parser.add_argument("--budget", metavar="PROCESSESxPAYMENTS", help="spend against one limit instead")
    options = parser.parse_args()
    if options.budget is not None:
        processes, _, payments = options.budget.partition("x")
        return _tell(asyncio.run(spend_all(options.seed, int(processes), int(payments))), options.seed)
    if options.proxies is not None:
        return _tell(asyncio.run(kill_proxies(options.seed, options.proxies, _so_far)), options.seed)
    tally = asyncio.run(
        campaign(options.seed, options.kills, only=options.wallet, lanes=options.lanes, say=_Progress())
    )
    code = _tell(tally, options.seed)
    if tally.harmed:
        first = min(tally.harmed)
        print(f"repeat: make crash KILLS={options.kills} SEED={options.seed} WALLET={first}")
    return code


def _tell(found: Tally | Spending | Proxied, seed: int) -> int:
    print(f"seed: {seed}")
    for line in found.lines():
        print(line)
    for violation in found.violations[:20]:
        print(f"VIOLATION {violation}")
    return 0 if found.ok else 1


def _so_far(found: Proxied) -> None:
    print(f"… {found.kills} kills, {len(found.violations)} violations", file=sys.stderr, flush=True)


class _Progress:
    """Tells what was found as soon as it was: a run of hours may be stopped before its end."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, tally: Tally) -> None:
        for violation in tally.violations[self._told :]:
            print(f"VIOLATION {violation}", file=sys.stderr, flush=True)
        self._told = len(tally.violations)
        if tally.worlds % 10 == 0:
            print(f"… {tally.killed} kills, {self._told} violations", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
