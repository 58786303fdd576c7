"""What `channels show` tells: the account, the history, and what comes next."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy_addon.cli.account import Event, History, next_step
from proxy_addon.cli.main import bursar
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
            "closing by force: withdraw after 2027-01-15 08:16:00Z with .*close --force 0x11110000",
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
    text = next_step(View(channel, ownership), PATH_USD, history, START)
    assert re.search(told if ".*" in told or "\\(" in told else re.escape(told), text), text


def test_a_withdrawal_that_is_due_says_so() -> None:
    closing = View(replace(CHANNEL, status=ChannelStatus.CLOSING), Ownership.IDLE)
    assert next_step(closing, PATH_USD, REQUESTED, READY * 1000).startswith(
        "closing by force: withdraw now with"
    )


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
