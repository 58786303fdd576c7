"""What the watchdog does for a channel that nobody uses: a table of states, decided without a clock or a socket.

The rules, first:

- What the chain has not decided yet is left to the chain, before anything else.
- A channel that has been idle for long enough is closed with the server's help.
- Where that has been tried several times and for long enough, or nothing more is paid with the channel anyway, it
  is closed by force: only where the config allows to spend the network's fees on that.
- Nothing is closed while something that was lost on the way can still become charged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from store.lifecycle import ChannelStatus
from store.records import Channel

TRIES_BEFORE_FORCE: Final = 3
"""So often has a server refused to help, or been away, in the time of this process, before it is done without."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the config says. Times in ms; 0 means never."""

    close_idle_ms: Callable[[str], int]  # of an origin
    force_after_ms: int
    max_fee: Callable[[Channel], int]  # base units, for one transaction
    every_s: float

    @property
    def may_force(self) -> bool:
        return self.force_after_ms > 0


class Step(StrEnum):
    """What comes next for a channel."""

    LEAVE = "leave"
    RESOLVE = "resolve"  # ask the chain about a transaction of ours that may be on its way
    RECOVER = "recover"  # fold in what its dead owner left
    CLOSE = "close"  # with the server's help, or what is left of that; or book an end that the chain shows
    FORCE = "force"  # the next step of doing without


def decide(
    channel: Channel, rules: Rules, *, now: int, left: bool, gone: bool, requested: bool, tries: int
) -> Step:
    """The next step for a channel that no living process owns.

    `left`: its owner died. `gone` and `requested` are what the chain says: it is closed, or its close was requested.
    `tries`: so often has a close with the server's help failed in this process.
    """
    if channel.pending is not None:
        return Step.RESOLVE
    if gone:
        return Step.CLOSE
    forced = Step.FORCE if rules.may_force else Step.LEAVE
    if requested:
        return forced  # no server helps with it any more; our money waits in the escrow
    overdue = rules.may_force and tries >= TRIES_BEFORE_FORCE
    waited = now - channel.updated_at
    match channel.status:
        case ChannelStatus.PROPOSED | ChannelStatus.SENT | ChannelStatus.UNKNOWN:
            return Step.RESOLVE
        case ChannelStatus.OPEN if left:
            return Step.RECOVER
        case ChannelStatus.OPEN:
            idle = rules.close_idle_ms(channel.scope.origin)
            if not idle or waited < idle or now < channel.eligible_at:
                return Step.LEAVE
            return Step.FORCE if overdue and waited >= idle + rules.force_after_ms else Step.CLOSE
        case ChannelStatus.DRAINING:
            return Step.CLOSE
        case ChannelStatus.CLOSING if channel.close_amount is None:
            return forced
        case ChannelStatus.CLOSING:
            return Step.FORCE if overdue and waited >= rules.force_after_ms else Step.CLOSE
        case ChannelStatus.ASIDE:
            # Its server was not to be relied on. It may still be charged for what was lost, until that is decided.
            settled = waited >= rules.force_after_ms and now >= channel.eligible_at
            return forced if settled else Step.LEAVE
        case ChannelStatus.CLOSED | ChannelStatus.FAILED | ChannelStatus.MOVED:
            return Step.LEAVE
        case _:
            assert_never(channel.status)
