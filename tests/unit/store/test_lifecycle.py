"""Every pair of states: the legal moves are these and no others."""

from __future__ import annotations

from itertools import product

import pytest

from store.lifecycle import (
    FINAL,
    PENDING_OPEN,
    REUSABLE,
    TRANSITIONS,
    ChannelStatus,
    IllegalTransition,
    advance,
)

S = ChannelStatus

# Written out once more, from the specification and not from the module: who changes one must change both.
LEGAL = {
    (S.PROPOSED, S.SENT),
    (S.PROPOSED, S.UNKNOWN),
    (S.PROPOSED, S.OPEN),  # it had left, and its process died before it could say so
    (S.PROPOSED, S.CLOSED),
    (S.PROPOSED, S.FAILED),
    (S.SENT, S.OPEN),
    (S.SENT, S.UNKNOWN),
    (S.SENT, S.FAILED),
    (S.SENT, S.CLOSED),
    (S.UNKNOWN, S.OPEN),
    (S.UNKNOWN, S.FAILED),
    (S.UNKNOWN, S.CLOSED),
    (S.OPEN, S.DRAINING),
    (S.OPEN, S.ASIDE),
    (S.OPEN, S.CLOSED),
    (S.DRAINING, S.OPEN),
    (S.DRAINING, S.CLOSING),
    (S.DRAINING, S.ASIDE),
    (S.DRAINING, S.CLOSED),
    (S.CLOSING, S.ASIDE),
    (S.CLOSING, S.CLOSED),
    (S.ASIDE, S.CLOSING),
    (S.ASIDE, S.CLOSED),
    (S.OPEN, S.MOVED),
    (S.MOVED, S.OPEN),
    (S.MOVED, S.ASIDE),
}
PAIRS = list(product(ChannelStatus, repeat=2))


def reachable(start: ChannelStatus) -> set[ChannelStatus]:
    found = {start}
    while True:
        more = {after for before, after in LEGAL if before in found} - found
        if not more:
            return found
        found |= more


@pytest.mark.parametrize(("current", "following"), PAIRS)
def test_each_pair(current: ChannelStatus, following: ChannelStatus) -> None:
    before = {status: frozenset(after) for status, after in TRANSITIONS.items()}
    if current is following or (current, following) in LEGAL:
        assert advance(current, following) is following
    else:
        with pytest.raises(IllegalTransition, match=f"is {current} cannot become {following}"):
            advance(current, following)
    assert before == TRANSITIONS


def test_the_table_names_every_state() -> None:
    assert set(TRANSITIONS) == set(ChannelStatus)
    assert {(before, after) for before, found in TRANSITIONS.items() for after in found} == LEGAL


def test_every_state_is_reached_from_a_proposal_and_can_end() -> None:
    assert reachable(S.PROPOSED) == set(ChannelStatus)
    for status in ChannelStatus:
        assert reachable(status) & FINAL, f"{status} can never end"


def test_final_is_final() -> None:
    assert {S.CLOSED, S.FAILED, S.MOVED} == FINAL
    for status in FINAL - {S.MOVED}:
        assert reachable(status) == {status}


def test_what_was_moved_is_used_again_only_when_it_is_moved_back() -> None:
    assert {after for before, after in LEGAL if before is S.MOVED} == {S.OPEN, S.ASIDE}
    assert {before for before, after in LEGAL if after is S.MOVED} == {S.OPEN}


def test_what_has_landed_never_fails() -> None:
    """A channel with a deposit must not become a tombstone that gives its counters back."""
    for status in (S.OPEN, S.DRAINING, S.CLOSING, S.ASIDE):
        assert S.FAILED not in reachable(status)


def test_what_is_set_aside_is_never_used_again() -> None:
    for status in (S.ASIDE, S.CLOSING):
        assert not reachable(status) & REUSABLE


def test_nothing_opens_that_was_not_proposed() -> None:
    assert {before for before, after in LEGAL if after is S.OPEN} == {*PENDING_OPEN, S.DRAINING, S.MOVED}
    assert not {before for before, after in LEGAL if after is S.PROPOSED}


def test_the_sets_of_states() -> None:
    assert {S.PROPOSED, S.SENT, S.UNKNOWN} == PENDING_OPEN
    assert PENDING_OPEN | {S.OPEN} == REUSABLE


def test_states_are_written_as_words() -> None:
    assert [status.value for status in ChannelStatus] == [
        *("proposed", "sent", "unknown", "open", "draining", "closing", "aside", "closed", "failed"),
        "moved",
    ]
