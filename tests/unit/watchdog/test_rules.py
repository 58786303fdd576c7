"""What comes next for a channel that nobody uses: by table."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.watchdog.rules import TRIES_BEFORE_FORCE, Rules, Step, decide
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus
from store.records import Channel, PendingTransaction
from tests.unit.methods import samples

S = ChannelStatus
NOW = 1_800_000_000_000
IDLE, FORCE = 3_600_000, 600_000
HOST, QUICK, NEVER = (
    "https://api.example.com:443",
    "https://quick.example.com:443",
    "https://never.example.com:443",
)
PENDING = PendingTransaction("top_up", "0x76", "0x" + "11" * 32, 1, 1)
TRIED = TRIES_BEFORE_FORCE


def rules(force_after_ms: int = FORCE) -> Rules:
    idle = {HOST: IDLE, QUICK: 1_000, NEVER: 0}
    return Rules(idle.__getitem__, force_after_ms, lambda channel: 0, 60)


def channel(status: ChannelStatus, waited: int, **changes: Any) -> Channel:
    origin = changes.pop("origin", HOST)
    fields = {"status": status, "updated_at": NOW - waited, "deposit": 10, **changes}
    return samples.channel(scope=samples.scope(origin=origin), **fields)


def next_step(record: Channel, *, force: int = FORCE, **told: Any) -> Step:
    usual: dict[str, Any] = {"now": NOW, "left": False, "gone": False, "requested": False, "tries": 0}
    return decide(record, rules(force), **(usual | told))


@pytest.mark.parametrize(
    ("record", "told", "step"),
    [
        # idle
        (channel(S.OPEN, IDLE - 1), {}, Step.LEAVE),
        (channel(S.OPEN, IDLE), {}, Step.CLOSE),
        (channel(S.OPEN, IDLE, eligible_at=NOW + 1), {}, Step.LEAVE),  # something lost may still be charged
        (channel(S.OPEN, IDLE, eligible_at=NOW), {}, Step.CLOSE),
        (channel(S.OPEN, 1_000, origin=QUICK), {}, Step.CLOSE),
        (channel(S.OPEN, 10**12, origin=NEVER), {"tries": TRIED}, Step.LEAVE),
        (channel(S.OPEN, -5), {}, Step.LEAVE),  # the clock went back
        # the server does not help
        (channel(S.OPEN, IDLE + FORCE), {"tries": TRIED - 1}, Step.CLOSE),
        (channel(S.OPEN, IDLE + FORCE - 1), {"tries": TRIED}, Step.CLOSE),
        (channel(S.OPEN, IDLE + FORCE), {"tries": TRIED}, Step.FORCE),
        (channel(S.OPEN, IDLE + FORCE), {"tries": TRIED, "force": 0}, Step.CLOSE),
        (channel(S.CLOSING, FORCE, close_amount=5), {"tries": TRIED}, Step.FORCE),
        (channel(S.CLOSING, FORCE, close_amount=5), {"tries": TRIED - 1}, Step.CLOSE),
        (channel(S.CLOSING, FORCE - 1, close_amount=5), {"tries": TRIED}, Step.CLOSE),
        (channel(S.CLOSING, 10**12, close_amount=5), {"tries": TRIED, "force": 0}, Step.CLOSE),
        # begun, and not ended
        (channel(S.DRAINING, 0), {}, Step.CLOSE),
        (channel(S.CLOSING, 0), {}, Step.FORCE),
        (channel(S.CLOSING, 0), {"force": 0}, Step.LEAVE),
        # set aside
        (channel(S.ASIDE, FORCE - 1), {}, Step.LEAVE),
        (channel(S.ASIDE, FORCE), {}, Step.FORCE),
        (channel(S.ASIDE, FORCE, eligible_at=NOW + 1), {}, Step.LEAVE),
        (channel(S.ASIDE, 10**12), {"force": 0}, Step.LEAVE),
        # what the chain says goes before
        (channel(S.OPEN, 0), {"gone": True}, Step.CLOSE),
        (channel(S.ASIDE, 0), {"gone": True, "force": 0}, Step.CLOSE),
        (channel(S.CLOSING, 0), {"gone": True, "force": 0}, Step.CLOSE),
        (channel(S.OPEN, IDLE), {"requested": True, "force": 0}, Step.LEAVE),
        (channel(S.ASIDE, 0), {"requested": True}, Step.FORCE),
        (channel(S.CLOSING, 0, close_amount=5), {"requested": True}, Step.FORCE),
        # a dead owner's
        (channel(S.OPEN, 10**12), {"left": True}, Step.RECOVER),
        (channel(S.DRAINING, 0), {"left": True}, Step.CLOSE),
        (channel(S.CLOSING, 0, close_amount=5), {"left": True}, Step.CLOSE),
        (channel(S.ASIDE, FORCE), {"left": True}, Step.FORCE),
        # only the chain decides
        *((channel(status, 10**12), {}, Step.RESOLVE) for status in sorted(PENDING_OPEN)),
        (channel(S.OPEN, 0, pending=PENDING), {}, Step.RESOLVE),
        (channel(S.ASIDE, 10**12, pending=PENDING), {"left": True}, Step.RESOLVE),
        *((channel(status, 10**12), {"tries": TRIED}, Step.LEAVE) for status in sorted(FINAL)),
    ],
)
def test_the_next_step(record: Channel, told: dict[str, Any], step: Step) -> None:
    assert next_step(record, **told) is step


@given(
    status=st.sampled_from(ChannelStatus),
    waited=st.integers(-IDLE, 10**12),
    eligible=st.integers(-IDLE, IDLE),
    close_amount=st.none() | st.integers(0, 10),
    told=st.fixed_dictionaries(
        {
            "left": st.booleans(),
            "gone": st.booleans(),
            "requested": st.booleans(),
            "tries": st.integers(0, 9),
            "force": st.sampled_from((0, 1, FORCE)),
        }
    ),
)
def test_nothing_is_forced_that_the_config_does_not_allow(
    status: ChannelStatus, waited: int, eligible: int, close_amount: int | None, told: dict[str, Any]
) -> None:
    record = channel(status, waited, close_amount=close_amount, eligible_at=NOW + eligible)
    step = next_step(record, **told)
    if not told["force"]:
        assert step is not Step.FORCE
    if status is S.OPEN and not (told["gone"] or told["requested"]):
        # A channel that may pay is closed only when it has been idle, and nothing can still be charged on it.
        assert step in (Step.LEAVE, Step.RECOVER) or (waited >= IDLE and eligible <= 0)
    if step is Step.FORCE and status is S.OPEN and not told["requested"]:
        assert told["tries"] >= TRIED
