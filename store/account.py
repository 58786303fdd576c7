"""The moves of a channel's account: pure functions from one record to the next.

The rules, first (amounts in base units, times in ms):

- ``authorised = paid + uncertain + held + free``, each ≥ 0, and ``authorised ≤ ceiling`` (the deposit).
- ``authorised`` only rises, and only by `raise_authorised`, which a commit makes durable before anything is
  signed. Every voucher that leaves carries at most ``authorised``.
- What is raised is *reserved* until a voucher carries it (`issue`): nobody can have charged it before that. So
  ``issued = authorised − reserved`` is the highest that any voucher may have carried; it only rises, too.
- A request in flight holds its price. When it ends, the hold becomes *paid*, *uncertain* or *free*, by what
  the wire showed.
- A server's word (`receipt`) moves money between *uncertain* and *free* only, and only if its request was
  alone on the channel, so that it cannot be about anything else.
- After a crash the journal's lines run through these same functions again (`fold`); so nothing counts twice.

A move that its rule forbids raises `IllegalMove` and yields no record.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, assert_never

from store.records import Channel, Hold

UNKNOWN_MARGIN_MS: Final = 30_000
"""After its challenge expired plus this, a request that was lost on the way cannot become charged any more."""

CLEAN_UNTIL_AHEAD: Final = 50
"""So many clean answers after any write-off before money is authorised ahead again."""


class IllegalMove(ValueError):
    """The account does not allow this move; it is a bug of ours, or a record that was tampered with."""


class Ending(StrEnum):
    """What became of a hold."""

    PAID = "paid"  # a receipt, and the whole answer
    FREE = "free"  # provably not charged
    UNDELIVERED = (
        "undelivered"  # answered, but nothing proves whether it was charged, or it was not delivered whole
    )
    UNKNOWN = "unknown"  # no answer: it may still arrive and be charged until its challenge expires
    METERED = "metered"  # a stream ended: `charged` of its hold is paid, the rest is uncertain


@dataclass(frozen=True, slots=True)
class Sent:
    """Journal: a credential is about to leave."""

    hold: Hold


@dataclass(frozen=True, slots=True)
class Ended:
    """Journal: a request ended. `spent` is the receipt's, if it had one; `accepted` the voucher taken, or 0."""

    request_id: str
    ending: Ending
    at: int
    spent: int | None = None
    accepted: int = 0
    charged: int = 0  # METERED: what of the hold was delivered, or is proven to be charged


@dataclass(frozen=True, slots=True)
class Grown:
    """Journal: a metered stream is about to get a voucher for `amount` more."""

    request_id: str
    amount: int
    voucher: int


@dataclass(frozen=True, slots=True)
class Probed:
    """Journal: a request that costs nothing told what the server has charged so far."""

    seq: int  # of the channel when the probe left
    sent_at: int
    at: int
    spent: int
    voucher: int


@dataclass(frozen=True, slots=True)
class WrittenOff:
    """Journal: the server says that nothing is left of what we thought free; `amount` of it is uncertain now."""

    amount: int
    at: int


@dataclass(frozen=True, slots=True)
class Reconciled:
    """Journal: somebody asked, and takes the server's word: `amount` of what was uncertain was charged."""

    amount: int


Move = Sent | Grown | Ended | Probed | WrittenOff | Reconciled


def raise_authorised(channel: Channel, amount: int) -> Channel:
    """Allow vouchers up to `amount` more. Nothing may be signed until the returned record is durable.

    It is reserved until `issue` says that a voucher carries it.
    """
    if amount < 0:
        raise IllegalMove(f"authorised of {channel.channel_id} would fall by {-amount}")
    if channel.authorised + amount > channel.ceiling:
        raise IllegalMove(
            f"authorised of {channel.channel_id} would be {channel.authorised + amount},"
            f" over its deposit of {channel.ceiling}"
        )
    return replace(channel, authorised=channel.authorised + amount, reserved=channel.reserved + amount)


