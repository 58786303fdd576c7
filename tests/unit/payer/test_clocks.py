"""F8: clocks that are wrong, or jump. Promise: an expired challenge is never paid; what is lost stays counted until
it cannot become a charge by the server's clock either; nothing waits for a clock that was set back."""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

import pytest
from mitmproxy import http

from proxy_addon.core.policy import Origin
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.clocks import MOST_BEHIND_MS, MOST_SERVERS, ServerClocks
from store.account import UNKNOWN_MARGIN_MS
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Payer, Shop
from tests.unit.payer.test_streams import heads, naps, streaming

__all__ = ["naps"]

P = PRICE
HERE = Origin("https", "api.example", 443)
NOW = 1_800_000_000_000
EXPIRES_S = 300
MARGIN_S = UNKNOWN_MARGIN_MS // 1000


def date(ms: int) -> str:
    return formatdate(ms / 1000, usegmt=True)


class TestMeasured:
    @pytest.mark.parametrize("seconds", [-7200, -3600, -40, -1, 0, 1, 40, 3600, 10**7])
    def test_either_way(self, seconds: int) -> None:
        clocks = ServerClocks()
        there = NOW + seconds * 1000
        assert clocks.heard(HERE, date(there), NOW) == there
        assert clocks.ahead(HERE) == max(0, seconds * 1000)
        assert clocks.behind(HERE) == min(max(0, -seconds * 1000), MOST_BEHIND_MS)

    @pytest.mark.parametrize("text", [None, "", "yesterday", "Wed, 99 Foo 2026 00:00:00 GMT", "0"])
    def test_who_does_not_tell_is_like_us(self, text: str | None) -> None:
        clocks = ServerClocks()
        assert clocks.heard(HERE, text, NOW) is None
        assert (clocks.ahead(HERE), clocks.behind(HERE)) == (0, 0)
        clocks.heard(HERE, date(NOW + 5000), NOW)
        clocks.heard(HERE, text, NOW)
        assert clocks.ahead(HERE) == 5000

    def test_within_one_second_the_first_sight_counts(self) -> None:
        clocks = ServerClocks()
        clocks.heard(HERE, date(NOW), NOW)
        clocks.heard(HERE, date(NOW), NOW + 900)
        assert clocks.behind(HERE) == 0
        clocks.heard(HERE, date(NOW + 1000), NOW + 1000)
        assert (clocks.ahead(HERE), clocks.behind(HERE)) == (0, 0)

    def test_each_server_has_its_own_and_memory_is_bounded(self) -> None:
        clocks = ServerClocks()
        for port in range(1, MOST_SERVERS + 5):
            clocks.heard(Origin("https", "api.example", port), date(NOW + port * 1000), NOW)
        assert clocks.ahead(Origin("https", "api.example", 1)) == 0
        assert clocks.ahead(Origin("https", "api.example", MOST_SERVERS)) == MOST_SERVERS * 1000
        assert len(clocks._heard) == MOST_SERVERS


