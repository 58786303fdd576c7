"""Each move of the account: what it does, what it refuses, and that a refusal leaves the record as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import account
from store.account import (
    CLEAN_UNTIL_AHEAD,
    UNKNOWN_MARGIN_MS,
    Ended,
    Ending,
    Grown,
    IllegalMove,
    Move,
    Probed,
    Reconciled,
    Sent,
    WrittenOff,
)
from store.lifecycle import ChannelStatus
from store.records import Channel, Hold, PendingTransaction
from tests.properties.bank import proposed, scope_of

T0 = 1_000_000
EXPIRY = T0 + 300_000


def channel(**fields: Any) -> Channel:
    defaults = {"status": ChannelStatus.OPEN, "pending": None, "deposit": 1_000}
    return proposed("0xc1", scope_of(), **{**defaults, **fields})


def held(
    request_id: str = "r", amount: int = 10, *, voucher: int = 100, seq: int = 1, sent_at: int = T0
) -> Hold:
    return Hold(request_id, amount, voucher, sent_at, EXPIRY, seq, "f")


def with_hold(one: Hold | None = None, **fields: Any) -> Channel:
    one = one or held()
    defaults = {"authorised": 100, "holds": {one.request_id: one}, "held": one.amount, "seq": max(one.seq, 1)}
    return channel(**{**defaults, **fields})


def parts(one: Channel) -> tuple[int, int, int, int]:
    return one.paid, one.uncertain, one.held, one.free


def take(
    one: Channel, request_id: str, amount: int, *, sent_at: int = T0, step: int | None = None
) -> Channel:
    one = account.issue(one, min(one.reserved, max(0, amount - one.spare)) if step is None else step)
    return account.hold(
        one,
        request_id,
        amount,
        voucher=one.issued,
        sent_at=sent_at,
        expires_at=sent_at + 300_000,
        fingerprint="f",
    )[0]


# -- raise


@pytest.mark.parametrize(
    ("start", "amount", "authorised"),
    [
        (channel(), 0, 0),
        (channel(), 1_000, 1_000),
        (channel(authorised=999), 1, 1_000),
        (channel(deposit=2**96 - 1), 2**96 - 1, 2**96 - 1),
        (channel(deposit=0, pending=PendingTransaction("open", "0x", "0x", 1, 70)), 70, 70),
    ],
)
def test_a_raise_goes_up_to_the_ceiling(start: Channel, amount: int, authorised: int) -> None:
    after = account.raise_authorised(start, amount)
    assert after == replace(start, authorised=authorised, reserved=amount)
    assert (after.free, after.spare, after.issued) == (start.free + amount, start.spare, start.issued)


@pytest.mark.parametrize(
    ("start", "amount", "says"),
    [
        (channel(authorised=5), -1, "would fall by 1"),
        (channel(), 1_001, "would be 1001, over its deposit of 1000"),
        (channel(authorised=1_000), 1, "would be 1001"),
        # Only an opening counts before the chain has it; what a top-up will bring is not there yet.
        (channel(pending=PendingTransaction("top_up", "0x", "0x", 1, 500)), 1_001, "deposit of 1000"),
        (channel(deposit=0, pending=PendingTransaction("open", "0x", "0x", 1, 70)), 71, "deposit of 70"),
    ],
)
def test_a_raise_beyond_is_illegal(start: Channel, amount: int, says: str) -> None:
    before = replace(start)
    with pytest.raises(IllegalMove, match=says):
        account.raise_authorised(start, amount)
    assert start == before


# -- issue


def test_what_is_raised_is_reserved_until_a_voucher_carries_it() -> None:
    start = account.raise_authorised(channel(authorised=100, paid=90), 50)
    assert (start.issued, start.spare, start.reserved, start.free) == (100, 10, 50, 60)
    one = account.issue(start, 20)
    assert (one.issued, one.spare, one.reserved, one.free) == (120, 30, 30, 60)
    assert account.issue(one, 30).reserved == 0
    assert one == replace(start, reserved=30)


@pytest.mark.parametrize("amount", [-1, 51])
def test_no_voucher_carries_more_than_is_on_record(amount: int) -> None:
    with pytest.raises(IllegalMove, match=f"0xc1 has 50 reserved, not {amount}"):
        account.issue(channel(authorised=150, paid=100, reserved=50), amount)


def test_what_is_reserved_is_held_for_nobody_and_cannot_have_been_charged() -> None:
    start = channel(authorised=150, paid=100, reserved=40)
    with pytest.raises(IllegalMove, match="0xc1 has 10 to spare, not 11"):
        take(start, "a", 11, step=0)
    one = take(start, "a", 10)
    with pytest.raises(IllegalMove, match="0xc1 has 0 to spare, not 1"):
        account.grow(one, Grown("a", 1, one.issued))
    assert account.write_off(start, 50, T0) == account.write_off(start, 10, T0)
    assert account.write_off(start, 50, T0).uncertain == 10
    lie = account.end(one, Ended("a", Ending.PAID, T0, spent=150, accepted=150))
    assert (parts(lie), lie.accepted) == ((110, 0, 0, 40), 110)
    assert parts(account.probed(start, Probed(0, T0, T0, 150, 150))) == (100, 10, 0, 40)


def test_a_line_of_the_journal_tells_what_was_issued_after_the_record() -> None:
    record = channel(authorised=150, paid=100, reserved=50)
    sent = Sent(Hold("a", 10, 110, T0, EXPIRY, 1, "f"))
    one = account.fold(record, [sent])
    assert (parts(one), one.issued) == ((100, 10, 0, 40), 110)
    two = account.fold(record, [sent, Grown("a", 15, 125), Ended("a", Ending.METERED, T0, charged=25)])
    assert (parts(two), two.issued) == ((125, 0, 0, 25), 125)
    gone = account.fold(record, [Grown("b", 15, 115)])  # its hold is in no line
    assert (parts(gone), gone.issued) == ((100, 0, 0, 50), 115)
    assert account.apply(record, Sent(Hold("a", 0, 90, T0, EXPIRY, 1, "f"))).reserved == 50


def test_the_chain_or_our_own_signature_proves_that_a_voucher_carried_it() -> None:
    record = channel(authorised=150, paid=100, reserved=50)
    assert account.proven_accepted(record, 120).issued == account.proven_settled(record, 120).issued == 120
    assert account.proven_accepted(record, 90).issued == account.proven_settled(record, 90).issued == 100
    assert account.proven_settled(record, 120).settled == 120


def test_after_a_power_cut_all_that_is_reserved_may_have_been_charged() -> None:
    doubted = account.doubt_everything(channel(authorised=150, paid=100, reserved=50), T0)
    assert (parts(doubted), doubted.issued) == ((100, 50, 0, 0), 150)
    assumed = account.assume_authorised(channel(authorised=150, paid=100, reserved=50), 170, T0)
    assert (parts(assumed), assumed.issued) == ((100, 70, 0, 0), 170)


# -- hold and restamp


def test_a_hold_takes_from_free_and_knows_whether_it_is_alone() -> None:
    start = channel(authorised=100, paid=20, uncertain=30)
    one = take(start, "a", 15)
    assert parts(one) == (20, 30, 15, 35)
    assert one.holds["a"].seq == one.seq == 1
    two = take(one, "b", 35)
    assert parts(two) == (20, 30, 50, 0)
    assert (two.holds["b"].seq, two.seq) == (-1, 2)
    three = take(two, "c", 0)  # a free resource costs nothing and still is a dispatch
    assert (three.held, three.seq) == (50, 3)
    assert start == channel(authorised=100, paid=20, uncertain=30)


@pytest.mark.parametrize("amount", [-1, 51])
def test_a_hold_beyond_free_is_illegal(amount: int) -> None:
    start = channel(authorised=100, paid=20, uncertain=30)
    with pytest.raises(IllegalMove, match=f"0xc1 has 50 to spare, not {amount}"):
        take(start, "a", amount)
    assert parts(start) == (20, 30, 0, 50)
    assert start.seq == 0


def test_restamp_keeps_the_money_and_the_later_expiry() -> None:
    start = with_hold()
    after, one = account.restamp(start, "r", voucher=120, expires_at=EXPIRY - 1)
    assert one == replace(held(), voucher=120, expires_at=EXPIRY)
    assert parts(after) == parts(start)
    assert after.seq == start.seq
    assert account.restamp(start, "r", voucher=120, expires_at=EXPIRY + 9)[1].expires_at == EXPIRY + 9


@pytest.mark.parametrize(
    "move",
    [
        lambda one: account.restamp(one, "other", voucher=1, expires_at=1),
        lambda one: account.end(one, Ended("other", Ending.PAID, T0)),
    ],
)
def test_a_hold_that_is_not_there_cannot_move(move: Callable[[Channel], object]) -> None:
    start = with_hold()
    with pytest.raises(IllegalMove, match="0xc1 holds nothing for request other"):
        move(start)
    assert start == with_hold()


# -- end


@pytest.mark.parametrize(
    ("ending", "after", "eligible_at"),
    [
        (Ending.PAID, (10, 0, 0, 90), 0),
        (Ending.FREE, (0, 0, 0, 100), 0),
        (Ending.UNDELIVERED, (0, 10, 0, 90), T0 + 5),
        (Ending.UNKNOWN, (0, 10, 0, 90), EXPIRY + UNKNOWN_MARGIN_MS),
    ],
)
def test_what_an_ending_does_to_the_hold(
    ending: Ending, after: tuple[int, int, int, int], eligible_at: int
) -> None:
    one = account.end(with_hold(), Ended("r", ending, T0 + 5))
    assert parts(one) == after
    assert one.eligible_at == eligible_at
    assert not one.holds
    assert one.authorised == 100


@pytest.mark.parametrize(
    ("charged", "after"),
    [
        (0, (0, 10, 0, 90)),
        (4, (4, 6, 0, 90)),
        (10, (10, 0, 0, 90)),
        (11, (10, 0, 0, 90)),
        (-1, (0, 10, 0, 90)),
    ],
)
def test_a_stream_pays_what_was_delivered_and_doubts_the_rest(
    charged: int, after: tuple[int, int, int, int]
) -> None:
    one = account.end(with_hold(), Ended("r", Ending.METERED, T0 + 5, charged=charged))
    assert parts(one) == after
    assert one.eligible_at == (T0 + 5 if one.uncertain else 0)


def test_a_stream_grows_out_of_free() -> None:
    one = account.grow(with_hold(), Grown("r", 90, 100))
    assert parts(one) == (0, 0, 100, 0)
    assert one.holds["r"] == held(amount=100)
    assert one.seq == with_hold().seq


@pytest.mark.parametrize(
    ("move", "says"),
    [
        (Grown("r", 91, 100), "has 90 to spare, not 91"),
        (Grown("r", -1, 100), "has 90 to spare, not -1"),
        (Grown("other", 1, 100), "holds nothing for request other"),
    ],
)
def test_a_stream_grows_no_further(move: Grown, says: str) -> None:
    with pytest.raises(IllegalMove, match=says):
        account.grow(with_hold(), move)


def test_growth_of_a_hold_that_the_record_has_ended_says_nothing_new() -> None:
    record = channel(authorised=100, paid=10, seq=1)
    assert account.fold(record, [Grown("r", 5, 100)]) == record
    assert parts(account.fold(with_hold(), [Grown("r", 5, 105)])) == (0, 15, 0, 85)


def test_an_earlier_eligibility_never_replaces_a_later_one() -> None:
    start = with_hold(uncertain=5, eligible_at=EXPIRY)
    assert account.end(start, Ended("r", Ending.UNDELIVERED, T0)).eligible_at == EXPIRY


@pytest.mark.parametrize("ending", [Ending.UNDELIVERED, Ending.UNKNOWN])
def test_a_hold_of_nothing_leaves_nothing_to_wait_for(ending: Ending) -> None:
    one = account.end(with_hold(held(amount=0)), Ended("r", ending, T0))
    assert (one.uncertain, one.eligible_at) == (0, 0)


@pytest.mark.parametrize(
    ("ending", "accepted", "expected"),
    [
        (Ending.PAID, 100, (100, 6, 0)),
        (Ending.UNDELIVERED, 100, (100, 7, 0)),
        (Ending.FREE, 100, (100, 7, 1)),  # taken, and nothing given for it: no sign of health
        (Ending.PAID, 0, (40, 7, 1)),
        (Ending.PAID, 30, (40, 6, 0)),  # never falls
        (Ending.PAID, 10**9, (100, 6, 0)),  # never over what was authorised
    ],
)
def test_what_an_accepted_voucher_says(ending: Ending, accepted: int, expected: tuple[int, int, int]) -> None:
    start = with_hold(accepted=40, clean_needed=7, bad_rows=1)
    one = account.end(start, Ended("r", ending, T0, accepted=accepted))
    assert (one.accepted, one.clean_needed, one.bad_rows) == expected


def test_clean_answers_are_not_counted_below_zero() -> None:
    assert account.end(with_hold(), Ended("r", Ending.PAID, T0, accepted=100)).clean_needed == 0


# -- receipts. The account before: authorised 200, paid 50, uncertain 30, a hold of 10.


def receipt(spent: int, ending: Ending = Ending.PAID, **fields: Any) -> Channel:
    start = with_hold(**{"authorised": 200, "paid": 50, "uncertain": 30, "eligible_at": T0, **fields})
    return account.end(start, Ended("r", ending, T0 + 5, spent=spent))


@pytest.mark.parametrize(
    ("spent", "uncertain", "why"),
    [
        (90, 30, "all that was uncertain was charged"),
        (60, 0, "nothing of it was"),
        (75, 15, "a part of it"),
        (100, 40, "more than we knew of: out of free"),
        (200, 140, "everything"),
        (201, 140, "over what we signed: as if everything"),
        (2**128 - 1, 140, "a lie: as if everything"),
        (59, 30, "less than what is known to be paid: it means nothing"),
        (10, 30, "per request"),
        (0, 30, "a stale answer"),
    ],
)
def test_a_receipt_of_a_request_that_was_alone(spent: int, uncertain: int, why: str) -> None:
    one = receipt(spent)
    assert parts(one) == (60, uncertain, 0, 140 - uncertain), why
    assert one.authorised == 200
    assert one.clean_needed == (CLEAN_UNTIL_AHEAD if uncertain > 30 else 0)
    account.check(one)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"seq": 2}, "another was dispatched meanwhile"),
        ({"holds": {"r": held(), "q": held("q")}, "held": 20}, "another is in flight"),
        ({"holds": {"r": held(seq=-1)}}, "another was in flight when it left"),
        ({"eligible_at": T0 + 1}, "something lost before may still arrive"),
    ],
)
@pytest.mark.parametrize("spent", [60, 75, 150, 10**30])
def test_a_receipt_that_could_be_about_something_else_moves_nothing(
    fields: dict[str, Any], why: str, spent: int
) -> None:
    one = receipt(spent, **fields)
    assert (one.paid, one.uncertain) == (60, 30), why
    assert one.clean_needed == 0


def test_eligible_at_the_very_millisecond_of_the_dispatch_counts() -> None:
    assert receipt(60, eligible_at=T0).uncertain == 0


def test_an_old_eligibility_does_not_matter_once_nothing_is_uncertain() -> None:
    assert receipt(75, uncertain=0, eligible_at=T0 + 1).uncertain == 15


def test_a_cut_answer_with_a_receipt_stays_uncertain() -> None:
    one = receipt(60, Ending.UNDELIVERED)
    assert parts(one)[:2] == (50, 40)


def test_a_probe_tells_what_is_uncertain() -> None:
    start = channel(authorised=100, paid=20, uncertain=30, eligible_at=T0, seq=4)
    probe = Probed(seq=4, sent_at=T0, at=T0 + 9, spent=25, voucher=100)
    one = account.probed(start, probe)
    assert (*parts(one), one.accepted) == (20, 5, 0, 75, 100)
    assert account.probed(start, replace(probe, voucher=10**9)).accepted == 100
    for late in (replace(probe, seq=3), replace(probe, sent_at=T0 - 1)):
        after = account.probed(start, late)
        assert parts(after) == parts(start)
        assert after.accepted == 100  # the voucher was taken, whatever else it says


def test_what_somebody_reconciles_is_paid() -> None:
    start = channel(authorised=100, paid=20, uncertain=30)
    assert parts(account.reconciled(start, 30)) == (50, 0, 0, 50)
    assert account.reconciled(start, 0) == start
    for amount in (-1, 31):
        with pytest.raises(IllegalMove, match=f"30 uncertain, not {amount}"):
            account.reconciled(start, amount)


# -- write-offs, and what is learned


@pytest.mark.parametrize(("amount", "moved"), [(0, 0), (-3, 0), (10, 10), (70, 70), (71, 70), (10**30, 70)])
def test_a_write_off_moves_at_most_what_is_free(amount: int, moved: int) -> None:
    start = channel(authorised=100, paid=20, uncertain=10)
    one = account.write_off(start, amount, T0)
    assert parts(one) == (20, 10 + moved, 0, 70 - moved)
    assert one.clean_needed == (CLEAN_UNTIL_AHEAD if moved else 0)
    assert one.eligible_at == (T0 if moved else 0)


@pytest.mark.parametrize(
    ("accepted", "voucher", "min_delta", "learned"),
    [(0, 10, 1, 20), (90, 100, 1, 20), (90, 100, 50, 50), (0, 40, 1, 50), (0, 10**9, 1, 50)],
)
def test_a_voucher_never_taken_teaches_the_step(
    accepted: int, voucher: int, min_delta: int, learned: int
) -> None:
    one = account.learn_delta(channel(accepted=accepted, min_delta=min_delta), voucher, 200)
    assert (one.min_delta, one.equal_refused, one.delta_strikes) == (learned, False, 0)


def test_the_same_voucher_refused_twice_teaches_that_it_is_not_taken_twice() -> None:
    start = channel(accepted=100, min_delta=3)
    once = account.learn_delta(start, 100, 200)
    assert (once.min_delta, once.equal_refused) == (3, False)
    twice = account.learn_delta(once, 99, 200)
    assert twice.equal_refused
    assert account.learn_delta(replace(twice, delta_strikes=0), 99, 200).equal_refused


def test_two_bad_rows_one_after_the_other_spoil_a_channel() -> None:
    one = account.count_bad_row(channel(), T0, T0 + 10)
    assert not account.is_spoiled(one)
    assert account.count_bad_row(one, T0 + 10, T0 + 20) == one  # they overlapped
    two = account.count_bad_row(one, T0 + 11, T0 + 20)
    assert account.is_spoiled(two)
    well = account.end(with_hold(bad_rows=1), Ended("r", Ending.PAID, T0, accepted=100))
    assert not account.is_spoiled(account.count_bad_row(well, T0 + 11, T0 + 20))


# -- check


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (channel(authorised=10, held=1), "held is 1"),
        (with_hold(held=9), "held is 9"),
        (channel(authorised=10, paid=-1), "paid is -1"),
        (channel(authorised=10, uncertain=-1), "uncertain is -1"),
        (with_hold(held(amount=-1)), "held is -1"),
        (channel(authorised=10, paid=11), "free is -1"),
        (channel(authorised=-1), "free is -1"),
        (channel(authorised=10, reserved=11), "reserved are 11, more than the 10 that are free"),
        (channel(authorised=1_001), "over the deposit of 1000"),
        (channel(authorised=10, close_amount=11), "close voucher of 11 is over the authorised 10"),
        (channel(authorised=10, close_amount=-1), "close voucher"),
    ],
)
def test_check_names_what_is_broken(broken: Channel, says: str) -> None:
    with pytest.raises(IllegalMove, match=says):
        account.check(broken)


def test_check_passes_what_is_whole() -> None:
    account.check(with_hold(paid=20, uncertain=70, close_amount=100))


# -- after a crash


def test_what_was_sent_and_has_no_end_becomes_uncertain() -> None:
    record = with_hold(held("old"), seq=1)
    one = account.fold(record, [Sent(held("new", 20, seq=-1))])
    assert parts(one) == (0, 30, 0, 70)
    assert one.eligible_at == EXPIRY + UNKNOWN_MARGIN_MS
    assert (one.holds, one.seq) == ({}, 2)


def test_a_line_of_a_hold_that_the_record_has_ended_says_nothing_new() -> None:
    record = channel(authorised=100, paid=10, seq=1)
    assert account.fold(record, [Ended("r", Ending.PAID, T0)]) == record


def test_a_resent_hold_is_no_second_one() -> None:
    record = with_hold()
    again = replace(held(), voucher=130, expires_at=EXPIRY + 7)
    one = account.fold(record, [Sent(again)])
    assert parts(one) == (0, 10, 0, 90)
    assert one.eligible_at == EXPIRY + 7 + UNKNOWN_MARGIN_MS


@pytest.mark.parametrize(
    "lines",
    [
        [Sent(held("new", 200))],  # more than the record ever allowed
        [Sent(held("new", 60)), Ended("new", Ending.PAID, T0), Sent(held("newer", 60))],
        [Sent(held("r", 60))],  # another amount under the same name
    ],
)
def test_lines_that_contradict_the_record_are_refused(lines: list[Move]) -> None:
    record = with_hold()
    with pytest.raises(IllegalMove):
        account.fold(record, lines)
    assert record == with_hold()
    assert parts(account.doubt_everything(record, EXPIRY)) == (0, 100, 0, 0)


def test_doubting_everything_keeps_what_was_paid() -> None:
    record = with_hold(paid=20, uncertain=5, eligible_at=9)
    one = account.doubt_everything(record, T0)
    assert parts(one) == (20, 80, 0, 0)
    assert (one.eligible_at, one.holds, one.authorised) == (T0, {}, 100)
    assert account.doubt_everything(replace(record, eligible_at=T0 + 1), T0).eligible_at == T0 + 1


def test_doubting_what_is_certain_changes_nothing() -> None:
    record = channel(authorised=100, paid=60, uncertain=40, eligible_at=7)
    assert account.doubt_everything(record, T0) == record


@pytest.mark.parametrize(
    "broken", [channel(authorised=10, paid=8, uncertain=5), channel(authorised=1_001), channel(paid=-1)]
)
def test_doubt_makes_no_broken_record_look_whole(broken: Channel) -> None:
    with pytest.raises(IllegalMove):
        account.doubt_everything(broken, T0)


# -- in life and after a crash: the same moves, the same record, or a more cautious one

step = st.one_of(
    st.tuples(st.just("hold"), st.integers(0, 9), st.integers(0, 40), st.integers(0, 20)),
    st.tuples(st.just("end"), st.integers(0, 9), st.sampled_from(Ending), st.none() | st.integers(0, 300)),
    st.tuples(st.just("restamp"), st.integers(0, 9)),
    st.tuples(st.just("grow"), st.integers(0, 9), st.integers(0, 40)),
    st.tuples(st.just("probe"), st.integers(0, 300)),
    st.tuples(st.just("write off"), st.integers(1, 60)),
    st.tuples(st.just("reconcile"), st.integers(0, 60)),
    st.tuples(st.just("commit"), st.integers(0, 60)),
    st.tuples(st.just("wait"), st.sampled_from([0, 10, 400_000])),
)


def live(steps: list[tuple[object, ...]], *, clamped: bool) -> tuple[Channel, Channel, list[Move]]:
    """→ the record in memory, the last durable one, and the journal since then.

    A commit takes its snapshot when it begins and its raise counts when it returns, some steps later.
    `clamped`: a server's word is journaled as far as it can be true, as the payer does.
    """

    def heard(spent: object) -> int | None:
        assert spent is None or isinstance(spent, int)
        return spent if spent is None or not clamped else min(spent, memory.issued)

    now = T0
    record = memory = channel(authorised=50)
    journal: list[Move] = []
    open_raise: int | None = None
    for number, one in enumerate(steps):
        now += 1
        if open_raise is not None and one[0] in ("commit", "wait"):
            memory, open_raise = account.raise_authorised(memory, open_raise), None
        match one:
            case ("hold", int() as name, int() as amount, int() as more) if f"r{name}" not in memory.holds:
                if amount <= memory.free:
                    step = min(max(0, amount - memory.spare) + more, memory.reserved)
                    memory = take(memory, f"r{name}", amount, sent_at=now, step=step)
                    journal.append(Sent(memory.holds[f"r{name}"]))
            case ("end", int() as name, Ending() as ending, spent) if f"r{name}" in memory.holds:
                charged = number if ending is Ending.METERED else 0
                journal.append(Ended(f"r{name}", ending, now, heard(spent), memory.issued, charged))
                memory = account.apply(memory, journal[-1])
            case ("restamp", int() as name) if f"r{name}" in memory.holds:
                memory, again = account.restamp(
                    memory, f"r{name}", voucher=memory.issued, expires_at=now + number
                )
                journal.append(Sent(again))
            case ("grow", int() as name, int() as amount) if f"r{name}" in memory.holds:
                if amount <= memory.free:
                    memory = account.issue(memory, max(0, amount - memory.spare))
                    growth = Grown(f"r{name}", amount, memory.issued)
                    journal.append(growth)
                    memory = account.grow(memory, growth)
            case ("probe", int() as spent):
                journal.append(Probed(memory.seq, now, now, heard(spent) or 0, memory.issued))
                memory = account.apply(memory, journal[-1])
            case ("write off", int() as amount) if memory.spare:
                journal.append(WrittenOff(min(amount, memory.spare), now))
                memory = account.apply(memory, journal[-1])
            case ("reconcile", int() as amount) if amount <= memory.uncertain:
                journal.append(Reconciled(amount))
                memory = account.apply(memory, journal[-1])
            case ("commit", int() as raised) if open_raise is None and memory.authorised + raised <= 1_000:
                record, journal, open_raise = account.raise_authorised(memory, raised), [], raised
            case ("wait", int() as ms):
                now += ms
    return memory, record, journal


def crashed(memory: Channel) -> Channel:
    """What memory would say if its process had known that it dies."""
    for one in list(memory.holds.values()):
        memory = account.end(memory, Ended(one.request_id, Ending.UNKNOWN, at=one.sent_at))
    return memory


@given(st.lists(step, max_size=40))
def test_the_fold_after_a_crash_is_what_life_was(steps: list[tuple[object, ...]]) -> None:
    memory, record, journal = live(steps, clamped=True)
    account.check(memory)
    folded = account.fold(record, journal)
    assert replace(folded, authorised=0, reserved=0) == replace(crashed(memory), authorised=0, reserved=0)
    assert folded.issued == memory.issued
    assert folded.authorised >= memory.authorised  # a raise on its way may have landed
    doubted = account.doubt_everything(record, T0 + 10**9)
    assert doubted.paid + doubted.uncertain == doubted.authorised >= folded.paid + folded.uncertain


@given(st.lists(step, max_size=40))
def test_a_lie_beyond_what_was_signed_makes_the_fold_more_cautious_or_refused(
    steps: list[tuple[object, ...]],
) -> None:
    memory, record, journal = live(steps, clamped=False)
    try:
        folded = account.fold(record, journal)
    except IllegalMove:
        folded = account.doubt_everything(record, T0 + 10**9)
    quiet = crashed(memory)
    assert folded.paid + folded.uncertain >= quiet.paid + quiet.uncertain


def test_a_proof_raises_what_is_known_to_be_accepted_and_nothing_else() -> None:
    one = channel(authorised=100, paid=30, accepted=50)
    assert account.proven_accepted(one, 80) == replace(one, accepted=80)
    assert account.proven_accepted(one, 40) == one
    with pytest.raises(IllegalMove, match="100 authorised, not 101"):
        account.proven_accepted(one, 101)


@pytest.mark.parametrize("ending", [Ending.UNDELIVERED, Ending.METERED])
def test_an_answer_within_the_same_millisecond_proves_nothing_of_itself(ending: Ending) -> None:
    """A fast request: its own receipt must not settle what it leaves in doubt, whatever the clock's grain."""
    sent = take(channel(authorised=100), "r", 40, sent_at=T0)
    ended = account.end(sent, Ended("r", ending, at=T0, spent=0, accepted=100))
    assert (ended.paid, ended.uncertain, ended.free) == (0, 40, 60)


