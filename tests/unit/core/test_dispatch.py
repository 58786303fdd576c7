"""How much is authorised for those who wait: by table, and for any numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy_addon.core.dispatch import (
    AHEAD_PER_REQUEST,
    RESERVE_AFTER,
    RESERVE_PRICES,
    Demand,
    Plan,
    can_reuse,
    needed,
    plans,
    reserve_for,
    share,
    voucher_steps,
)
from store.records import Channel
from tests.unit.methods.samples import channel

P = 10


def with_free(free: int, **fields: Any) -> Channel:
    """A channel on which 100 are authorised and all but `free` are paid."""
    return channel(**{"authorised": 100, "paid": 100 - free, "deposit": 1_000, **fields})


def sizes(free: int, *demands: Demand, others: int = 0, ahead: int = 0, **fields: Any) -> tuple[int, ...]:
    return voucher_steps(with_free(free, **fields), demands, others_in_flight=others, ahead_limit=ahead)


class TestReuse:
    @pytest.mark.parametrize(
        ("fields", "allowed"),
        [
            ({"free": P}, True),
            ({"free": P + 1}, True),
            ({"free": P - 1}, False),
            ({"free": P, "settled": 99}, True),
            ({"free": P, "settled": 100}, False),
            ({"free": P, "settled": 101}, False),
            ({"free": P, "equal_refused": True}, False),
            ({"free": P, "clean_needed": 50}, True),
            ({"free": P, "min_delta": 50}, True),  # nothing is added: no step to be too small
        ],
    )
    def test_a_voucher_that_is_out_pays_again(self, fields: dict[str, Any], allowed: bool) -> None:
        assert can_reuse(with_free(**fields), P) is allowed

    def test_there_is_none_before_the_first(self) -> None:
        assert not can_reuse(channel(authorised=0), 0)

    def test_what_others_hold_or_may_have_cost_is_not_free(self) -> None:
        assert not can_reuse(with_free(P, uncertain=1), P)


class TestRaise:
    @pytest.mark.parametrize(
        ("free", "fields", "expected"),
        [
            (0, {}, (P,)),
            (4, {}, (6,)),
            (P, {}, (0,)),
            (P + 5, {}, (0,)),
            (0, {"min_delta": 7}, (P,)),
            (4, {"min_delta": 7}, (7,)),  # at least the smallest step
            (P, {"min_delta": 7}, (0,)),  # and no step if none is needed
            # What is settled, or refused a second time, needs a higher voucher even if enough is free.
            (P, {"settled": 100}, (1,)),
            (P, {"settled": 100, "min_delta": 7}, (7,)),
            (P, {"equal_refused": True}, (1,)),
            (P, {"equal_refused": True, "min_delta": 7}, (7,)),
            (4, {"equal_refused": True}, (6,)),
        ],
    )
    def test_for_one(self, free: int, fields: dict[str, Any], expected: tuple[int, ...]) -> None:
        assert sizes(free, Demand(P), **fields) == expected

    @pytest.mark.parametrize(
        ("free", "demand", "fields", "expected"),
        [
            (P, Demand(P, bump=True), {}, (1,)),
            (P, Demand(P, bump=True), {"min_delta": 7}, (7,)),
            (4, Demand(P, bump=True), {}, (6,)),
            (0, Demand(P, write_off=True), {}, (P,)),
            (P, Demand(P, write_off=True), {"min_delta": 7}, (7,)),
        ],
    )
    def test_for_a_repair(
        self, free: int, demand: Demand, fields: dict[str, Any], expected: tuple[int, ...]
    ) -> None:
        assert sizes(free, demand, others=5, ahead=1_000, **fields) == expected  # never ahead

    def test_for_all_that_wait_at_once(self) -> None:
        assert sizes(25, *[Demand(P)] * 7) == (45,)
        assert sizes(0, Demand(1), Demand(20), Demand(300)) == (321,)
        assert sizes(321, Demand(1), Demand(20), Demand(300)) == (0,)

    def test_nobody_waits(self) -> None:
        assert sizes(0) == (0,)
        assert sizes(0, others=3, ahead=100) == (0,)


class TestAhead:
    def test_twice_the_price_for_each_in_flight(self) -> None:
        assert AHEAD_PER_REQUEST == 2
        assert sizes(0, Demand(P), others=3, ahead=1_000) == (P + 60, P)

    def test_the_highest_price_counts(self) -> None:
        assert sizes(0, Demand(P), Demand(30), others=1, ahead=1_000) == (40 + 60, 40)

    def test_up_to_its_limit(self) -> None:
        assert sizes(0, Demand(P), others=3, ahead=25) == (P + 25, P)
        assert sizes(0, Demand(P), others=3, ahead=0) == (P,)

    def test_not_alone(self) -> None:
        assert sizes(0, Demand(P), others=0, ahead=1_000) == (P,)

    def test_not_where_nothing_has_to_be_raised(self) -> None:
        assert sizes(P, Demand(P), others=3, ahead=1_000) == (0,)

    @pytest.mark.parametrize("fields", [{"equal_refused": True}, {"clean_needed": 1}, {"settled": 100}])
    def test_not_with_a_server_of_which_we_know_better(self, fields: dict[str, Any]) -> None:
        assert sizes(0, Demand(P), others=3, ahead=1_000, **fields) == (P,)

    def test_it_counts_towards_the_smallest_step(self) -> None:
        assert sizes(0, Demand(P), others=1, ahead=1_000, min_delta=25) == (30, 25)
        assert sizes(0, Demand(P), others=1, ahead=1_000, min_delta=30) == (30,)


@pytest.mark.parametrize(
    ("price", "raised", "min_delta", "counts"),
    [(P, 0, 1, 0), (P, 4, 1, 4), (P, P, 1, P), (P, 500, 1, P), (P, 500, 25, 25), (P, 7, 25, 7)],
)
def test_the_share_of_a_shared_raise(price: int, raised: int, min_delta: int, counts: int) -> None:
    assert share(channel(min_delta=min_delta), price, raised) == counts


amounts = st.integers(0, 2**96)


@st.composite
def channels(draw: st.DrawFn) -> Channel:
    paid, uncertain, free = draw(amounts), draw(amounts), draw(amounts)
    authorised = paid + uncertain + free
    return channel(
        authorised=authorised,
        paid=paid,
        uncertain=uncertain,
        deposit=authorised,
        settled=draw(st.integers(0, authorised)),
        min_delta=draw(st.one_of(st.just(1), st.integers(1, 2**60))),
        equal_refused=draw(st.booleans()),
        clean_needed=draw(st.integers(0, 50)),
    )


demands = st.builds(Demand, st.integers(1, 2**96), st.booleans(), st.booleans())
plain = st.builds(Demand, st.integers(1, 2**96))


@given(channels(), st.lists(st.one_of(plain, demands), min_size=1, max_size=8), st.integers(0, 64), amounts)
def test_any_raise(one: Channel, wanted: list[Demand], others: int, limit: int) -> None:
    found = voucher_steps(one, wanted, others_in_flight=others, ahead_limit=limit)
    total = sum(demand.price for demand in wanted)
    repairs = any(demand.bump or demand.write_off for demand in wanted)
    forced = one.equal_refused or one.settled >= one.authorised or repairs

    assert 1 <= len(found) <= 2
    preferred, least = found[0], found[-1]
    # All who wait are served, in steps that the server takes, and no unit is authorised that is not needed.
    for size in found:
        assert one.free + size >= total
        assert size == 0 or size >= one.min_delta
    assert least in (0, one.min_delta, total - one.free)
    assert (least == 0) == (total <= one.free and not forced)
    # Ahead: only on a channel with others in flight, of which nothing speaks against it, within its limit.
    assert (preferred == least) == (len(found) == 1)
    if preferred != least:
        assert least < preferred <= least + limit
        assert others > 0
        assert not forced
        assert not one.clean_needed

    # Each unit of a raise, but for what is ahead, counts against the limit of one that waits.
    for size in found:
        shares = [share(one, demand.price, size) for demand in wanted]
        assert all(0 <= part <= size for part in shares)
        assert sum(shares) >= least
    if len(wanted) == 1 and least:
        assert share(one, total, least) == least


@given(channels(), st.integers(1, 2**96))
def test_who_may_use_what_is_out_needs_no_raise(one: Channel, price: int) -> None:
    assume(can_reuse(one, price))
    assert voucher_steps(one, [Demand(price)], others_in_flight=3, ahead_limit=100) == (0,)
    # And it is the only case: one base unit less, or anything against the voucher itself, and a commit is due.
    assert not can_reuse(replace(one, paid=one.paid + one.free - price + 1), price)
    assert not can_reuse(replace(one, settled=one.authorised), price)
    assert not can_reuse(replace(one, equal_refused=True), price)


class TestNeeded:
    """What one demand alone raises: the deposit must have room for it."""

    @pytest.mark.parametrize(
        ("free", "demand", "fields", "expected"),
        [
            (0, Demand(P), {}, P),
            (4, Demand(P), {}, 6),
            (P, Demand(P), {}, 0),
            (P + 1, Demand(P), {}, 0),
            (P - 1, Demand(P), {}, 1),
            (P - 1, Demand(P), {"min_delta": 50}, 50),  # the server takes no smaller step
            (0, Demand(P), {"min_delta": 3}, P),
            (P, Demand(P, bump=True), {}, 1),  # repair c: one step, whatever is free
            (P, Demand(P, bump=True), {"min_delta": 7}, 7),
            (P, Demand(P, write_off=True), {}, P),  # repair d: what seems free is not
            (P, Demand(P), {"equal_refused": True, "min_delta": 7}, 7),
            (P, Demand(P), {"settled": 100, "min_delta": 7}, 7),
            (P, Demand(P), {"settled": 99, "min_delta": 7}, 0),
        ],
    )
    def test_what_it_raises(self, free: int, demand: Demand, fields: dict[str, Any], expected: int) -> None:
        assert needed(with_free(free, **fields), demand) == expected

    @given(st.integers(0, 100), st.integers(0, 50), st.integers(1, 40), st.booleans())
    def test_it_is_what_a_raise_for_it_alone_would_be(
        self, free: int, price: int, min_delta: int, bump: bool
    ) -> None:
        demand = Demand(price, bump=bump)
        assert (
            needed(with_free(free, min_delta=min_delta), demand)
            == sizes(free, demand, min_delta=min_delta)[-1]
        )


class TestReserve:
    """What is on record and was signed for nobody: 40 of the 100 that are authorised, none of them held or paid."""

    def reserving(self, **fields: Any) -> Channel:
        return channel(**{"authorised": 100, "paid": 60, "reserved": 40, "deposit": 1_000, **fields})

    def test_it_takes_a_voucher_but_no_commit(self) -> None:
        one = self.reserving()
        assert not can_reuse(one, P)
        (step,) = voucher_steps(one, [Demand(P)], others_in_flight=0, ahead_limit=0)
        assert plans(one, (step,)) == (Plan(P, 0),)
        assert needed(one, Demand(P)) == 0

    @pytest.mark.parametrize(("step", "raised"), [(40, 0), (41, 1), (100, 60)])
    def test_only_the_rest_is_raised(self, step: int, raised: int) -> None:
        assert plans(self.reserving(), (step,)) == (Plan(step, raised),)

    def test_a_new_one_goes_with_a_commit_that_is_made_anyway(self) -> None:
        assert plans(self.reserving(), (50,), reserve=70) == (Plan(50, 80), Plan(50, 10))
        assert plans(self.reserving(), (40,)) == (Plan(40, 0),)
        assert plans(self.reserving(), (60, 50), reserve=7) == (Plan(60, 27), Plan(60, 20), Plan(50, 10))

    def test_a_voucher_that_is_settled_is_none(self) -> None:
        assert voucher_steps(self.reserving(settled=60), [Demand(0)], others_in_flight=0, ahead_limit=0) == (
            1,
        )
        assert not can_reuse(self.reserving(paid=50, settled=60), P)
        assert can_reuse(self.reserving(paid=50, settled=59), P)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({}, P * RESERVE_PRICES),
            ({"step": 40}, 0),  # it needs no commit
            ({"alone": RESERVE_AFTER - 1}, 0),
            ({"alone": RESERVE_AFTER + 99}, P * RESERVE_PRICES),
            ({"limit": P * RESERVE_PRICES - 1}, P * (RESERVE_PRICES - 1)),
            ({"limit": P - 1}, 0),
            ({"limit": 0}, 0),
            ({"price": 0}, 0),
            ({"deposit": 141}, P * 4),  # 100 are authorised, and one more for the step
            ({"deposit": 140}, P * 3),
            ({"deposit": 101}, 0),
            ({"deposit": 100}, 0),  # not even for the step
            ({"min_delta": 30}, 30 * RESERVE_PRICES),  # nobody could use less than a step
            ({"min_delta": 30, "limit": 89}, 60),
        ],
    )
    def test_how_much(self, given: dict[str, int], expected: int) -> None:
        usual = {"step": 41, "price": P, "alone": RESERVE_AFTER, "limit": 2_000, "deposit": 10_000}
        asked = {**usual, "min_delta": 1, **given}
        one = self.reserving(deposit=asked["deposit"], min_delta=asked["min_delta"])
        found = reserve_for(one, asked["step"], asked["price"], alone=asked["alone"], limit=asked["limit"])
        assert found == expected