def issue(channel: Channel, amount: int) -> Channel:
    """The next voucher carries `amount` more than the last: out of what is reserved. It must be durable by now."""
    if not 0 <= amount <= channel.reserved:
        raise IllegalMove(f"{channel.channel_id} has {channel.reserved} reserved, not {amount}")
    return replace(channel, reserved=channel.reserved - amount)


def hold(
    channel: Channel,
    request_id: str,
    amount: int,
    *,
    voucher: int,
    sent_at: int,
    expires_at: int,
    fingerprint: str,
) -> tuple[Channel, Hold]:
    """Keep `amount` of what the voucher covers for one request; commits nothing, signs nothing."""
    if amount < 0 or amount > channel.spare:
        raise IllegalMove(f"{channel.channel_id} has {channel.spare} to spare, not {amount}")
    seq = channel.seq + 1
    held = Hold(
        request_id=request_id,
        amount=amount,
        voucher=voucher,
        sent_at=sent_at,
        expires_at=expires_at,
        seq=-1 if channel.holds else seq,
        fingerprint=fingerprint,
    )
    holds = {**channel.holds, request_id: held}
    return replace(channel, seq=seq, holds=holds, held=channel.held + amount), held


def grow(channel: Channel, move: Grown) -> Channel:
    """A stream's hold takes `amount` more of what the voucher that goes out next covers."""
    old = _find(channel, move.request_id)
    if move.amount < 0 or move.amount > channel.spare:
        raise IllegalMove(f"{channel.channel_id} has {channel.spare} to spare, not {move.amount}")
    return _grown(channel, old, move)


def restamp(channel: Channel, request_id: str, *, voucher: int, expires_at: int) -> tuple[Channel, Hold]:
    """The same hold, sent once more with another voucher or challenge: no new money."""
    old = _find(channel, request_id)
    new = replace(old, voucher=voucher, expires_at=max(expires_at, old.expires_at))
    return replace(channel, holds={**channel.holds, request_id: new}), new


def end(channel: Channel, move: Ended) -> Channel:
    """Apply an ending, and then what its receipt says."""
    ended = _find(channel, move.request_id)
    holds = {key: value for key, value in channel.holds.items() if key != move.request_id}
    # One new record for all that changes: making one is what an ending costs.
    changed: dict[str, Any] = {"holds": holds, "held": channel.held - ended.amount}
    doubt = (0, 0)  # how much, and when it is eligible
    match move.ending:
        case Ending.PAID:
            changed["paid"] = channel.paid + ended.amount
        case Ending.FREE:
            pass
        case Ending.UNDELIVERED:
            doubt = (ended.amount, _after(ended, move))
        case Ending.UNKNOWN:
            doubt = (ended.amount, ended.expires_at + UNKNOWN_MARGIN_MS)
        case Ending.METERED:
            charged = max(0, min(move.charged, ended.amount))
            changed["paid"] = channel.paid + charged
            doubt = (ended.amount - charged, _after(ended, move))
        case _:
            assert_never(move.ending)
    if move.accepted:
        changed["accepted"] = max(channel.accepted, min(move.accepted, channel.issued))
        if move.ending is not Ending.FREE:  # a voucher that was taken for nothing is no sign of health
            changed["clean_needed"] = max(0, channel.clean_needed - (move.ending is Ending.PAID))
            changed["bad_rows"] = 0
    channel = _doubt(replace(channel, **changed), *doubt)
    if move.spent is not None:
        channel = _receipt(channel, move.spent, seq=ended.seq, sent_at=ended.sent_at, at=move.at)
    return channel


def probed(channel: Channel, move: Probed) -> Channel:
    """What a probe that was alone on the channel says; a probe costs nothing and holds nothing."""
    channel = replace(channel, accepted=max(channel.accepted, min(move.voucher, channel.issued)))
    return _receipt(channel, move.spent, seq=move.seq, sent_at=move.sent_at, at=move.at)


