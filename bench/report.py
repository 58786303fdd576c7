"""The table on the screen, `results.json`, and the generated part of the page."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench import plots
from bench.processes import ROOT
from bench.rows import Row

RESULTS: Final = ROOT / "bench" / "results.json"
PAGE: Final = ROOT / "docs" / "performance.md"
BEGIN: Final = "<!-- what `make bench` writes begins here -->"
END: Final = "<!-- and ends here -->"


def machine() -> dict[str, str]:
    """Where the figures come from."""
    node = shutil.which("node")
    found = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": " ".join(f"{one:.1f}" for one in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "mitmproxy": version("mitmproxy"),
        "coincurve": version("coincurve"),
        "lmdb": version("lmdb"),
    }
    if node is not None:
        done = subprocess.run([node, "--version"], capture_output=True, text=True, check=False)
        found["node"] = done.stdout.strip().lstrip("v")
    return found


def shown_machine(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


def table(rows: Sequence[Row]) -> str:
    """In Markdown, aligned for eyes."""
    head = ("row", "what", "value", "goal", "", "spread", "note")
    body = [
        (row.name, row.title, row.shown_value, row.shown_goal, row.verdict, row.shown_spread, row.note)
        for row in rows
    ]
    widths = [max(len(line[at]) for line in (head, *body)) for at in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join((line(head), rule, *map(line, body)))


def write_json(path: Path, rows: Sequence[Row]) -> None:
    path.write_text(json.dumps([row.as_json() for row in rows], indent=1, ensure_ascii=False) + "\n")


def write_all(rows: Sequence[Row], found: Mapping[str, str], *, quick: bool) -> None:
    write_json(RESULTS, rows)
    plots.write(rows, PAGE.parent / "performance")
    how = "small counts (`QUICK=1`)" if quick else "full counts"
    part = f"{BEGIN}\n{shown_machine(found)}; {how}.\n\n{table(rows)}\n{END}"
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + part + after)


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
