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
    *policies.ATTACKS,
)
QUICK: Final = tuple(attack for attack in ATTACKS if attack.quick)

_COLUMNS: Final = (
    "row",
    "attack",
    "limit",
    "loss",
    "bound",
    "locked",
    "opens",
    "asked",
    "upstream",
    "s",
    "verdict",
)
_WIDTHS: Final = (4, 66, 40, 9, 10, 9, 5, 5, 8, 6, 0)
_LEFT: Final = {"row", "attack", "limit", "verdict"}


def _row(values: tuple[object, ...]) -> str:
    cells = []
    for name, width, value in zip(_COLUMNS, _WIDTHS, values, strict=True):
        text = str(value)
        cells.append(text.ljust(width) if name in _LEFT else text.rjust(width))
    return "  ".join(cells).rstrip()


def heading() -> Iterator[str]:
    yield (
        "Amounts in base units. loss: what the peer could settle, less what it delivered at its price. locked:"
        " deposits left in escrow."
    )
    yield _row(_COLUMNS)


def line(verdict: Verdict) -> str:
    attack = verdict.attack
    return _row(
        (
            attack.row,
            attack.name,
            attack.bound.shown(attack.whole_limits),
            verdict.loss,
            verdict.bound,
            verdict.locked,
            verdict.opens,
            verdict.requests,
            verdict.upstream,
            f"{verdict.seconds:.1f}",
            ("exact" if attack.exact else "ok") if verdict.passed else "FAILED",
        )
    )


def summary(verdicts: list[Verdict]) -> str:
    failed = sum(not one.passed for one in verdicts)
    exact = sum(one.attack.exact for one in verdicts)
    loss, bound = sum(one.loss for one in verdicts), sum(one.bound for one in verdicts)
    return (
        f"{len(verdicts)} attacks, {sum(one.requests for one in verdicts)} requests of clients,"
        f" {sum(one.upstream for one in verdicts)} upstream: {failed} failed;"
        f" {loss} base units lost of {bound} that the limits allow, {exact} at their limit to the unit"
    )