def test_all_that_is_authorised_may_be_proven_and_no_unit_more() -> None:
    one = channel(authorised=100)
    assert account.proven_accepted(one, 100) == replace(one, accepted=100)
    with pytest.raises(IllegalMove, match="has 100 authorised, not 101"):
        account.proven_accepted(one, 101)


@pytest.mark.parametrize("authorised", [0, 99, 100, 101, 999, 1_000])
def test_more_may_have_left_than_the_record_knows_and_never_less(authorised: int) -> None:
    one = channel(authorised=100, paid=20, uncertain=5, eligible_at=7)
    after = account.assume_authorised(one, authorised, 9)
    account.check(after)
    assert after.authorised == max(100, authorised)
    assert (after.paid, after.free, after.eligible_at) == (20, 0, 9)
    assert after.uncertain == after.authorised - 20


def test_what_is_assumed_stays_within_the_deposit() -> None:
    with pytest.raises(IllegalMove, match="over its deposit of 1000"):
        account.assume_authorised(channel(authorised=100), 1_001, 9)


@pytest.mark.parametrize("close_amount", [-1, 0, 1, 99, 100, 101])
def test_a_close_voucher_is_one_that_may_leave(close_amount: int) -> None:
    one = channel(authorised=100, close_amount=close_amount)
    if 0 <= close_amount <= 100:
        account.check(one)
        return
    with pytest.raises(IllegalMove, match=f"a close voucher of {close_amount} is over the authorised 100"):
        account.check(one)


@pytest.mark.parametrize(
    ("accepted", "voucher", "per_request", "min_delta"),
    [
        (0, 5, 1_000, 10),  # twice the step that was too small
        (90, 100, 1_000, 20),
        (0, 1_000, 100, 25),  # at most a quarter of the limit for one request
        (0, 1_000, 103, 25),
        (0, 1_000, 104, 26),
        (0, 1, 3, 1),  # never below what it is
        (0, 2, 1_000, 4),
    ],
)
def test_how_large_a_step_is_learned(accepted: int, voucher: int, per_request: int, min_delta: int) -> None:
    one = channel(authorised=1_000, accepted=accepted)
    after = account.learn_delta(one, voucher, per_request)
    assert after == replace(one, min_delta=max(one.min_delta, min_delta))
