"""Vouchers of a metered stream: when they leave, for how much, and what is booked when it ends.

The stream itself is the test's: it feeds the body's events. Vouchers go to the demo's shop, which checks them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from mitmproxy import connection, http

from proxy_addon.core.dispatch import RESERVE_AFTER, RESERVE_PRICES
from proxy_addon.core.errors import OutcomeUnknown
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.mitm.gate import Outcome
from proxy_addon.mitm.uplink import with_fields
from proxy_addon.outbound import Answer
from proxy_addon.payer import opening, raising, streams, topping
from proxy_addon.payer.ticket import PayTicket
from proxy_addon.payer.wants import ChannelUnusable
from store.records import Channel
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Payer, Shop, ticks

P = PRICE
OTHER_CHANNEL = "0x" + "ab" * 32


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (opening, topping):
        monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.001)


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> list[float]:
    """A stream's waits move the clock instead; they are collected."""
    taken: list[float] = []

    async def sleep(seconds: float) -> None:
        taken.append(seconds)
        shop.clock.ahead += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr(streams, "asyncio", SimpleNamespace(sleep=sleep))
    return taken


class Stream:
    """One open stream of a payer, from its header on."""

    def __init__(self, payer: Payer, path: str = "/quote") -> None:
        self.payer = payer
        self.path = path
        self.ended = False

    async def open(self) -> Stream:
        payer = self.payer
        client = connection.Client(peername=("127.0.0.1", 9), sockname=("127.0.0.1", 8), timestamp_start=0)
        flow = http.HTTPFlow(client, connection.Server(address=None))
        flow.request = http.Request.make("GET", f"{payer.shop.url}{self.path}")
        ticket = payer.gate.consider(flow)
        assert isinstance(ticket, PayTicket)
        self.ticket = ticket
        outgoing = payer.gate.prepare_now(ticket) or await payer.gate.prepare(ticket)
        response = await payer._once(with_fields(flow.request, outgoing), [])
        assert response.status_code == 200
        del response.headers["Payment-Receipt"]
        response.headers["content-type"] = "text/event-stream"
        body = payer.gate.received(ticket, response)
        assert body is not None
        self.body = body
        assert ticket.attempt is not None
        assert ticket.attempt.stream is not None
        self.metered = ticket.attempt.stream
        return self

    @property
    def channel(self) -> Channel:
        assert self.ticket.attempt is not None
        return self.ticket.attempt.grant.till.channel

    def need(self, required: int, channel_id: str | None = None) -> None:
        """The server pauses, and says what it wants."""
        account = self.payer.shop.accounts[self.channel.channel_id]
        event = {
            "channelId": channel_id or self.channel.channel_id,
            "requiredCumulative": str(required),
            "acceptedCumulative": str(account.accepted),
            "deposit": str(account.deposit),
        }
        assert self.body.feed(_event("payment-need-voucher", event)) == b""

    def token(self) -> None:
        """The server goes on, and counts one unit."""
        self.payer.shop.accounts[self.channel.channel_id].spent += P
        text = b"data: token\n\n"
        assert self.body.feed(text) == text

    def receipt(self, spent: int, channel_id: str | None = None) -> None:
        event = {
            "method": "tempo",
            "intent": "session",
            "status": "success",
            "timestamp": "2026-01-01T00:00:00Z",
            "reference": self.channel.channel_id,
            "challengeId": "c",
            "channelId": channel_id or self.channel.channel_id,
            "acceptedCumulative": str(spent),
            "spent": str(spent),
            "units": 1,
        }
        assert self.body.feed(_event("payment-receipt", event)) == b""

    async def answered(self) -> None:
        """Until nothing is on its way for the last need."""
        if (task := self.metered._task) is not None:
            await asyncio.wait([task], timeout=20)
        assert self.metered._task is None

    def end(self, outcome: Outcome = Outcome.COMPLETE) -> None:
        self.body.end()
        self.payer.gate.finished(self.ticket, outcome)

    @property
    def error(self) -> Mapping[str, Any]:
        """The event that tells the client why its stream ends here."""
        stopped = self.body.stopped
        assert stopped is not None
        name, data, *rest = stopped.split(b"\n")
        assert (name, rest) == (b"event: error", [b"", b""])
        error: Mapping[str, Any] = json.loads(data.removeprefix(b"data: "))["error"]
        return error


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def warm(payer: Payer) -> Payer:
    """One price paid and counted; the channel is there."""
    assert (await payer.get()).status == 200
    await payer.settled()
    return payer


