"""Plots of the ratios, as SVG written by hand: a bar for each row, a line where its goal is."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from bench.rows import Row, shown

PLOTS: Final = {
    "throughput": ("Throughput, × plain mitmdump", "-throughput"),
    "cpu": ("CPU of the proxy per request, × plain mitmdump", "-cpu"),
}
_LEFT: Final = 190
_WIDTH: Final = 420
_STEP: Final = 30
_COLOURS: Final = {True: "#2a7d4f", False: "#b5482a", None: "#667788"}


def write(rows: Sequence[Row], folder: Path) -> None:
    """One file for each plot that has rows."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (title, ending) in PLOTS.items():
        picked = [
            row for row in rows if row.name.endswith(ending) and row.unit == "×" and row.value is not None
        ]
        picked = [row for row in picked if not row.name.startswith("mppx")]
        if picked:
            (folder / f"{name}.svg").write_text(draw(title, picked))


def draw(title: str, rows: Sequence[Row]) -> str:
    most = (
        max(max(row.value or 0, row.goal or 0, row.spread[1] if row.spread else 0) for row in rows) * 1.05
        or 1
    )

    def x(value: float) -> float:
        return round(_LEFT + _WIDTH * max(0.0, value) / most, 1)

    height = 60 + _STEP * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 90}" height="{height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="100%" height="100%" fill="#ffffff"/><text x="10" y="22" font-size="15">{escape(title)}</text>',
        f'<line x1="{x(1)}" x2="{x(1)}" y1="34" y2="{height - 18}" stroke="#999999" stroke-dasharray="3 3"/>',
        f'<text x="{x(1)}" y="{height - 5}" text-anchor="middle" fill="#777777">plain</text>',
    ]
    for number, row in enumerate(rows):
        assert row.value is not None
        y = 40 + _STEP * number
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>')
        long = round(x(row.value) - _LEFT, 1)
        parts.append(f'<rect x="{_LEFT}" y="{y}" width="{long}" height="18" fill="{_COLOURS[row.ok]}"/>')
        if row.spread is not None:
            low, high = (x(one) for one in row.spread)
            parts.append(f'<line x1="{low}" x2="{high}" y1="{y + 9}" y2="{y + 9}" stroke="#222222"/>')
        if row.goal is not None:
            goal = x(row.goal)
            parts.append(
                f'<line x1="{goal}" x2="{goal}" y1="{y - 3}" y2="{y + 21}" stroke="#000000" stroke-width="2"/>'
            )
        parts.append(f'<text x="{_LEFT + _WIDTH + 10}" y="{y + 13}">{shown(row.value, row.unit)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
