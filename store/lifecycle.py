"""The states of a channel, and which may follow which.

The rules, first:

- A channel is *proposed* in the store before its opening transaction leaves; nothing is opened that is not
  on record.
- Once the opening transaction may have left, only the chain decides whether it landed. An answer from the
  server, of whatever kind, never makes it *failed*.
- Nothing is signed for a channel that is not *open* (or whose opening is on its way).
- *closed* and *failed* are final, and stay on record as tombstones. So does *moved*, unless the channel is moved
  back: it and its deposit are another store's.
- A channel *set aside* is never dispatched on again; its deposit is still ours to recover.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class ChannelStatus(StrEnum):
    PROPOSED = "proposed"
    SENT = "sent"
    UNKNOWN = "unknown"
    OPEN = "open"
    DRAINING = "draining"
    CLOSING = "closing"
    ASIDE = "aside"
    CLOSED = "closed"
    FAILED = "failed"
    MOVED = "moved"


_S = ChannelStatus

TRANSITIONS: Final[dict[ChannelStatus, frozenset[ChannelStatus]]] = {
    # The step to "sent" is a line of the ledger; the record may learn of it together with the outcome.
    _S.PROPOSED: frozenset({_S.SENT, _S.OPEN, _S.UNKNOWN, _S.FAILED, _S.CLOSED}),
    _S.SENT: frozenset({_S.OPEN, _S.UNKNOWN, _S.FAILED, _S.CLOSED}),
    _S.UNKNOWN: frozenset({_S.OPEN, _S.FAILED, _S.CLOSED}),
    _S.OPEN: frozenset({_S.DRAINING, _S.ASIDE, _S.CLOSED, _S.MOVED}),
    _S.DRAINING: frozenset({_S.OPEN, _S.CLOSING, _S.ASIDE, _S.CLOSED}),
    _S.CLOSING: frozenset({_S.ASIDE, _S.CLOSED}),
    _S.ASIDE: frozenset({_S.CLOSING, _S.CLOSED}),
    _S.CLOSED: frozenset(),
    _S.FAILED: frozenset(),
    _S.MOVED: frozenset({_S.OPEN, _S.ASIDE}),
}

PENDING_OPEN: Final = frozenset({_S.PROPOSED, _S.SENT, _S.UNKNOWN})
"""An opening is on its way: at most one such channel per scope."""

REUSABLE: Final = frozenset({_S.PROPOSED, _S.SENT, _S.UNKNOWN, _S.OPEN})
"""What a look-up by scope may return."""

FINAL: Final = frozenset({_S.CLOSED, _S.FAILED, _S.MOVED})
"""Tombstones: nothing is left in the escrow that is to be brought home from this store."""


class IllegalTransition(ValueError):
    """A status was to follow one that it may not follow. The record is unchanged."""


def advance(current: ChannelStatus, following: ChannelStatus) -> ChannelStatus:
    """`following`, if it may follow `current` (staying is no move, and legal)."""
    if following is not current and following not in TRANSITIONS[current]:
        raise IllegalTransition(f"a channel that is {current} cannot become {following}")
    return following
