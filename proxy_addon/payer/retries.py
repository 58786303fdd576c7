"""Requests whose outcome their client does not know: what recognises its own retry of one.

A client that lost an answer sends the same bytes again. That is a new request with a hold of its own; what was
lost stays counted until it is known. But it goes with the `Idempotency-Key` of the first, so that a server that
heeds it does nothing twice, and the ledger says which request it repeats.

Each entry is used up by the first request that matches it; if that ends without an answer too, it comes back.
Only so many are kept, each for an hour, and a new process reads its predecessors' last ledger lines: an old
entry must not take a new order for the repetition of one long ago.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from proxy_addon.audit import Clock
from store.account import Ending
from store.ledger_files import journals

log: Final = logging.getLogger("bursar")

MOST_KEPT: Final = 4_096
KEPT_MS: Final = 3_600_000
"""As long as the longest-lived challenge: until then at the latest it is known what a lost request did."""
TAIL_BYTES: Final = 1 << 20
MOST_FILES: Final = 16

_OPEN: Final = frozenset({Ending.UNKNOWN, Ending.UNDELIVERED, Ending.METERED})

Place = tuple[str, str, str]  # host, method, path without query


@dataclass(frozen=True, slots=True)
class Unknown:
    """A request that got no answer, or not the whole of one, or an error without a receipt."""

    fingerprint: str
    first: str  # id of the first of its tries, and the Idempotency-Key that all of them carry
    request_id: str  # of the last try
    channel_id: str
    place: Place
    amount: int  # what may have been charged for the last try; base units
    at: int  # ms


def is_open(ending: Ending | None, *, answered: bool, status: int | None) -> bool:
    """Does this end leave a client without an answer, so that it may try again, and us without a proof?

    An error of the server's without a receipt counts: clients try again after those.
    """
    return ending in _OPEN and (not answered or (status is not None and status >= 500))


class Retries:
    """The index, bounded, the oldest first out."""

    def __init__(self, now: Clock) -> None:
        self._now = now
        self._kept: OrderedDict[str, Unknown] = OrderedDict()  # by fingerprint
        self._places: Counter[Place] = Counter()

    def __len__(self) -> int:
        return len(self._kept)

    def at(self, place: Place) -> bool:
        """May a request to `place` be a retry? Then its body must be known before it is decided on."""
        return place in self._places

    def find(self, fingerprint: str) -> Unknown | None:
        one = self._kept.get(fingerprint)
        if one is not None and one.at + KEPT_MS < self._now():
            self.forget(fingerprint)
            return None
        return one

    def note(self, one: Unknown) -> None:
        self.forget(one.fingerprint)
        self._kept[one.fingerprint] = one
        self._places[one.place] += 1
        if len(self._kept) > MOST_KEPT:
            self.forget(next(iter(self._kept)))

    def forget(self, fingerprint: str) -> Unknown | None:
        one = self._kept.pop(fingerprint, None)
        if one is not None:
            self._places[one.place] -= 1
            if not self._places[one.place]:
                del self._places[one.place]
        return one

    def recall(self, directory: Path, alive: Callable[[str], bool] = lambda journal: False) -> None:
        """What other processes left open, by the last lines of their ledgers. Never raises.

        What a process that is `alive` has in flight is no more open than what we have.
        """
        try:
            self._recall(directory, alive)
        except Exception as error:  # of no consequence for money: a retry is only not recognised
            log.warning(
                "bursar: the ledger's last lines cannot be read (%s): retries of requests that were lost before this"
                " start are not recognised",
                type(error).__name__,
            )

    def _recall(self, directory: Path, alive: Callable[[str], bool]) -> None:
        oldest = self._now() - KEPT_MS
        recent = []
        for name, files in journals(directory).items():
            for number, path in enumerate(files):
                modified = path.stat().st_mtime_ns // 1_000_000
                if modified >= oldest:
                    recent.append((modified, number, path, name))
        sent: dict[str, Unknown] = {}
        in_flight: set[str] = set()
        for _, _, path, name in sorted(recent)[-MOST_FILES:]:
            before = set(sent)
            for line in _tail(path):
                with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
                    follow(sent, self, line)
            if alive(name):
                in_flight |= sent.keys() - before
        for one in sorted(sent.values(), key=lambda one: one.at):
            if one.request_id not in in_flight:  # no end: its process died
                self.note(one)
        for one in [one for one in self._kept.values() if one.at < oldest]:
            self.forget(one.fingerprint)


def follow(sent: dict[str, Unknown], retries: Retries, line: Mapping[str, Any]) -> None:
    """One more line of a ledger: into `sent` while it has no end, then into `retries` if that leaves it open."""
    match line["kind"]:
        case "sent":
            one = _unknown(line, line["move"]["fingerprint"])
            retries.forget(one.fingerprint)  # used up, until its own end is read
            if one.first != one.request_id:
                for other in [key for key, value in sent.items() if value.first == one.first]:
                    del sent[other]
            sent[one.request_id] = one
        case "ended" if line["request"] in sent:
            one = sent.pop(line["request"])
            if (fingerprint := line.get("unanswered")) is not None:
                retries.note(replace(one, fingerprint=fingerprint, at=_ms(line["t"])))
            elif line["outcome"] == Ending.FREE and one.first != one.request_id:
                retries.note(one)  # it did nothing: what it would have repeated is as open as before
        case _:
            pass


def _unknown(line: Mapping[str, Any], fingerprint: str) -> Unknown:
    return Unknown(
        fingerprint=fingerprint,
        first=line.get("retry_of") or line["request"],
        request_id=line["request"],
        channel_id=line["channel"],
        place=(line["host"], line["method"], line["path"]),
        amount=int(line["amount"]),
        at=_ms(line["t"]),
    )


def _ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _tail(path: Path) -> Iterator[Mapping[str, Any]]:
    """The last lines of a ledger file that are whole and readable."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    for raw in lines[1 if size > TAIL_BYTES else 0 : -1]:
        try:
            line = orjson.loads(raw)
        except orjson.JSONDecodeError:
            continue
        if isinstance(line, dict):
            yield line
