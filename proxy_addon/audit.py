"""The ledger's lines and the log's: what was decided, sent, charged, opened and closed. Nothing secret in either.

A line holds amounts in base units (as strings, since they can be larger than what JSON readers take) and in
human form, and names requests, channels and transactions by id. Credentials, vouchers' signatures, raw
transactions and receipts are never handed to this module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from store.account import Move
from store.amounts import Token
from store.contract import StoreUnavailable
from store.journal import Journal

log: Final = logging.getLogger("bursar")

Clock = Callable[[], int]  # ms since the epoch


def iso(ms: int) -> str:
    """``2026-01-31T12:00:00.123Z``."""
    second, rest = divmod(ms, 1000)
    return f"{_to_the_second(second)}.{rest:03d}Z"


@lru_cache(maxsize=4)  # each line has the time, and many are of one second
def _to_the_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def utc_date(ms: int) -> str:
    """``2026-01-31``."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """Who asked for what: the part of a ledger line that is known when the request arrives."""

    request_id: str
    client: str
    host: str
    method: str
    path: str  # without its query: queries hold secrets
    user: str | None = None  # whom the proxy's password has shown it to be, if it asks for one

    def fields(self) -> dict[str, Any]:
        fields = {
            "request": self.request_id,
            "client": self.client,
            "host": self.host,
            "method": self.method,
            "path": self.path,
        }
        return fields if self.user is None else {**fields, "user": self.user}


class Audit:
    """Writes the ledger of this process, and says the same to the log."""

    def __init__(self, journal: Journal, now: Clock) -> None:
        self.journal = journal
        self._now = now

    def move(
        self, kind: str, fields: Mapping[str, Any], *, channel_id: str | None = None, move: Move | None = None
    ) -> None:
        """A line that the account depends on. Raises `StoreUnavailable`: then nothing may leave."""
        self.journal.append({"t": iso(self._now()), "kind": kind, **fields}, channel_id=channel_id, move=move)

    def note(
        self,
        kind: str,
        message: str,
        *,
        level: int = logging.INFO,
        channel_id: str | None = None,
        move: Move | None = None,
        fields: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        """A line for people, and the same for the log. Never raises: what it tells has happened already."""
        if _is_heard(level):
            log.log(level, "%s", message)
        try:
            self.move(kind, {**(fields or {}), **more, "message": message}, channel_id=channel_id, move=move)
        except StoreUnavailable as error:
            log.error("%s", error)


def _is_heard(level: int) -> bool:
    """Does any handler take what we log at `level`? Of each payment something is said: a record that nobody takes
    would cost more than the ledger's line."""
    one: logging.Logger | None = log
    while one is not None:
        if any(level >= handler.level for handler in one.handlers):
            return True
        one = one.parent if one.propagate else None
    return not log.hasHandlers()


def amount_fields(token: Token, amount: int) -> dict[str, str]:
    """An amount as a ledger line has it."""
    return {
        "token": token.address,
        "symbol": token.symbol,
        "amount": str(amount),
        "amount_human": token.show(amount),
    }