@pytest.fixture
def dated(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The shop says what time it is: everyone else's."""
    usual = shop.take

    async def take(request: http.Request) -> http.Response:
        response = await usual(request)
        response.headers["Date"] = date(int(shop.clock.seconds() * 1000))
        return response

    monkeypatch.setattr(shop, "take", take)
    return shop


async def warm(payer: Payer) -> Payer:
    assert (await payer.get()).status == 200
    await payer.settled()
    return payer


async def lose(payer: Payer) -> None:
    """A payment that gets lost on its way there."""

    class Cut(Exception):
        pass

    async def cut(returning: bool) -> None:
        raise Cut

    usual, payer.shop.pace = payer.shop.pace, cut
    with pytest.raises(Cut):
        await payer.get("/quote", query={"lost": 1})
    payer.shop.pace = usual


class TestExpiry:
    @pytest.mark.parametrize("ours", [-400.0, -7200.0])
    async def test_a_clock_that_is_slow_pays_no_expired_challenge(
        self, payer: Payer, dated: Shop, ours: float
    ) -> None:
        """By our clock the kept challenge is good for long; by the server's it has expired."""
        dated.clock.wrong = ours
        if (
            ours == -7200.0
        ):  # whose challenges all seem to live too long, since nobody knows whose clock is wrong
            assert (await payer.get()).reason == "expires-too-late"
            return
        await warm(payer)
        dated.clock.ahead += EXPIRES_S + 1
        got = await payer.get()
        assert got.status == 200
        assert [one.action for one in got.sent] == [None, "voucher"]

    async def test_one_that_expires_by_the_servers_clock_only_is_refused(
        self, payer: Payer, dated: Shop
    ) -> None:
        dated.clock.wrong = -400.0

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if payload:
                return None
            dated.api.payee.challenges.expires_s = -10
            return None

        dated.script = script
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "expired", 1)

    @pytest.mark.parametrize("ours", [400.0, 86_400.0])
    async def test_a_clock_that_is_fast_pays_nothing(self, payer: Payer, dated: Shop, ours: float) -> None:
        """It cannot know that it is wrong, and the server's word alone is not enough."""
        dated.clock.wrong = ours
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "expired", 1)

    async def test_a_clock_that_jumps_ahead_asks_for_a_new_challenge(self, payer: Payer, dated: Shop) -> None:
        await warm(payer)
        dated.clock.wrong = 400.0
        got = await payer.get()
        assert (got.status, [one.action for one in got.sent]) == (402, [None])
        dated.clock.wrong = 0.0
        assert (await payer.get()).status == 200

    async def test_an_upload_that_takes_longer_than_its_challenge_lives(
        self, payer: Payer, dated: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The offer is chosen when the header comes, and used when the body is complete."""
        await warm(payer)
        usual = payer.gate.prepare_now

        def later(ticket: Any) -> Any:
            assert ticket.offer is not None
            dated.clock.ahead += EXPIRES_S
            return usual(ticket)

        monkeypatch.setattr(payer.gate, "prepare_now", later)
        got = await payer.get()
        assert got.status == 200
        assert [one.action for one in got.sent] == [None, "voucher"]


class TestEligibility:
    async def test_by_both_clocks(self, payer: Payer, dated: Shop) -> None:
        await warm(payer)
        await lose(payer)
        assert payer.till.channel.uncertain == P
        dated.clock.ahead += EXPIRES_S + MARGIN_S + 2
        assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == 0

    async def test_a_clock_that_jumps_ahead_clears_nothing(self, payer: Payer, dated: Shop) -> None:
        await warm(payer)
        await lose(payer)
        dated.clock.wrong = EXPIRES_S + MARGIN_S + 2
        # Its challenges all seem expired: only one that a server made for longer is paid.
        dated.api.payee.challenges.expires_s = 3_000
        await payer.get()
        assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == P
        dated.clock.wrong = 0.0
        dated.clock.ahead += EXPIRES_S + MARGIN_S + 2
        assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == 0

    async def test_a_clock_that_was_always_fast_waits_for_the_servers(
        self, payer: Payer, dated: Shop
    ) -> None:
        """40 s fast, over the 30 s of margin: at the end by our clock the server could still charge it."""
        dated.clock.wrong = 40.0
        await warm(payer)
        await lose(payer)
        eligible_at = payer.till.channel.eligible_at
        there = int((dated.clock.seconds() + EXPIRES_S + MARGIN_S) * 1000)
        assert (
            eligible_at - 40_000 >= there - 3_000
        )  # seconds are a Date's grain, and the offer is some ms old
        dated.clock.ahead += EXPIRES_S + MARGIN_S - 15
        assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == P
        dated.clock.ahead += 20
        assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == 0

    async def test_a_clock_that_is_set_back_clears_later(self, payer: Payer, dated: Shop) -> None:
        await warm(payer)
        await lose(payer)
        dated.clock.ahead += EXPIRES_S + MARGIN_S + 2
        dated.clock.wrong = -100.0
        assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == P
        dated.clock.wrong = 0.0
        assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == 0

    async def test_a_server_that_lives_in_the_past_keeps_its_own_money_in_doubt_only(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usual = shop.take

        async def take(request: http.Request) -> http.Response:
            response = await usual(request)
            response.headers["Date"] = "Thu, 01 Jan 1970 00:00:00 GMT"
            return response

        monkeypatch.setattr(shop, "take", take)
        await warm(payer)
        await lose(payer)
        channel = payer.till.channel
        assert channel.eligible_at <= shop.clock.ms() + EXPIRES_S * 1000 + UNKNOWN_MARGIN_MS + MOST_BEHIND_MS
        for _ in range(3):
            assert (await payer.get()).status == 200
        assert payer.till.channel.uncertain == P


class TestStreams:
    async def test_a_challenge_that_expires_on_the_way_is_replaced_before_the_next_voucher(
        self, payer: Payer, shop: Shop
    ) -> None:
        stream = await streaming(payer)
        asked: list[str | None] = []

        def script(request: Request, payload: Mapping[str, Any]) -> None:
            if request.method == "HEAD":
                asked.append(payload.get("action"))

        shop.script = script
        shop.clock.ahead += EXPIRES_S - 4  # in its last seconds it counts as expired
        for units in (3, 4):
            stream.need(units * P)
            await stream.answered()
            stream.token()
        assert asked == [None, "voucher", "voucher"]
        assert shop.account.accepted == 4 * P
        assert stream.body.stopped is None
        stream.end(Outcome.CUT)

    async def test_a_stream_ends_where_there_is_no_other_one(self, payer: Payer, shop: Shop) -> None:
        stream = await streaming(payer)
        seen = heads(shop, lambda number: Response(404))
        shop.clock.wrong = 86_400.0  # so that all of the server's challenges seem to have expired
        accepted = shop.account.accepted

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            assert not payload
            return None

        shop.script = script
        stream.need(3 * P)
        await stream.answered()
        assert (stream.error["code"], shop.account.accepted, seen) == ("expired", accepted, [])
        stream.end(Outcome.CUT)

    async def test_a_clock_that_is_set_back_stops_none(
        self, make_payer: MakePayer, shop: Shop, naps: list[float]
    ) -> None:
        """Neither the limit per second nor the second between two vouchers of one need waits for it."""
        payer = make_payer(max_stream_per_second="0.02")
        stream = await streaming(payer)
        for units in range(3, 6):
            stream.need(units * P)
            await stream.answered()
            stream.token()
        shop.clock.wrong = -3_000.0
        for units in range(6, 9):
            stream.need(units * P)
            await stream.answered()
            stream.need(units * P)
            await stream.answered()
            stream.token()
        assert shop.account.accepted == 8 * P
        assert max(naps) <= 1.0
        stream.end(Outcome.CUT)


class TestWaiting:
    """How long something takes is no moment of the day."""

    async def test_an_idle_channel_is_given_back(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.clock.wrong = -86_400.0
        shop.clock.ahead += 4
        await payer.gate.release_idle(3_000)
        assert payer.tills == []

    async def test_a_server_that_asked_for_patience_is_paid_again_in_time(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        shop.refuses_once("verification-failed", headers=[("Retry-After", "20")])
        assert (await payer.get()).status == 402
        assert [one.action for one in (await payer.get()).sent] == [None, "voucher"]
        shop.clock.wrong = -200.0
        shop.clock.ahead += 30
        got = await payer.get()
        assert [one.action for one in got.sent] == ["voucher"]
