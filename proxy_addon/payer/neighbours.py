"""The ledgers of other processes that use the same store now, read as they grow.

A client whose answer was lost may send its request again by another worker. What one process knows of requests
without an answer is in its ledger from the moment that it knows, or dies; so before a request that changes something
is taken for a new one, the others' new lines are read. While nothing is written that costs a look at each file's size.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import orjson

from proxy_addon.audit import Clock
from proxy_addon.payer.retries import KEPT_MS, TAIL_BYTES, Retries, Unknown, follow
from store.ledger_files import journals

log: Final = logging.getLogger("bursar")

MOST_AT_ONCE: Final = 16 * TAIL_BYTES
"""So much of a file is read in one look; what was written before that is passed over."""
MOST_SENT: Final = 20_000
_SETTLED_MS: Final = 100
"""A directory that was changed so lately may change again without showing another time: clocks of files are coarse."""

_SENT: Final = b'"kind":"sent"'
_ENDED: Final = b'"kind":"ended"'
_REPEATS: Final = b'"retry_of"'
_UNANSWERED: Final = b'"unanswered"'
_REQUEST: Final = re.compile(rb'"request":"([^"\\]+)"')


class Neighbours:
    """What they leave open goes into `retries`. `mine` is this process's own journal; `alive` tells of any."""

    def __init__(
        self, retries: Retries, directory: Path, *, mine: str, alive: Callable[[str], bool], now: Clock
    ) -> None:
        self._retries = retries
        self._directory = directory
        self._mine = mine
        self._alive = alive
        self._now = now
        self._listed: int | None = None  # the directory's time of change when it was last listed
        self._known: set[str] = (
            set()
        )  # journals that were there at the first look, or have been read to their end
        self._followed: dict[str, dict[Path, int]] = {}  # up to where each of a journal's files has been read
        self._whose: dict[str, str] = {}  # requests without an end yet: in which journal
        self._raw: dict[str, bytes] = {}  # their lines,
        self._sent: dict[str, Unknown] = {}  # or what those say
        self._told = False

    def look(self) -> None:
        """Read what is new. Never raises: a retry is only not recognised."""
        try:
            self._list()
            for name in list(self._followed):
                self._catch_up(name)
        except Exception as error:
            if not self._told:
                self._told = True
                log.warning(
                    "bursar: the ledgers of other processes cannot be read (%s): retries of requests that were lost"
                    " there are not recognised",
                    type(error).__name__,
                )

    def _list(self) -> None:
        try:
            changed = self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed == self._listed:
            return
        first = not self._known
        found = journals(self._directory)
        self._known.add(self._mine)
        for name, files in found.items():
            if name in self._known:
                continue
            if first and not self._alive(name):
                self._known.add(name)  # `Retries.recall` has read it
                continue
            offsets = self._followed.setdefault(name, {})
            for path in files:
                size = path.stat().st_size if first else 0
                offsets.setdefault(path, max(0, size - TAIL_BYTES))
        settled = self._now() - changed // 1_000_000 > _SETTLED_MS
        self._listed = changed if settled else None

    def _catch_up(self, name: str) -> None:
        dead = not self._alive(name)  # asked first: what it wrote before it died is read below
        offsets = self._followed[name]
        for path, offset in offsets.items():
            offsets[path] = self._read(path, offset, name)
        if dead:
            del self._followed[name]
            self._known.add(name)
            for request in [request for request, journal in self._whose.items() if journal == name]:
                if request in self._raw:
                    self._parse(request)
                one = self._sent.get(request)
                self._forget(request)
                if one is not None and one.at + KEPT_MS >= self._now():
                    self._retries.note(one)  # it has no end: its process died

    def _read(self, path: Path, offset: int, name: str) -> int:
        size = path.stat().st_size
        if size <= offset:
            return offset
        begin = max(offset, size - MOST_AT_ONCE)
        with path.open("rb") as file:
            file.seek(begin)
            *lines, rest = file.read(size - begin).split(b"\n")
        for raw in lines:
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                self._line(raw, name)
        return size - len(rest)

    def _line(self, raw: bytes, name: str) -> None:
        """Most lines are of requests that go well: those are not parsed."""
        sends = _SENT in raw
        found = _REQUEST.search(raw) if sends or _ENDED in raw else None
        if found is None:
            return
        request = found[1].decode()
        if sends:
            if len(self._whose) >= MOST_SENT:
                self._forget(next(iter(self._whose)))
            self._whose[request] = name
            if not len(self._retries) and _REPEATS not in raw:
                self._raw[request] = raw
                return
        elif request in self._raw:
            if _UNANSWERED not in raw:
                self._forget(request)
                return
            self._parse(request)
        line = orjson.loads(raw)
        follow(self._sent, self._retries, line)
        self._raw.pop(line.get("retry_of", ""), None)  # that try is not the last one any more
        if not sends:
            self._forget(request)

    def _parse(self, request: str) -> None:
        """Nothing was known to be open when this was sent, so that it has used up nothing."""
        follow(self._sent, Retries(self._now), orjson.loads(self._raw.pop(request)))

    def _forget(self, request: str) -> None:
        self._whose.pop(request, None)
        self._raw.pop(request, None)
        self._sent.pop(request, None)
