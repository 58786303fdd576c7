"""What each refusal calls for, in full; and that every sequence of refusals ends."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.core import repair
from proxy_addon.core.repair import MAX_BUMPS, MAX_RESENDS, Tries, Way, way_out
from tests.unit.methods.samples import channel

AUTHORISED = 100
CHANNEL = channel(authorised=AUTHORISED)
CURRENT, OVERTAKEN = AUTHORISED, AUTHORISED - 10

HIGHER = ("verification-failed", "session/delta-too-small")
EMPTY = ("session/insufficient-balance", "payment-insufficient")
ANEW = (None, "payment-required", "payment-expired", "invalid-challenge", "session/challenge-not-found")
DISTRUST = ("session/invalid-signature", "session/signer-mismatch")
GONE = ("session/channel-not-found", "session/channel-finalized")
DEPOSIT = ("session/amount-exceeds-deposit",)
OTHER = ("malformed-credential", "invalid-payload", "method-unsupported", "session/other", "")
KINDS = (*HIGHER, *EMPTY, *ANEW, *DISTRUST, *GONE, *DEPOSIT, *OTHER)

FRESH: dict[Way, Tries] = {
    Way.RESEND: Tries(resends=MAX_RESENDS - 1),
    Way.ANEW: Tries(),
    Way.BUMP: Tries(bumps=MAX_BUMPS - 1),
    Way.WRITE_OFF: Tries(),
    Way.DEPOSIT: Tries(),
    Way.GONE: Tries(),
}
"""The last moment at which a way may still be taken."""

SPENT: dict[Way, Tries] = {
    Way.RESEND: Tries(resends=MAX_RESENDS),
    Way.ANEW: Tries(anew=1),
    Way.BUMP: Tries(bumps=MAX_BUMPS),
    Way.WRITE_OFF: Tries(write_offs=1),
    Way.DEPOSIT: Tries(moves=1),
    Way.GONE: Tries(moves=1),
}

ENDS = (Way.DISTRUST, Way.GIVE_UP)


def out(kind: str | None, voucher: int, tries: Tries, status: int = 402, **flags: bool) -> Way:
    return way_out(status, kind, voucher, CHANNEL, tries, **flags)


def rows() -> list[Any]:
    """The whole table: what a refusal calls for, by its kind and whether its voucher was the current one."""
    table: list[tuple[str | None, int, Way]] = []
    table += [(kind, CURRENT, Way.BUMP) for kind in HIGHER]
    table += [(kind, CURRENT, Way.WRITE_OFF) for kind in EMPTY]
    table += [(kind, OVERTAKEN, Way.RESEND) for kind in (*HIGHER, *EMPTY)]
    for voucher in (CURRENT, OVERTAKEN):
        table += [(kind, voucher, Way.ANEW) for kind in ANEW]
        table += [(kind, voucher, Way.DISTRUST) for kind in DISTRUST]
        table += [(kind, voucher, Way.GONE) for kind in GONE]
        table += [(kind, voucher, Way.DEPOSIT) for kind in DEPOSIT]
        table += [(kind, voucher, Way.GIVE_UP) for kind in OTHER]
    assert len(table) == 2 * len(KINDS)
    return [
        pytest.param(*row, id=f"{row[0]}-{'current' if row[1] == CURRENT else 'overtaken'}") for row in table
    ]


@pytest.mark.parametrize(("kind", "voucher", "way"), rows())
class TestTable:
    def test_a_refusal_calls_for(self, kind: str | None, voucher: int, way: Way) -> None:
        assert out(kind, voucher, Tries()) is way
        assert out(kind, voucher, FRESH.get(way, Tries())) is way

    def test_once_its_tries_are_used_up(self, kind: str | None, voucher: int, way: Way) -> None:
        ended = {Way.GONE: Way.DISTRUST, Way.DEPOSIT: Way.DISTRUST, Way.DISTRUST: Way.DISTRUST}
        assert out(kind, voucher, SPENT.get(way, Tries())) is ended.get(way, Way.GIVE_UP)

    def test_another_ways_tries_take_nothing_from_it(self, kind: str | None, voucher: int, way: Way) -> None:
        moves = (Way.GONE, Way.DEPOSIT)  # which share theirs
        for other in SPENT.keys() - {way, *(moves if way in moves else ())}:
            assert out(kind, voucher, SPENT[other]) is way

    def test_410_is_gone_whatever_it_says(self, kind: str | None, voucher: int, way: Way) -> None:
        assert out(kind, voucher, Tries(), 410) is Way.GONE
        assert out(kind, voucher, Tries(moves=1), 410) is Way.DISTRUST

    def test_other_terms_make_what_it_says_of_the_voucher_void(
        self, kind: str | None, voucher: int, way: Way
    ) -> None:
        of_the_channel = way in (Way.DISTRUST, Way.GONE, Way.DEPOSIT)
        assert out(kind, voucher, Tries(), new_terms=True) is (way if of_the_channel else Way.ANEW)
        if not of_the_channel:
            assert out(kind, voucher, Tries(anew=1), new_terms=True) is Way.GIVE_UP

    def test_a_channel_that_went_away_meanwhile_is_left(
        self, kind: str | None, voucher: int, way: Way
    ) -> None:
        distrust = way is Way.DISTRUST
        assert out(kind, voucher, Tries(), usable=False) is (Way.DISTRUST if distrust else Way.GONE)
        assert out(kind, voucher, Tries(moves=1), usable=False) is Way.DISTRUST

    def test_with_nothing_to_pay_it_ends(self, kind: str | None, voucher: int, way: Way) -> None:
        aside = way in (Way.DISTRUST, Way.GONE, Way.DEPOSIT)
        assert out(kind, voucher, Tries(), payable=False) is (Way.DISTRUST if aside else Way.GIVE_UP)


def test_the_current_voucher_may_be_above_what_the_record_knows() -> None:
    """As a resend raced with nothing: not overtaken."""
    assert out(HIGHER[0], CURRENT + 1, Tries()) is Way.BUMP


@pytest.mark.parametrize("way", Way)
def test_counting_uses_up_exactly_that_way(way: Way) -> None:
    tries = Tries(new_money=7)
    tries.count(way)
    counted = (tries.resends, tries.anew, tries.bumps, tries.write_offs, tries.moves)
    places = {Way.RESEND: 0, Way.ANEW: 1, Way.BUMP: 2, Way.WRITE_OFF: 3, Way.DEPOSIT: 4, Way.GONE: 4}
    assert counted == tuple(int(index == places.get(way)) for index in range(5))
    assert tries.new_money == 7  # that is counted by whoever raises
    assert tries.repaired is (way in (Way.BUMP, Way.WRITE_OFF))


refusals = st.tuples(
    st.sampled_from((402, 410)),
    st.one_of(st.sampled_from(KINDS), st.text(max_size=8)),
    st.sampled_from((CURRENT, OVERTAKEN)),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
MOST = MAX_RESENDS + MAX_BUMPS + 3


@given(st.lists(refusals, min_size=MOST + 1, max_size=MOST + 1))
def test_every_sequence_of_refusals_ends(
    sequence: list[tuple[int, str | None, int, bool, bool, bool]],
) -> None:
    tries = Tries()
    taken: list[Way] = []
    for status, kind, voucher, usable, new_terms, payable in sequence:
        way = out(kind, voucher, tries, status, usable=usable, new_terms=new_terms, payable=payable)
        tries.count(way)
        if way in ENDS:
            break
        assert payable
        taken.append(way)
    else:
        pytest.fail(f"after {len(sequence)} refusals it still goes on")
    assert tries.resends <= MAX_RESENDS
    assert tries.bumps <= MAX_BUMPS
    assert max(tries.anew, tries.write_offs, tries.moves) <= 1
    assert len(taken) == tries.resends + tries.bumps + tries.anew + tries.write_offs + tries.moves


def test_the_longest_sequence_is_as_long_as_the_counts_allow() -> None:
    longest = [
        *((HIGHER[0], OVERTAKEN),) * MAX_RESENDS,
        *((HIGHER[1], CURRENT),) * MAX_BUMPS,
        (EMPTY[0], CURRENT),
        (None, CURRENT),
        (GONE[0], CURRENT),
    ]
    assert len(longest) == MOST
    for sequence in (longest, longest[::-1]):
        tries = Tries()
        for kind, voucher in sequence:
            way = out(kind, voucher, tries)
            assert way not in ENDS
            tries.count(way)
        for kind, voucher in itertools.product(KINDS, (CURRENT, OVERTAKEN)):
            assert out(kind, voucher, tries) in ENDS


def test_how_often_a_request_is_repaired() -> None:
    """As the rules of money have it: these bound what a server can make one request cost."""
    assert (repair.MAX_RESENDS, repair.HOLD_BACK_AFTER, repair.MAX_BUMPS) == (6, 2, 3)
