"""The ledger as one sequence: every process's file, merged by time, and picked by what is asked for."""

from __future__ import annotations

import heapq
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from store import journal
from store.journal import Line, read_lines
from store.ledger_files import journal_of, journals

_AGE: Final = re.compile(r"([1-9][0-9]{0,5})([smhdw])\Z")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line, with the journal (the process) that wrote it."""

    journal: str
    line: Line

    def text(self, name: str) -> str:
        """A field as text; empty where there is none."""
        value = self.line.fields.get(name)
        return "" if value is None else str(value)

    def units(self, name: str) -> int:
        """A field of base units; 0 where there is none, or none that makes sense."""
        value = self.text(name)
        return int(value) if value.isascii() and value.isdigit() else 0

    def signed(self, name: str) -> int:
        """A field of base units that may be below zero."""
        value = self.text(name)
        digits = value.removeprefix("-")
        return int(value) if digits.isascii() and digits.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Pick:
    """Which lines. Times are as the lines have them, and compare as text; `until` is exclusive."""

    host: str | None = None
    channel: str | None = None  # an id, or how it begins
    since: str | None = None
    until: str | None = None
    kinds: frozenset[str] = frozenset()

    def takes(self, entry: Entry) -> bool:
        if self.since is not None and entry.text("t") < self.since:
            return False
        if self.until is not None and entry.text("t") >= self.until:
            return False
        if self.kinds and entry.text("kind") not in self.kinds:
            return False
        if self.channel is not None and not entry.text("channel").startswith(self.channel):
            return False
        return self.host is None or _same_host(entry.text("host"), self.host)

    @property
    def whole_channels(self) -> bool:
        """Are the lines of each picked channel complete, so that they can be compared with its record?"""
        return self.host is None and self.since is None and self.until is None and not self.kinds


def read_ledger(directory: Path) -> Iterator[Entry]:
    """All lines of all journals by time; of one journal, in the order in which they were written.

    A journal is looked into when its time has come: there is one for each process that ever ran.
    """
    waiting = deque(sorted((_first_time(files), name) for name, files in journals(directory).items()))
    reading: list[tuple[str, str, Entry, Iterator[Entry]]] = []  # by the time of each one's next line
    while waiting or reading:
        if waiting and (not reading or waiting[0][0] <= reading[0][0]):
            name = waiting.popleft()[1]
            _push(reading, name, _of_journal(directory, name))
        else:
            _, name, entry, rest = heapq.heappop(reading)
            yield entry
            _push(reading, name, rest)


def read_journal(path: Path) -> Iterator[Entry]:
    """All lines of the journal that `path` is a file of."""
    return _of_journal(path.parent, journal_of(path)[0])


def parse_time(text: str, now: datetime) -> str:
    """``2026-01-31``, ``2026-01-31T12:00``, or an age such as ``24h``, ``7d``; as the lines write times (UTC)."""
    if age := _AGE.match(text):
        moment = now - timedelta(**{_UNITS[age.group(2)]: int(age.group(1))})
    else:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _of_journal(directory: Path, name: str) -> Iterator[Entry]:
    return (Entry(name, line) for line in journal.read_journal(directory, name))


def _push(
    reading: list[tuple[str, str, Entry, Iterator[Entry]]], name: str, entries: Iterator[Entry]
) -> None:
    if (entry := next(entries, None)) is not None:
        heapq.heappush(reading, (entry.text("t"), name, entry, entries))


def _first_time(files: list[Path]) -> str:
    line = next(read_lines(files[0]), None)
    return "" if line is None else str(line.fields.get("t", ""))


def _same_host(found: str, asked: str) -> bool:
    """``api.example.com`` finds the host at any port, ``api.example.com:8443`` at that one."""
    found, asked = found.lower(), asked.lower()
    return found == asked or re.sub(r":\d+\Z", "", found) == asked