def proven_accepted(channel: Channel, voucher: int) -> Channel:
    """Our own signature shows that the server has `voucher` (cumulative): knowledge, no money."""
    if voucher > channel.authorised:
        raise IllegalMove(f"{channel.channel_id} has {channel.authorised} authorised, not {voucher}")
    return replace(_carried(channel, voucher), accepted=max(channel.accepted, voucher))


def write_off(channel: Channel, amount: int, at: int) -> Channel:
    """Our account was too rosy: at most `amount` of what we thought free may have been charged.

    What no voucher has carried cannot have been.
    """
    moved = min(amount, channel.spare)
    if moved <= 0:
        return channel
    return replace(_doubt(channel, moved, at), clean_needed=CLEAN_UNTIL_AHEAD)


def reconciled(channel: Channel, amount: int) -> Channel:
    """`amount` of what is uncertain is paid: known by a person's decision, never by a server's word alone."""
    if not 0 <= amount <= channel.uncertain:
        raise IllegalMove(f"{channel.channel_id} has {channel.uncertain} uncertain, not {amount}")
    return replace(channel, paid=channel.paid + amount, uncertain=channel.uncertain - amount)


def proven_settled(channel: Channel, settled: int) -> Channel:
    """The chain has `settled` (cumulative): so a voucher has carried it."""
    return replace(_carried(channel, settled), settled=settled)


