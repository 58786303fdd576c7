"""What several endpoints say alike. One that lies, lags behind or follows another fork is named, not believed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from proxy_addon.core.errors import ChainUnavailable

log: Final = logging.getLogger("bursar")

T = TypeVar("T")

MOST_LAG: Final = 100
"""Blocks (about a minute on Tempo) that an endpoint may be behind another: more, and it shows the past."""


class Disagreement(ChainUnavailable):
    """Endpoints contradict each other, and no answer has as many voices as it needs. Nothing of it is believed."""


@dataclass(slots=True)
class _Voices(Generic[T]):
    """Who gave one and the same answer."""

    answer: T
    hosts: list[str] = field(default_factory=list)


async def agree(
    hosts: Sequence[str],
    ask: Callable[[int], Awaitable[T]],
    *,
    needed: int,
    unusable: type[Exception],
    what: str,
) -> T:
    """The answer that `needed` of `hosts` give, asked at the same time; the others only if the first ones fail.

    `ask` is given the number of a host, and raises `unusable` if that one has no answer. Raises `Disagreement`
    naming who said what, and `ChainUnavailable` if too few answered at all.
    """
    found: list[_Voices[T]] = []
    failures: list[str] = []
    waiting = list(range(len(hosts)))
    while waiting:
        most = max((len(one.hosts) for one in found), default=0)
        turn, waiting = waiting[: needed - most], waiting[needed - most :]
        results = await asyncio.gather(*map(ask, turn), return_exceptions=True)
        for number, result in zip(turn, results, strict=True):
            if isinstance(result, unusable):
                failures.append(f"{hosts[number]}: {result}")
            elif isinstance(result, BaseException):
                raise result
            else:
                _voices_of(found, result).hosts.append(hosts[number])
        for one in found:
            if len(one.hosts) >= needed:
                _tell_others(found, one, what)
                return one.answer
    if len(found) > 1:
        raise Disagreement(f"{what}: the endpoints contradict each other ({_told(found, failures)})")
    answered = sum(len(one.hosts) for one in found)
    raise ChainUnavailable(
        f"{what}: {answered} of the {needed} endpoints that must agree answered ({_told(found, failures)})"
    )


def firm_number(heads: Sequence[tuple[str, int]], needed: int, confirmations: int) -> int:
    """The newest block that `needed` endpoints have that are of the same time, less `confirmations`.

    Of the highest number that each says: one that invents a higher one is not followed, and one that says a much
    lower one is not waited for. Raises `Disagreement` naming two if there are not so many of the same time.
    """
    ordered = sorted(heads, key=lambda head: -head[1])
    for start in range(len(ordered) - needed + 1):
        highest, lowest = ordered[start][1], ordered[start + needed - 1][1]
        if highest - lowest <= MOST_LAG:
            for host, number in ordered[:start]:
                log.warning("bursar: the newest block of %s is %d, that of others %d", host, number, highest)
            return max(0, lowest - confirmations)
    (first, newest), (second, other) = ordered[0], ordered[needed - 1]
    raise Disagreement(
        f"the newest block is {newest} for {first}, and {other} for {second}: one of them is behind, or lies"
    )


def _voices_of(found: list[_Voices[T]], answer: T) -> _Voices[T]:
    for one in found:
        if one.answer == answer:
            return one
    found.append(_Voices(answer))
    return found[-1]


def _tell_others(found: list[_Voices[T]], believed: _Voices[T], what: str) -> None:
    for one in found:
        if one is not believed:
            log.warning(
                "bursar: %s: %s contradicts %s, which are believed",
                what,
                ", ".join(one.hosts),
                ", ".join(believed.hosts),
            )


def _told(found: list[_Voices[T]], failures: list[str]) -> str:
    said = [f"{', '.join(one.hosts)}: {_short(one.answer)}" for one in found]
    return "; ".join((*said, *failures)) or "none was asked"


def _short(answer: object) -> str:
    text = "0x" + answer.hex() if isinstance(answer, bytes) else repr(answer)
    return text if len(text) <= 220 else f"{text[:200]}…"
