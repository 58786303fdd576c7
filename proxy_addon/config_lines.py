"""Which line of the config file a key is on, so that an error can point at it.

A reader of headers and keys, not of values: it needs no more of TOML than the file that has been parsed already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_HEADER: Final = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_KEY: Final = re.compile(r"\s*(?:\"([^\"]+)\"|'([^']+)'|([A-Za-z0-9_-]+))\s*=")
_PART: Final = re.compile(r"\"([^\"]+)\"|'([^']+)'|([A-Za-z0-9_-]+)")
_NAMED: Final = re.compile(
    r"(?<![\w\[])(?:policy|watchdog|limits|breaker|proxy|wallet|store)(?:\.\w+(?:\[\d+\])?)+"
)


def lines_of(text: str) -> dict[str, int]:
    """``policy.hosts[0].max_price`` → 41, for every table and key that is written one a line."""
    found: dict[str, int] = {}
    counts: dict[str, int] = {}
    table = ""
    depth = 0  # inside an array that goes over several lines
    for number, line in enumerate(text.splitlines(), 1):
        if depth == 0 and (header := _HEADER.match(line)) and "=" not in header[2]:
            name = ".".join(a or b or c for a, b, c in _PART.findall(header[2]))
            if header[1] == "[[":
                counts[name] = counts.get(name, -1) + 1
                name = f"{name}[{counts[name]}]"
            else:
                name = _within(name, counts)
            table = name
            found[name] = number
        elif depth == 0 and (key := _KEY.match(line)):
            name = next(part for part in key.groups() if part)
            found[f"{table}.{name}" if table else name] = number
        depth = max(0, depth + _opened(line)) if "=" in line or depth else 0
    return found


def _within(name: str, counts: Mapping[str, int]) -> str:
    """A table of the newest entry of an array of tables."""
    for parent, count in counts.items():
        if name.startswith(f"{parent}."):
            return f"{parent}[{count}]{name.removeprefix(parent)}"
    return name


def _opened(line: str) -> int:
    """Brackets that this line leaves open; those in strings and comments do not count."""
    bare = re.sub(r"\"(?:\\.|[^\"\\])*\"|'[^']*'", "", line).partition("#")[0]
    value = bare.partition("=")[2] if "=" in bare else bare
    return value.count("[") - value.count("]")


class Locator:
    """Adds to a message where the keys are that it names."""

    def __init__(self, path: Path, lines: Mapping[str, int]) -> None:
        self._name = path.name
        self._lines = lines

    def __call__(self, message: str) -> str:
        """``… (policy.hosts[0]); …`` → ``… (policy.hosts[0]); … [config.toml:41]``."""
        lines = [self._line(name) for name in _NAMED.findall(message)]
        places = dict.fromkeys(f"{self._name}:{line}" for line in lines if line)
        return f"{message} [{', '.join(places)}]" if places else message

    def _line(self, name: str) -> int | None:
        """Where the key is; one that is left to its default, where its table is."""
        return self._lines.get(name) or self._lines.get(name.rpartition(".")[0])
