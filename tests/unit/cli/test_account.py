"""What `channels show` tells: the account, the history, and what comes next."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy_addon.cli.account import Event, History
from proxy_addon.cli.main import bursar
from proxy_addon.cli.next_steps import Outlook, in_short, next_step, ready_times
from proxy_addon.cli.records import Ownership, View
from store.account import Ending
from store.lifecycle import ChannelStatus
from store.records import Channel, PendingTransaction
from tests.unit.cli.bookkeeper import PATH_USD, START, Bookkeeper
from tests.unit.methods import samples

ONE = "0x1111" + "00" * 30
NONE = History(0, {}, ())
READY = START // 1000 + 960
REQUESTED = History(3, {}, (Event("2027-01-15T08:00:00Z", "close-requested", "", "0x1", READY),))


def pending(kind: str) -> PendingTransaction:
    assert kind in ("open", "top_up")
    return PendingTransaction(
        kind="open" if kind == "open" else "top_up",
        raw="0x76",
        tx_hash="0x99",
        valid_before=START // 1000,
        deposit=500_000,
    )


CHANNEL = samples.channel(
    channel_id=ONE,
    deposit=1_000_000,
    authorised=600_000,
    paid=570_000,
    status=ChannelStatus.OPEN,
    close_amount=None,
    pending=None,
    note="",
)
BACK = "0.43 pathUSD"


@pytest.mark.parametrize(
    ("channel", "ownership", "history", "told"),
    [
        (CHANNEL, Ownership.IDLE, NONE, f"idle: close to get {BACK} back: bursar channels close 0x11110000"),
        (
            replace(CHANNEL, uncertain=10_000),
            Ownership.IDLE,
            NONE,
            "0.42 pathUSD back (and what of the 0.01 pathUSD uncertain was not charged)",
        ),
        (CHANNEL, Ownership.IN_USE, NONE, f"in use by a running proxy, .* to get {BACK} back"),
        (
            replace(CHANNEL, uncertain=30_000),
            Ownership.LEFT,
            NONE,
            "its process died: .* recovers it, with 0.03 pathUSD uncertain",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.SENT, pending=pending("open")),
            Ownership.IN_USE,
            NONE,
            "opening: the chain decides, until a block past 2027-01-15 08:00:00Z",
        ),
        (
            replace(CHANNEL, pending=pending("top_up")),
            Ownership.IN_USE,
            NONE,
            "a top-up of 0.50 pathUSD: the chain decides, until a block past 2027-01-15 08:00:00Z",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.ASIDE, note="wrong signer"),
            Ownership.IDLE,
            NONE,
            rf"set aside \(wrong signer\): bursar channels close 0x11110000 brings up to {BACK} back; .*--force",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.DRAINING),
            Ownership.IDLE,
            NONE,
            f"a close was begun: .*{BACK}",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.CLOSING, close_amount=570_000),
            Ownership.IDLE,
            NONE,
            "a close of 0.57 pathUSD was signed: bursar channels close 0x11110000 asks",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.CLOSING),
            Ownership.IDLE,
            REQUESTED,
            "closing by force: withdraw possible at 2027-01-15 08:16:00Z (in 16 min) with bursar channels"
            " close --force 0x11110000",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.CLOSING, close_amount=570_000),
            Ownership.IDLE,
            REQUESTED,
            "closing by force: withdraw possible at 2027-01-15 08:16:00Z (in 16 min)",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.ASIDE, note="it was requested"),
            Ownership.IDLE,
            REQUESTED,
            "its close was requested on the chain: withdraw possible at 2027-01-15 08:16:00Z",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.CLOSING),
            Ownership.IDLE,
            NONE,
            "closing by force: bursar channels close --force 0x11110000 says from when on",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.CLOSED, captured=570_000, refunded=430_000),
            Ownership.GONE,
            NONE,
            f"nothing: {BACK} came back",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.FAILED, note="it was never sent"),
            Ownership.GONE,
            NONE,
            "nothing: it was never sent; the deposit never left",
        ),
    ],
)
def test_what_comes_next(channel: Channel, ownership: Ownership, history: History, told: str) -> None:
    text = next_step(View(channel, ownership), PATH_USD, history.ready_at, by_hand(START))
    assert re.search(told if ".*" in told or "\\(" in told else re.escape(told), text), text


def by_hand(now: int) -> Outlook:
    """Nothing happens by itself."""
    return Outlook(now, lambda origin: 0, 0)


def test_a_withdrawal_that_is_due_says_so() -> None:
    closing = View(replace(CHANNEL, status=ChannelStatus.CLOSING), Ownership.IDLE)
    due = by_hand(READY * 1000)
    assert next_step(closing, PATH_USD, READY, due).startswith("closing by force: withdraw now with")
    assert in_short(closing, READY, due) == "withdraw now"


HOUR = 3_600_000
BY_ITSELF = Outlook(START, lambda origin: 24 * HOUR, 2 * HOUR)
ASIDE = replace(CHANNEL, status=ChannelStatus.ASIDE, note="gone", updated_at=START)


@pytest.mark.parametrize(
    ("channel", "ownership", "ready_at", "long", "short"),
    [
        (
            replace(CHANNEL, updated_at=START - HOUR),
            Ownership.IDLE,
            0,
            "a running proxy does so 2027-01-16 07:00:00Z (in 23 h)",
            "closes in 23 h",
        ),
        (
            replace(CHANNEL, updated_at=START - 25 * HOUR),
            Ownership.IDLE,
            0,
            "a running proxy does so now",
            "closes soon",
        ),
        (
            replace(CHANNEL, updated_at=START - 25 * HOUR, eligible_at=START + 90_000),
            Ownership.IDLE,
            0,
            "does so 2027-01-15 08:01:30Z (in 2 min)",
            "closes in 2 min",
        ),
        (ASIDE, Ownership.IDLE, 0, "or a running proxy does so, 2027-01-15 10:00:00Z", "close, or --force"),
        (ASIDE, Ownership.IDLE, READY, "requested", "withdraw possible at 2027-01-15 08:16:00Z (in 16 min)"),
        (ASIDE, Ownership.LEFT, 0, "its process died", "to be recovered"),
        (CHANNEL, Ownership.IN_USE, 0, "in use", "in use"),
        (
            replace(CHANNEL, status=ChannelStatus.DRAINING),
            Ownership.IDLE,
            0,
            "a close was begun",
            "close again",
        ),
        (
            replace(CHANNEL, status=ChannelStatus.SENT, pending=pending("open")),
            Ownership.IDLE,
            0,
            "the chain decides",
            "the chain decides",
        ),
        (replace(CHANNEL, status=ChannelStatus.MOVED), Ownership.GONE, 0, "moved to another store", ""),
    ],
)
def test_what_happens_by_itself(
    channel: Channel, ownership: Ownership, ready_at: int, long: str, short: str
) -> None:
    view = View(channel, ownership)
    assert long in next_step(view, PATH_USD, ready_at, BY_ITSELF)
    assert in_short(view, ready_at, BY_ITSELF) == short


async def test_when_deposits_can_be_withdrawn_is_in_the_ledger(tmp_path: Path) -> None:
    async with Bookkeeper(tmp_path / "store") as books:
        await books.open(ONE)
        books.audit.note("close-requested", "", channel_id=ONE, ready_at=READY)
        books.audit.note("close-noticed", "", channel_id=ONE, ready_at=None)
        books.audit.note("decision", 'a "ready_at" of somebody else', host="x")
        ledger = books.journal.path.parent
        assert ready_times(ledger) == {ONE: READY}
    assert ready_times(tmp_path / "nowhere") == {}


def test_show_tells_account_and_history(config: Path, runner: CliRunner) -> None:
    async def fill() -> None:
        async with Bookkeeper(config.parent / "store") as books:
            await books.open(ONE)
            books.pay(ONE, "r1", 10_000)
            books.pay(ONE, "r2", 2_000, Ending.UNDELIVERED)
            books.pay(ONE, "r3", 500, Ending.FREE)
            await books.commit(ONE)
            await books.release(ONE)

    asyncio.run(fill())
    shown = runner.invoke(bursar, ["channels", "show", "-c", str(config), "0x1111"]).stdout
    lines = {name: value.strip() for name, _, value in (line.partition("  ") for line in shown.splitlines())}
    assert lines["paid"] == "0.01 pathUSD"
    assert lines["next"].strip().startswith("idle: close to get 0.988 pathUSD back (and what of the 0.002")
    assert lines["requests"] == "3 sent: 1 free, 1 paid, 1 undelivered"
    assert lines["history"] == f"2027-01-15 08:00:02Z  opened: opened channel {ONE}"
    assert "cannot become charged any more from 2027-01-15" in lines["decided"]
    value = json.loads(
        runner.invoke(bursar, ["channels", "show", "-c", str(config), "0x1111", "--json"]).stdout
    )
    assert value["history"]["requests"] == {"sent": 3, "free": 1, "paid": 1, "undelivered": 1}
    assert [event["kind"] for event in value["history"]["events"]] == ["opened"]
    assert value["next"] == lines["next"]