def learn_delta(channel: Channel, voucher: int, per_request: int) -> Channel:
    """The server called the step to `voucher` too small: remember what it takes.

    A voucher that it never took teaches its smallest step, up to a quarter of the per-request limit. One that
    it took before teaches, the second time, that it does not take the same voucher twice.
    """
    if voucher > channel.accepted:
        learned = min(per_request // 4, 2 * (voucher - channel.accepted))
        return replace(channel, min_delta=max(channel.min_delta, learned))
    strikes = channel.delta_strikes + 1
    return replace(channel, delta_strikes=strikes, equal_refused=channel.equal_refused or strikes >= 2)


def count_bad_row(channel: Channel, dispatched_at: int, at: int) -> Channel:
    """A client request ended unpaid although we believed the server (repairs c, d). See `is_spoiled`."""
    if dispatched_at <= channel.bad_row_at:
        return channel  # it overlapped the one before: the same trouble, seen twice
    return replace(channel, bad_rows=channel.bad_rows + 1, bad_row_at=at)


def is_spoiled(channel: Channel) -> bool:
    """Two such requests, one after the other: the channel is no good to either side."""
    return channel.bad_rows >= 2


def apply(channel: Channel, move: Move) -> Channel:
    """One journal line. In a replay a hold may exceed what is free for a moment; `fold` checks the end."""
    match move:
        case Sent(held):
            channel = _carried(channel, held.voucher)
            if held.request_id in channel.holds:  # sent again under the same hold
                return replace(channel, holds={**channel.holds, held.request_id: held})
            return _with_hold(replace(channel, seq=channel.seq + 1), held)
        case Grown():
            channel = _carried(channel, move.voucher)
            growing = channel.holds.get(move.request_id)
            return channel if growing is None else _grown(channel, growing, move)
        case Ended():
            # A line of a hold that the record has ended already says nothing new.
            return end(channel, move) if move.request_id in channel.holds else channel
        case Probed():
            return probed(channel, move)
        case WrittenOff():
            return write_off(channel, move.amount, move.at)
        case Reconciled():
            return reconciled(channel, move.amount)
        case _:
            assert_never(move)


def fold(channel: Channel, moves: Iterable[Move]) -> Channel:
    """What the last owner's journal adds to its record after a crash in the same run of the machine.

    Requests that were sent and have no ending may have been charged: they become uncertain, not free.
    Raises `IllegalMove` if the lines contradict the record; the caller then uses `doubt_everything`.
    """
    for move in moves:
        channel = apply(channel, move)
    for held in tuple(channel.holds.values()):
        channel = end(channel, Ended(held.request_id, Ending.UNKNOWN, at=held.sent_at))
    check(channel)
    return channel


def doubt_everything(channel: Channel, eligible_at: int) -> Channel:
    """After a power cut, or with a journal that makes no sense: all that was not paid may have been charged."""
    channel = replace(channel, holds={}, held=0)
    check(channel)  # before: what is broken must not come out looking whole
    return _doubt(replace(channel, reserved=0), channel.free, eligible_at)


def assume_authorised(channel: Channel, authorised: int, eligible_at: int) -> Channel:
    """More may have left than the record knows of (it is an old copy): vouchers of up to `authorised`.

    Nothing of it is free: all that was not paid may have been charged. Raises `IllegalMove` over the deposit.
    """
    channel = doubt_everything(channel, eligible_at)
    raised = max(0, authorised - channel.authorised)
    return _doubt(issue(raise_authorised(channel, raised), raised), raised, eligible_at)


def check(channel: Channel) -> None:
    """The invariants of one record. Raises `IllegalMove` naming the one that is broken."""
    name = channel.channel_id
    if channel.held != sum(one.amount for one in channel.holds.values()):
        raise IllegalMove(f"{name}: held is {channel.held}, but its holds are another sum")
    parts = {
        "paid": channel.paid,
        "uncertain": channel.uncertain,
        "held": channel.held,
        "free": channel.free,
        "reserved": channel.reserved,
        "authorised": channel.authorised,
    }
    for part, amount in parts.items():
        if amount < 0:
            raise IllegalMove(f"{name}: {part} is {amount}, below zero")
    if channel.spare < 0:
        raise IllegalMove(
            f"{name}: reserved are {channel.reserved}, more than the {channel.free} that are free"
        )
    if channel.authorised > channel.ceiling:
        raise IllegalMove(
            f"{name}: authorised is {channel.authorised}, over the deposit of {channel.ceiling}"
        )
    if channel.close_amount is not None and not 0 <= channel.close_amount <= channel.authorised:
        raise IllegalMove(
            f"{name}: a close voucher of {channel.close_amount} is over the authorised {channel.authorised}"
        )


def _find(channel: Channel, request_id: str) -> Hold:
    try:
        return channel.holds[request_id]
    except KeyError:
        raise IllegalMove(f"{channel.channel_id} holds nothing for request {request_id}") from None


def _after(ended: Hold, move: Ended) -> int:
    """When what a request leaves in doubt is eligible: after it was sent, also within one millisecond."""
    return max(move.at, ended.sent_at + 1)


def _carried(channel: Channel, voucher: int) -> Channel:
    """A voucher of this cumulative amount has left, whatever the record says was reserved when it was written."""
    reserved = max(0, min(channel.reserved, channel.authorised - voucher))
    return channel if reserved == channel.reserved else replace(channel, reserved=reserved)


def _grown(channel: Channel, old: Hold, move: Grown) -> Channel:
    new = replace(old, amount=old.amount + move.amount, voucher=move.voucher)
    holds = {**channel.holds, move.request_id: new}
    return replace(channel, holds=holds, held=channel.held + move.amount)


def _with_hold(channel: Channel, held: Hold) -> Channel:
    return replace(channel, holds={**channel.holds, held.request_id: held}, held=channel.held + held.amount)


def _doubt(channel: Channel, amount: int, eligible_at: int) -> Channel:
    if not amount:  # nothing to wait for
        return channel
    return replace(
        channel,
        uncertain=channel.uncertain + amount,
        eligible_at=max(channel.eligible_at, eligible_at),
    )


def _receipt(channel: Channel, spent: int, *, seq: int, sent_at: int, at: int) -> Channel:
    """Believe a cumulative `spent` as far as it can be about nothing but what is uncertain."""
    overlapped = seq != channel.seq or channel.holds
    still_open = channel.uncertain and channel.eligible_at > sent_at
    spent = min(spent, channel.issued)
    if overlapped or still_open or spent < channel.paid:
        return channel
    change = spent - channel.paid - channel.uncertain
    if change > 0:
        return write_off(channel, change, at)
    if not change:
        return channel
    return replace(channel, uncertain=channel.uncertain + change)