async def streaming(payer: Payer) -> Stream:
    """A stream whose first unit was paid for with its request."""
    return await Stream(await warm(payer)).open()


def heads(shop: Shop, answer: Callable[[int], Response | None] = lambda number: None) -> list[int]:
    """The vouchers that arrive by HEAD. `answer` may answer the n-th of them (from 0) in the shop's place."""
    seen: list[int] = []

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        if request.method != "HEAD":
            return None
        seen.append(int(payload["cumulativeAmount"]))
        return answer(len(seen) - 1)

    shop.script = script
    return seen


class TestVouchers:
    async def test_exactly_what_is_needed(self, payer: Payer, shop: Shop) -> None:
        stream = await streaming(payer)  # of 2 prices, both counted
        seen = heads(shop)
        for units in (3, 4, 7):
            stream.need(units * P)
            assert stream.body.waiting
            await stream.answered()
            assert shop.account.accepted == stream.channel.authorised == units * P
            while shop.account.spent < units * P:
                stream.token()
            assert not stream.body.waiting
        assert seen == [3 * P, 4 * P, 7 * P]
        stream.receipt(7 * P)
        stream.end()
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.free, channel.held) == (7 * P, 0, 0, 0)
        assert channel.accepted == 7 * P

    async def test_many_vouchers_share_a_commit_and_each_is_what_is_needed(
        self, make_payer: MakePayer, shop: Shop
    ) -> None:
        payer = make_payer(reserve="1")
        stream = await streaming(payer)
        commits = payer.commits
        seen = heads(shop)
        count = RESERVE_AFTER - 1 + RESERVE_PRICES  # the request itself was the first of those who were alone
        for units in range(3, 3 + count):
            stream.need(units * P)
            await stream.answered()
            assert shop.account.accepted == stream.channel.issued == units * P
            while shop.account.spent < units * P:
                stream.token()
        assert seen == [units * P for units in range(3, 3 + count)]
        assert payer.commits - commits == RESERVE_AFTER - 1
        stream.receipt((2 + count) * P)
        stream.end()
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.held, channel.free) == ((2 + count) * P, 0, 0, 0)

    async def test_a_channel_that_is_lost_meanwhile_signs_nothing(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = await streaming(payer)
        till, attempt = payer.till, stream.ticket.attempt
        assert attempt is not None

        async def lost(*_: Any) -> None:
            till.fenced = True

        monkeypatch.setattr(raising, "charge_stream", lost)
        before, signatures = till.channel, till.signatures
        with pytest.raises(ChannelUnusable, match="went to another process"):
            await raising.grow(till, attempt.grant.hold, till.channel.spare + P, attempt.want)
        assert (till.channel, till.signatures) == (before, signatures)
        till.fenced = False

    async def test_the_next_request_uses_the_channel(self, payer: Payer, shop: Shop) -> None:
        stream = await streaming(payer)
        assert payer.till.exclusive == stream.ticket.facts.request_id
        stream.need(3 * P)
        await stream.answered()
        stream.token()
        stream.receipt(3 * P)
        stream.end()
        assert payer.till.exclusive is None
        got = await payer.get()
        assert (got.status, got.problems) == (200, [])
        assert payer.till.channel.paid == shop.account.spent == 4 * P

    async def test_other_requests_have_a_channel_of_their_own(self, payer: Payer, shop: Shop) -> None:
        stream = await streaming(payer)
        got = await asyncio.gather(payer.get("/other"), payer.get())
        assert {one.status for one in got} <= {200, 404}
        assert len(shop.accounts) == 2
        assert stream.channel.holds.keys() == {stream.ticket.facts.request_id}
        stream.receipt(2 * P)
        stream.end()

    async def test_another_channels_need_is_ignored(
        self, payer: Payer, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream = await streaming(payer)
        seen = heads(shop)
        stream.need(5 * P, OTHER_CHANNEL)
        await stream.answered()
        assert (seen, stream.body.waiting, stream.body.stopped) == ([], False, None)
        assert stream.channel.authorised == 2 * P
        assert "a channel that is not this stream's" in caplog.text
        stream.receipt(9 * P, OTHER_CHANNEL)
        stream.end()
        assert payer.till.channel.paid == P  # nothing proves that the second was charged
        assert payer.till.channel.uncertain == P

    async def test_a_repeat_gets_the_same_voucher_once_a_second(
        self, payer: Payer, shop: Shop, naps: list[float]
    ) -> None:
        stream = await streaming(payer)
        seen = heads(shop)
        stream.need(3 * P)
        await stream.answered()
        for _ in range(3):
            before = shop.clock.ms()
            stream.need(3 * P)
            await stream.answered()
            assert shop.clock.ms() - before >= 900
        assert seen == [3 * P] * 4
        assert (len(naps), max(naps) <= 1) == (3, True)
        assert stream.channel.authorised == 3 * P
        stream.token()
        stream.receipt(3 * P)
        stream.end()

    async def test_what_is_no_event_of_ours_to_read(
        self, payer: Payer, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream = await streaming(payer)
        assert stream.body.feed(b"event: payment-need-voucher\ndata: {\n\n") == b""
        assert "cannot be read" in caplog.text
        stream.receipt(2 * P)
        stream.end()


class TestLimits:
    @pytest.mark.parametrize(
        ("rule", "needs", "reason"),
        [
            ({"max_stream_step": "0.02"}, [4, 7], "over-stream-step"),
            ({"max_per_stream": "0.04"}, [3, 4, 5, 6], "over-stream-total"),  # its first unit counts, too
            ({"max_deposit": "0.05", "deposit": "0.05"}, [4, 5, 6], "deposit-used-up"),
            ({"max_per_day": "0.05"}, [4, 5, 6], "limit-reached"),
        ],
    )
    async def test_it_ends_at(
        self, make_payer: MakePayer, shop: Shop, rule: dict[str, str], needs: list[int], reason: str
    ) -> None:
        payer = make_payer(**rule)
        stream = await streaming(payer)
        *paid, refused = needs
        for units in paid:
            assert stream.body.stopped is None
            stream.need(units * P)
            await stream.answered()
            assert shop.account.accepted == units * P
            while shop.account.spent < units * P:
                stream.token()
        seen = heads(shop)
        stream.need(refused * P)
        await stream.answered()
        assert (seen, stream.body.waiting) == ([], True)  # so that the body is ended soon
        assert stream.error["code"] == reason
        assert stream.error["type"] == "payment_required"
        stream.need((refused + 1) * P)
        await stream.answered()
        assert seen == []
        stream.end(Outcome.CUT)
        assert shop.account.accepted == stream.channel.authorised == paid[-1] * P
        assert stream.channel.paid == shop.account.spent
        (line,) = [one for one in ledger(payer) if one.get("outcome") == "stream-ended"]
        assert line["reason"] == reason

    async def test_a_day_that_is_used_up_ends_one_stream_only(
        self, make_payer: MakePayer, caplog: pytest.LogCaptureFixture
    ) -> None:
        payer = make_payer(max_per_day="0.05")
        one = await streaming(payer)
        other = await Stream(payer).open()
        other.need(2 * P)
        await other.answered()
        one.need(4 * P)
        await one.answered()
        stopped = [each for each in (one, other) if each.body.stopped is not None]
        assert stopped == [one]
        assert "max_per_day" in one.error["message"]
        assert "stream ended" in caplog.text
        other.token()
        other.receipt(2 * P)
        other.end()
        one.end(Outcome.CUT)
        assert sum((await payer.store.counters("host-day/")).values()) == 4 * P

    async def test_so_much_a_second(self, make_payer: MakePayer, shop: Shop, naps: list[float]) -> None:
        payer = make_payer(max_stream_per_second="0.02")
        stream = await streaming(payer)
        seen = heads(shop)
        began = shop.clock.ahead
        for units in range(3, 9):
            stream.need(units * P)
            await stream.answered()
            stream.token()
        assert seen == [units * P for units in range(3, 9)]
        assert shop.clock.ahead - began > 1.5  # two a second; the first two at once
        stream.need(12 * P)  # one step may be over it: it waits for a whole second of its own
        await stream.answered()
        assert shop.account.accepted == 12 * P
        stream.receipt(8 * P)
        stream.end()


class TestDeposit:
    @pytest.fixture
    def shop(self) -> Shop:
        """Suggests deposits for five units."""
        return Shop(suggested_deposit=5 * P)

    async def test_topped_up_first(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = make_payer(max_deposit="0.3")
        stream = await streaming(payer)
        order: list[str] = []

        def script(request: Request, payload: Mapping[str, Any]) -> None:
            order.append(f"{payload['action']} {payload.get('cumulativeAmount', '')}".strip())

        shop.script = script
        for units in (5, 6):
            stream.need(units * P)
            await stream.answered()
            while shop.account.spent < units * P:
                stream.token()
        assert order == [f"voucher {5 * P}", "topUp", f"voucher {6 * P}"]
        assert stream.channel.deposit == shop.chain.channel(stream.channel.channel_id).deposit == 10 * P
        stream.receipt(6 * P)
        stream.end()
        assert payer.till.channel.paid == 6 * P

    async def test_as_large_as_needed(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = make_payer(max_deposit="0.3")
        stream = await streaming(payer)
        stream.need(7 * P)
        await stream.answered()
        assert shop.account.accepted == 7 * P
        stream.end(Outcome.CUT)
        # How much of the seven was asked for at once, and how much counted before, nobody said.
        assert payer.till.channel.paid == 2 * P
        assert payer.till.channel.uncertain == 5 * P

    async def test_a_top_up_that_fails(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = make_payer(max_deposit="0.3", max_deposits_per_day="0.09")
        stream = await streaming(payer)
        stream.need(6 * P)
        await stream.answered()
        assert stream.error["code"] == "deposit-used-up"
        stream.end(Outcome.CUT)
        assert stream.channel.authorised == 2 * P


class TestRefusals:
    async def test_an_expired_challenge(self, payer: Payer, shop: Shop) -> None:
        """Most likely: a HEAD's refusal has no reason. The same voucher, with the fresh challenge."""
        stream = await streaming(payer)
        seen = heads(shop, lambda number: shop.refusal(None) if number == 0 else None)
        stream.need(3 * P)
        await stream.answered()
        assert seen == [3 * P, 3 * P]
        assert stream.body.stopped is None
        stream.token()
        stream.receipt(3 * P)
        stream.end()

    async def test_a_step_too_small(self, payer: Payer, shop: Shop) -> None:
        stream = await streaming(payer)
        small = shop.refusal("session/delta-too-small")
        seen = heads(shop, lambda number: small if number == 0 else None)
        stream.need(3 * P)
        await stream.answered()
        assert seen[0] == 3 * P
        assert seen[1] > 3 * P
        assert stream.channel.min_delta > 1
        assert stream.channel.authorised == shop.account.accepted == seen[1]
        stream.token()
        stream.receipt(3 * P)
        stream.end()

    async def test_the_servers_idea_of_the_deposit_is_old(self, payer: Payer, shop: Shop) -> None:
        stream = await streaming(payer)
        over = shop.refusal("session/amount-exceeds-deposit")
        seen = heads(shop, lambda number: over if number == 0 else None)
        stream.need(3 * P)
        await stream.answered()
        assert (seen, stream.body.stopped) == ([3 * P, 3 * P], None)
        stream.token()
        stream.receipt(3 * P)
        stream.end()

    @pytest.mark.parametrize(
        "kind", [None, "verification-failed", "session/invalid-signature", "payment-expired"]
    )
    async def test_nothing_helps(self, payer: Payer, shop: Shop, kind: str | None) -> None:
        stream = await streaming(payer)
        seen = heads(shop, lambda number: shop.refusal(kind))
        stream.need(3 * P)
        await stream.answered()
        assert stream.error["code"] == "refused-by-server"
        assert 1 <= len(seen) <= streams.MOST_TRIES
        assert stream.channel.authorised <= 3 * P + streams.MOST_TRIES * max(1, stream.channel.min_delta)
        stream.end(Outcome.CUT)
        assert payer.till.channel.paid == 2 * P
        assert payer.till.channel.uncertain == payer.till.channel.authorised - 2 * P

    async def test_lost_is_sent_again_without_new_money(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = await streaming(payer)
        seen = heads(shop)
        lost = slow_outbound(monkeypatch, payer, lose=2)
        stream.need(3 * P)
        await stream.answered()
        assert (lost, seen) == (["HEAD", "HEAD"], [3 * P] * 3)  # all three arrived
        assert stream.channel.authorised == 3 * P
        stream.token()
        stream.receipt(3 * P)
        stream.end()

    async def test_always_lost(self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = await streaming(payer)
        lost = slow_outbound(monkeypatch, payer, lose=1000)
        stream.need(3 * P)
        await stream.answered()
        assert len(lost) == streams.MOST_TRIES
        assert stream.error["code"] == "refused-by-server"
        stream.end(Outcome.CUT)


def slow_outbound(monkeypatch: pytest.MonkeyPatch, payer: Payer, *, lose: int) -> list[str]:
    """The answers to the first requests of our own are lost."""
    lost: list[str] = []
    send = payer.parts.outbound.send

    async def sending(method: str, url: str, headers: Mapping[str, str]) -> Answer:
        answer = await send(method, url, headers)
        if len(lost) < lose:
            lost.append(method)
            raise OutcomeUnknown("lost")
        return answer

    monkeypatch.setattr(payer.parts.outbound, "send", sending)
    return lost


class TestTheEnd:
    async def test_charged_by_the_last_receipt(self, payer: Payer) -> None:
        stream = await streaming(payer)
        stream.need(5 * P)
        await stream.answered()
        stream.token()
        stream.receipt(3 * P)
        stream.end()
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.free) == (3 * P, 2 * P, 0)
        # A later receipt says what became of the rest.
        assert (await payer.get()).status == 200
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.free) == (4 * P, 0, 2 * P)

    @pytest.mark.parametrize("spent", [0, 100 * P])
    async def test_a_lying_receipt(self, make_payer: MakePayer, shop: Shop, spent: int) -> None:
        payer = make_payer()
        stream = await streaming(payer)
        stream.need(4 * P)
        await stream.answered()
        stream.token()
        stream.receipt(spent)
        stream.end()
        channel = payer.till.channel
        assert channel.authorised == 4 * P
        assert P <= channel.paid <= 4 * P
        shop.account.spent = max(channel.paid, min(shop.account.spent, channel.paid + channel.uncertain))

    async def test_cut_before_it_asked(self, payer: Payer) -> None:
        stream = await streaming(payer)
        stream.end(Outcome.CUT)
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.free) == (P, P, 0)

    async def test_cut_while_it_waits(self, payer: Payer) -> None:
        """What came before the last need was delivered; of the rest nobody knows."""
        stream = await streaming(payer)
        for units in (3, 4):
            stream.need(units * P)
            await stream.answered()
            stream.token()
        stream.need(5 * P)
        stream.end(Outcome.CUT)
        channel = payer.till.channel
        assert channel.paid == 4 * P
        assert channel.paid + channel.uncertain + channel.free == channel.authorised
        assert stream.metered._closed

    async def test_after_its_end_nothing_leaves(self, payer: Payer, shop: Shop) -> None:
        stream = await streaming(payer)
        seen = heads(shop)
        stream.end(Outcome.CUT)
        stream.need(3 * P)
        await ticks(50)
        assert (seen, payer.till.channel.authorised) == ([], 2 * P)

    @pytest.mark.parametrize("turns", range(12))
    async def test_the_client_leaves_while_we_pay(self, payer: Payer, shop: Shop, turns: int) -> None:
        """Wherever that catches us, the channel stays good."""
        stream = await streaming(payer)
        commit_slowly(payer)
        stream.need(3 * P)
        await ticks(turns)
        stream.end(Outcome.CUT)
        await ticks(50)
        signed = payer.till.channel.accepted
        assert signed <= payer.till.channel.authorised <= 3 * P
        record = await payer.store.find(payer.till.channel.channel_id)
        assert record is not None
        assert record.authorised == payer.till.channel.authorised
        got = await payer.get()
        assert got.status == 200
        assert len(shop.accounts) == 1
        shop.account.spent = min(shop.account.spent, payer.till.channel.paid + payer.till.channel.uncertain)

    async def test_a_voucher_on_its_way_is_not_interrupted(
        self, payer: Payer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Cancelled requests stay in the pool of connections, until it has no room for anybody's voucher."""
        stream = await streaming(payer)
        ended: list[str] = []

        async def slow(method: str, url: str, headers: Mapping[str, str]) -> Answer:
            try:
                await ticks(10)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            ended.append("answered")
            return Answer(204, (), b"")

        monkeypatch.setattr(payer.parts.outbound, "send", slow)
        stream.need(3 * P)
        async with asyncio.timeout(20):
            while payer.till.channel.authorised < 3 * P:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await ticks(3)
        stream.end(Outcome.CUT)
        await stream.answered()
        assert ended == ["answered"]

    async def test_a_commit_that_fails_after_its_end_is_no_news(
        self, payer: Payer, caplog: pytest.LogCaptureFixture
    ) -> None:
        stream = await streaming(payer)
        commit_slowly(payer)
        stream.need(3 * P)
        await ticks(4)
        assert stream.metered._busy
        stream.end(Outcome.CUT)
        await stream.answered()
        assert stream.metered.stop_reason is None
        assert "failed inside" not in caplog.text
        assert payer.till.channel.free == P


def commit_slowly(payer: Payer) -> None:
    """The record is written a few turns before we hear of it, as with a disk."""
    write: Callable[..., Awaitable[None]] = payer.store.set

    async def slow(*arguments: Any) -> None:
        await write(*arguments)
        await ticks(5)

    payer.store.set = slow  # type: ignore[assignment, method-assign]


def ledger(payer: Payer) -> list[dict[str, Any]]:
    files = sorted(payer.parts.ledger.glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]
