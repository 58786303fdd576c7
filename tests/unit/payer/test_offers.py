"""Which challenges are used again: until they expire, unless the server says otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.core.messages import Challenge, parse_credential
from proxy_addon.core.policy import Origin
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer import offers
from proxy_addon.payer.ticket import Offer, Route
from tests.unit.payer.shop import Overtaking, Payer, Shop

P = PRICE


async def warm(payer: Payer, path: str = "/quote") -> None:
    assert (await payer.get(path)).status == 200
    await payer.settled()


def is_warm(payer: Payer, path: str = "/quote") -> bool:
    return path in {route[2] for route in payer.gate._offers._kept}


class TestReuse:
    async def test_of_its_own_route_only(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        assert [one.action for one in (await payer.get("/stream")).sent] == [None, "voucher"]
        assert [one.action for one in (await payer.get(method="POST")).sent] == [None, "voucher"]
        assert [one.action for one in (await payer.get(query={"x": 1})).sent] == ["voucher"]

    async def test_a_refused_voucher_says_nothing_against_the_challenge(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        shop.refuses(9, "session/insufficient-balance")
        assert (await payer.get()).status == 402
        assert is_warm(payer)

    async def test_a_server_that_takes_a_challenge_once_is_asked_for_one_each_time(
        self, payer: Payer, shop: Shop
    ) -> None:
        taken: set[str] = set()

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if not payload:
                return None
            found = challenge_id(request)
            if found in taken:
                return shop.refusal("invalid-challenge")
            taken.add(found)
            return None

        shop.script = script
        await warm(payer)
        for _ in range(2):
            assert (await payer.get()).problems == ["invalid-challenge"]
        for _ in range(3):
            got = await payer.get()
            assert [one.action for one in got.sent] == [None, "voucher"]

    async def test_a_new_secret_every_now_and_then_is_something_else(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        for _ in range(5):
            shop.api.payee.challenges.forget()
            assert {got.status for got in await payer.all(8)} == {200}
            assert (await payer.get()).problems == []

    async def test_one_that_is_taken_again_makes_up_for_those_before(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        for used_again in (True, False):
            shop.api.payee.challenges.forget()
            assert (await payer.get()).problems == ["invalid-challenge"]
            if used_again:
                assert (await payer.get()).problems == []
        shop.api.payee.challenges.forget()
        assert (await payer.get()).problems == ["invalid-challenge"]
        assert (await payer.get()).problems == []

    async def test_a_burst_that_is_refused_together_is_refused_once(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.api.payee.challenges.forget()
        assert {got.status for got in await payer.all(8)} == {200}
        assert (await payer.get()).problems == []

    async def test_a_newer_challenge_outlives_the_refusal_of_an_older_one(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        traffic = Overtaking(shop, 0)
        late = asyncio.create_task(payer.get())
        await asyncio.sleep(0.01)
        shop.api.payee.challenges.forget()
        assert (await payer.get()).problems == ["invalid-challenge"]
        shop.refuses_once("payment-expired", price=None)
        traffic.let(0)
        assert (await late).status == 402
        assert is_warm(payer)

    async def test_what_is_remembered_is_bounded(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(offers, "MOST_OFFERS", 3)
        for number in range(6):
            shop.api.routes[f"/{number}"] = shop.api.routes["/quote"]
            await warm(payer, f"/{number}")
        assert [is_warm(payer, f"/{number}") for number in range(6)] == [False] * 3 + [True] * 3

    async def test_in_bytes_too(self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server may fill each challenge with 16 KB."""
        shop.api.payee.challenges.realm = "x" * 10_000
        monkeypatch.setattr(offers, "MOST_BYTES", 35_000)
        for number in range(6):
            shop.api.routes[f"/{number}"] = shop.api.routes["/quote"]
            await warm(payer, f"/{number}")
        assert [is_warm(payer, f"/{number}") for number in range(6)] == [False] * 3 + [True] * 3
        assert (await payer.get("/5")).problems == []  # used again, it counts once
        assert [is_warm(payer, f"/{number}") for number in range(6)] == [False] * 3 + [True] * 3

    async def test_what_was_read_out_of_it_is_not_kept(self, payer: Payer, shop: Shop) -> None:
        """That can be 25 times as large."""
        await warm(payer)
        (kept,) = payer.gate._offers._kept.values()
        assert "request_json" not in kept.challenge.__dict__
        assert (await payer.get()).problems == []


