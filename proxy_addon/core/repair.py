"""What a refused payment calls for: a table of decisions, and the counters that bound them.

A server that refuses may be right (our account was too rosy), late (vouchers overtook each other) or greedy.
Each way out has a count per client request, and every base unit that it authorises counts against the
per-request limit; so whatever a server answers, it ends, and within that limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, assert_never

from store.records import Channel

MAX_RESENDS: Final = 6  # repair a
HOLD_BACK_AFTER: Final = 2  # refusals of a lower voucher before further raises wait for this request
MAX_BUMPS: Final = 3  # repair c


class Way(StrEnum):
    """The way out. The letters are those of the specification of the money's moves."""

    RESEND = "a"  # a later voucher overtook ours: the current one, same hold, no new money
    ANEW = "b"  # the challenge is used up or the terms changed: decide anew with the fresh one, once
    BUMP = "c"  # the server wants a higher voucher: raise by its smallest step
    WRITE_OFF = "d"  # it says that nothing is left: believe it once, and pay this request anew
    DEPOSIT = "e"  # over the deposit: the chain knows; this channel cannot pay
    DISTRUST = "f"  # it does not take our signature, or refused the second channel too: set aside, loudly
    GONE = "g"  # the channel is closed or unknown to it: set aside, once more on another
    GIVE_UP = "x"  # the refusal goes to the client


_ANEW: Final = frozenset(
    {None, "payment-required", "payment-expired", "invalid-challenge", "session/challenge-not-found"}
)
_HIGHER: Final = frozenset({"verification-failed", "session/delta-too-small"})
_EMPTY: Final = frozenset({"session/insufficient-balance", "payment-insufficient"})
_DISTRUST: Final = frozenset({"session/invalid-signature", "session/signer-mismatch"})
_GONE: Final = frozenset({"session/channel-not-found", "session/channel-finalized"})
_MOVES: Final = frozenset({Way.DEPOSIT, Way.GONE})


@dataclass(slots=True)
class Tries:
    """What one client request has used up so far. `new_money` counts every raise made for it (base units)."""

    resends: int = 0
    anew: int = 0
    bumps: int = 0
    write_offs: int = 0
    moves: int = 0  # to another channel
    new_money: int = 0

    @property
    def repaired(self) -> bool:
        """Did it come to a repair that believes the server (c or d)?"""
        return bool(self.bumps or self.write_offs)

    def count(self, way: Way) -> None:
        """Note that `way` is taken; each may be taken so often only."""
        match way:
            case Way.RESEND:
                self.resends += 1
            case Way.ANEW:
                self.anew += 1
            case Way.BUMP:
                self.bumps += 1
            case Way.WRITE_OFF:
                self.write_offs += 1
            case Way.DEPOSIT | Way.GONE:
                self.moves += 1
            case Way.DISTRUST | Way.GIVE_UP:
                pass  # they end it
            case _:
                assert_never(way)


def way_out(
    status: int,
    kind: str | None,
    voucher: int,
    channel: Channel,
    tries: Tries,
    *,
    usable: bool = True,
    new_terms: bool = False,
    payable: bool = True,
) -> Way:
    """What the refusal `kind` of a request that carried `voucher` (cumulative) calls for.

    `usable`: the channel may still be dispatched on (another request's refusal may have ended that). `new_terms`:
    the challenge that came with the refusal asks for another price, or for another channel. `payable`: there is a
    challenge that may be paid now.
    """
    way = _way_out(status, kind, voucher < channel.issued, tries, usable=usable, new_terms=new_terms)
    if payable or way is Way.DISTRUST:
        return way
    return Way.DISTRUST if way in _MOVES else Way.GIVE_UP


def _way_out(
    status: int, kind: str | None, overtaken: bool, tries: Tries, *, usable: bool, new_terms: bool
) -> Way:
    if status == 410 or kind in _GONE or (not usable and kind not in _DISTRUST):
        return Way.GONE if tries.moves == 0 else Way.DISTRUST
    if kind in _DISTRUST:
        return Way.DISTRUST
    if kind == "session/amount-exceeds-deposit":
        return Way.DEPOSIT if tries.moves == 0 else Way.DISTRUST
    if new_terms or kind in _ANEW:  # whatever it says of the voucher, it was for other terms
        return Way.ANEW if tries.anew == 0 else Way.GIVE_UP
    if overtaken and kind in _HIGHER | _EMPTY:
        return Way.RESEND if tries.resends < MAX_RESENDS else Way.GIVE_UP
    if kind in _HIGHER:
        return Way.BUMP if tries.bumps < MAX_BUMPS else Way.GIVE_UP
    if kind in _EMPTY:
        return Way.WRITE_OFF if tries.write_offs == 0 else Way.GIVE_UP
    return Way.GIVE_UP
