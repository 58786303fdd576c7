"""All attacks, and how their outcome is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.hostile.attack import Attack, Verdict
from tests.hostile.attacks import (
    caches,
    claims,
    cuts,
    headers,
    openings,
    policies,
    refusals,
    relays,
    smuggling,
    streams,
    terms,
    websockets,
)

ATTACKS: Final[tuple[Attack, ...]] = (
    *refusals.ATTACKS,
    *terms.ATTACKS,
    *claims.ATTACKS,
    *streams.ATTACKS,
    *openings.ATTACKS,
    *relays.ATTACKS,
    *cuts.ATTACKS,
    *headers.ATTACKS,
    *smuggling.ATTACKS,
    *caches.ATTACKS,
    *websockets.ATTACKS,
    *policies.ATTACKS,
)
QUICK: Final = tuple(attack for attack in ATTACKS if attack.quick)

_ATTACK: Final = max(len(one.name) for one in ATTACKS) + 5
_LIMIT: Final = 58


def _row(attack: str, limit: str, loss: object, verdict: str) -> str:
    return f"{attack:{_ATTACK}} | {limit:{_LIMIT}} | {loss:>9} | {verdict}"


def heading() -> Iterator[str]:
    yield "loss: what the server could settle, less what it delivered at its price. All in base units."
    yield _row("attack", "limit", "loss", "verdict")


def line(verdict: Verdict) -> str:
    attack = verdict.attack
    limit = attack.bound.shown(attack.whole_limits)
    if verdict.bound:
        limit += f" = {verdict.bound}"
    outcome = ("exact" if attack.exact else "ok") if verdict.passed else "FAILED"
    return _row(f"{attack.row:4} {attack.name}", limit, verdict.loss, outcome)


def summary(verdicts: list[Verdict]) -> str:
    failed = sum(not one.passed for one in verdicts)
    exact = sum(one.attack.exact for one in verdicts)
    loss, bound = sum(one.loss for one in verdicts), sum(one.bound for one in verdicts)
    return (
        f"{len(verdicts)} attacks, {sum(one.upstream for one in verdicts)} requests upstream: {failed} failed;"
        f" {loss} base units lost of {bound} that the limits allow, {exact} at their limit to the unit"
    )
