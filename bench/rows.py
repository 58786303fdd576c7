"""What a measurement says: one row of the table, of `results.json` and of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

Better = Literal["less", "more", ""]


@dataclass(frozen=True, slots=True)
class Row:
    """`goal` is the bound of `value`, and `better` on which side it must lie; a row without a goal informs only.

    `value` is None where it could not be measured; `note` then says why. `spread` is the range of the rounds.
    """

    name: str
    title: str
    value: float | None
    goal: float | None = None
    better: Better = ""
    unit: str = ""
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """None: not measured, or nothing is asked."""
        if self.value is None or self.goal is None:
            return None
        return self.value <= self.goal if self.better == "less" else self.value >= self.goal

    @property
    def shown_goal(self) -> str:
        if self.goal is None:
            return "-"
        return f"{'≤' if self.better == 'less' else '≥'} {shown(self.goal, self.unit)}"

    @property
    def shown_value(self) -> str:
        return "not available" if self.value is None else shown(self.value, self.unit)

    @property
    def shown_spread(self) -> str:
        return "" if self.spread is None else " … ".join(shown(one) for one in self.spread)

    @property
    def verdict(self) -> str:
        return {True: "ok", False: "**short**", None: "-"}[self.ok]

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "goal": self.goal,
            "ok": self.ok,
            "better": self.better,
            "title": self.title,
            "unit": self.unit,
            "spread": list(self.spread) if self.spread is not None else None,
            "note": self.note,
        }


def shown(value: float, unit: str = "") -> str:
    if value == 0 or not math.isfinite(value):
        text = f"{value:g}"
    elif abs(value) >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"
    return f"{text} {unit}".rstrip() if unit and unit != "×" else f"{text}{unit}"


def of_rounds(name: str, title: str, values: Sequence[float], **rest: Any) -> Row:
    """The median of the rounds, and their range."""
    return Row(name, title, median(values), spread=(min(values), max(values)), **rest)


def missing(name: str, title: str, why: str, **rest: Any) -> Row:
    return Row(name, title, None, note=why, **rest)