ROUTES = [(Origin("https", "shop.example", 443), "GET", f"/{number}") for number in range(4)]


@given(st.lists(st.tuples(st.sampled_from(ROUTES), st.integers(0, 400), st.booleans()), max_size=40))
def test_the_bytes_that_are_kept_are_those_of_what_is_there(
    steps: list[tuple[Route, int, bool]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offers, "MOST_BYTES", 1_000)
        kept = offers._Kept()
        for route, size, again in steps:
            if size == 0:
                kept.pop(route, None)
                assert kept.get(route) is None
                continue
            offer = kept.get(route) if again else None
            offer = offer or offer_of(size)
            kept[route] = offer
            assert kept.get(route) is offer
            assert kept.bytes == sum(len(one.challenge.echo_bytes) for one in kept.values()) <= 1_000
        kept.clear()
        assert (len(kept), kept.bytes) == (0, 0)


def offer_of(size: int) -> Offer:
    challenge = Challenge(id="x" * size, realm="r", method="tempo", intent="session", request="e30")
    unread: Any = None
    return Offer(challenge, unread, unread, unread, unread, expires_at=0, resource="")


def challenge_id(request: Request) -> str:
    return parse_credential(request.headers["authorization"]).challenge.id


class TestRetryAfter:
    async def test_a_refusal_that_says_when_is_not_answered_by_ourselves(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        shop.refuses_once("payment-expired", headers=[("Retry-After", "60")])
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "retry-after", 1)
        assert ("Retry-After", "60") in got.headers  # it passes as it came
        channel = payer.till.channel
        assert (channel.free, channel.uncertain, channel.held) == (P, 0, 0)

    async def test_nothing_is_paid_in_advance_until_it_is_over(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        await warm(payer, "/stream")
        shop.refuses_once("session/insufficient-balance", headers=[("Retry-After", "60")])
        await payer.get()
        shop.clock.ahead += 59
        shop.script = lambda request, payload: Response(503) if not payload else None
        assert [one.action for one in (await payer.get()).sent] == [None]
        assert [one.action for one in (await payer.get("/stream")).sent] == ["voucher"]  # another route
        shop.clock.ahead += 2
        assert [one.action for one in (await payer.get()).sent] == ["voucher"]

    async def test_a_payment_that_is_taken_ends_it(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.refuses_once("payment-expired", headers=[("Retry-After", "60")])
        await payer.get()
        assert [one.action for one in (await payer.get()).sent] == [None, "voucher"]  # it asked to be paid
        assert [one.action for one in (await payer.get()).sent] == ["voucher"]

    async def test_as_a_date(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        until = datetime.fromtimestamp(shop.clock.seconds(), UTC) + timedelta(seconds=30)
        shop.refuses_once(
            "payment-expired", headers=[("Retry-After", until.strftime("%a, %d %b %Y %H:%M:%S GMT"))]
        )
        assert (await payer.get()).reason == "retry-after"

    @pytest.mark.parametrize("value", ["0", "soon", "", "Thu, 01 Jan 1970 00:00:00 GMT"])
    async def test_one_that_is_over_or_unreadable_changes_nothing(
        self, payer: Payer, shop: Shop, value: str
    ) -> None:
        await warm(payer)
        shop.refuses_once("payment-expired", headers=[("Retry-After", value)])
        assert (await payer.get()).status == 200

    async def test_a_channel_that_is_gone_is_still_set_aside(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.forget()
        shop.refuses_once("session/channel-not-found", 410, headers=[("Retry-After", "5")])
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (410, "retry-after", 1)
        assert [one.status for one in await payer.channels()] == ["aside"]

    async def test_the_first_402_of_all_is_no_refusal(self, payer: Payer, shop: Shop) -> None:
        """The draft's own example has it on a challenge: nothing of ours was refused."""
        usual = shop.refusal("payment-required", headers=[("Retry-After", "60")])
        shop.script = lambda request, payload: None if payload else usual
        assert (await payer.get()).status == 200
