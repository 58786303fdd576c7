"""The usual life of a channel, what each kind of answer means for it, and what is none of our business."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from mitmproxy import http

from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.headers import format_challenge
from proxy_addon.core.messages import format_receipt, parse_receipt
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.gate import PaymentGate
from store.account import UNKNOWN_MARGIN_MS
from store.lifecycle import ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, Payer, Shop

P = PRICE


async def warm(payer: Payer) -> Payer:
    assert (await payer.get()).status == 200
    await payer.settled()
    return payer


class TestLife:
    async def test_a_cold_request_opens_and_a_warm_one_is_one_request(self, payer: Payer, shop: Shop) -> None:
        cold = await payer.get()
        assert (cold.status, [one.action for one in cold.sent]) == (200, [None, "open"])
        assert cold.new_money == P
        await payer.settled()
        for number in range(2, 5):
            got = await payer.get()
            assert (got.status, [one.action for one in got.sent]) == (200, ["voucher"])
            assert got.sent[0].voucher == number * P
            assert got.new_money == P
        assert shop.account.spent == 4 * P
        assert (payer.signatures, payer.till.channel.paid) == (4, 4 * P)
        assert payer.till.channel.deposit == DEPOSIT

    async def test_it_is_given_back_when_idle_and_taken_up_again(
        self, make_payer: MakePayer, shop: Shop
    ) -> None:
        first = await warm(make_payer())
        await first.gate.release_idle(3_000)
        assert len(first.tills) == 1  # it was used just now
        shop.clock.ahead += 4
        await first.gate.release_idle(3_000)
        assert first.tills == []
        second = make_payer(shared=first.backend.shared, key=first.key)
        assert (await second.get()).status == 200
        assert len(shop.accounts) == 1
        # The first has a challenge for the route still, and no channel: it waits until that is given back.
        waiting = asyncio.create_task(first.get())
        await asyncio.sleep(0.02)
        shop.clock.ahead += 4
        await second.gate.release_idle(3_000)
        got = await waiting
        assert got.status == 200
        assert sum(book.spent for book in shop.accounts.values()) == 3 * P

    async def test_after_kill_9_the_next_process_goes_on(self, make_payer: MakePayer, shop: Shop) -> None:
        first = await warm(make_payer())
        for _ in range(3):
            await first.get()
        await first.die()
        second = make_payer(shared=first.backend.shared, key=first.key)
        assert (await second.get()).status == 200
        channel = second.till.channel
        assert (channel.paid, channel.uncertain, channel.authorised) == (5 * P, 0, 5 * P)
        assert len(shop.accounts) == 1

    async def test_an_opening_that_its_process_did_not_survive(
        self, make_payer: MakePayer, shop: Shop
    ) -> None:
        first = make_payer()
        assert (await first.get()).status == 200  # the server has opened it; nobody has looked at the chain
        await first.die()
        second = make_payer(shared=first.backend.shared, key=first.key)
        assert (await second.get()).status == 200
        (channel,) = [till.channel for till in second.tills]
        assert (channel.status, channel.deposit, channel.paid) == (ChannelStatus.OPEN, DEPOSIT, 2 * P)

    async def test_who_is_hinted_which_channel_is_live(self, payer: Payer) -> None:
        cold = await payer.get()
        assert cold.sent[0].headers["accept-payment"] == "tempo/session"
        assert "payment-session" not in cold.sent[0].headers
        await payer.settled()
        other = await payer.get("/stream")
        assert other.sent[0].headers["payment-session"] == payer.till.channel.channel_id

    async def test_a_post_gets_a_key_of_its_own(self, payer: Payer) -> None:
        got = await payer.get(method="POST", body=b"x")
        assert got.ticket is not None
        keys = [one.headers.get("idempotency-key") for one in got.sent]
        assert keys == [None, got.ticket.facts.request_id]
        own = await payer.get(method="POST", body=b"x", headers={"Idempotency-Key": "mine"})
        assert {one.headers["idempotency-key"] for one in own.sent} == {"mine"}


class TestEndings:
    """What an answer means for the hold of its request."""

    @pytest.mark.parametrize(
        ("options", "paid", "uncertain", "free"),
        [
            ({}, P, 0, 0),
            ({"query": {"status": 404}}, P, 0, 0),  # an application's own answer, after it was charged
            ({"query": {"status": 500}}, P, 0, 0),
            ({"ends": Outcome.CUT}, 0, P, 0),
            ({"method": "HEAD"}, 0, P, 0),
            ({"ends": Outcome.NOT_SENT}, 0, 0, P),
            ({"ends": Outcome.LOST}, 0, P, 0),
        ],
    )
    async def test_of_a_request(
        self, payer: Payer, shop: Shop, options: dict[str, Any], paid: int, uncertain: int, free: int
    ) -> None:
        await warm(payer)
        await payer.get(**options)
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.held, channel.free) == (P + paid, uncertain, 0, free)

    async def test_an_answer_without_a_receipt(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.script = lambda request, payload: Response(200, (), b"here")
        assert (await payer.get()).status == 200
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain) == (P, P)
        assert channel.eligible_at <= shop.clock.ms() + 1  # at once; within one millisecond, at the next
        shop.clock.ahead += 0.001
        # The next receipt that is alone tells what became of it.
        shop.script = lambda request, payload: None
        assert (await payer.get()).status == 200
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.free) == (2 * P, 0, P)

    async def test_a_lost_one_stays_uncertain_until_its_challenge_has_expired(
        self, payer: Payer, shop: Shop
    ) -> None:
        await warm(payer)
        got = await payer.get(ends=Outcome.LOST)
        assert got.ticket is not None
        assert got.ticket.attempt is not None
        expires_at = got.ticket.attempt.offer.expires_at
        assert payer.till.channel.eligible_at == expires_at + UNKNOWN_MARGIN_MS

    async def test_a_402_after_the_charge_is_an_applications_own(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        got = await payer.get(query={"status": 402})
        assert (got.status, len(got.sent), got.reason) == (402, 1, None)
        assert payer.till.channel.paid == shop.account.spent == 2 * P
        assert "Payment-Receipt" not in dict(got.headers)

    async def test_a_402_of_another_kind(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        shop.script = lambda request, payload: Response(402, (), b"insert coin")
        got = await payer.get()
        assert (got.status, got.body, got.reason) == (402, b"insert coin", None)
        assert payer.till.channel.uncertain == P
        cold = await payer.get("/other")
        assert (cold.status, cold.reason, len(cold.sent)) == (402, None, 1)

    @pytest.mark.parametrize("spoil", ["garbage", "other channel", "cheap", "dear"])
    async def test_a_receipt_that_says_something_else(
        self, payer: Payer, shop: Shop, spoil: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        await warm(payer)
        usual = payer.gate.received

        def received(ticket: Any, response: http.Response) -> None:
            told = parse_receipt(response.headers["Payment-Receipt"])
            spoiled = {
                "other channel": replace(told, channel_id="0x" + "77" * 32),
                "cheap": replace(told, spent=0),
                "dear": replace(told, spent=2**120),
            }
            value = "!" if spoil == "garbage" else format_receipt(spoiled[spoil])
            response.headers["Payment-Receipt"] = value
            usual(ticket, response)
            assert "Payment-Receipt" not in response.headers

        payer.gate.received = received  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING, "bursar"):
            got = await payer.get()
        assert got.status == 200
        channel = payer.till.channel
        if spoil in ("garbage", "other channel"):
            assert (channel.paid, channel.uncertain) == (P, P)  # it proves nothing
            assert "receipt" in caplog.text
        else:
            assert (channel.paid, channel.uncertain) == (2 * P, 0)  # nothing was uncertain: it moves nothing


class TestChallenges:
    async def test_the_first_that_can_be_paid_is(self, payer: Payer, shop: Shop) -> None:
        made = shop.api.payee.challenges
        foreign = format_challenge({**made.make(P).echo(), "method": "stripe"})
        dear = format_challenge(made.make(10**9).echo())
        good = format_challenge(made.make(P).echo())

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            return None if payload else Response(402, [("WWW-Authenticate", f"{foreign}, {dear}, {good}")])

        shop.script = script
        assert (await payer.get()).status == 200
        good = dear
        got = await payer.get("/stream")
        assert (got.status, got.reason) == (
            402,
            "over-max-price",
        )  # what can be paid and may not is the reason
        dear = good = foreign
        assert (await payer.get("/stream")).reason == "protocol"

    async def test_one_that_is_for_another_body(self, payer: Payer, shop: Shop) -> None:
        made = shop.api.payee.challenges

        def digest_of(body: bytes) -> Mapping[str, str]:
            import base64

            value = base64.b64encode(hashlib.sha256(body).digest()).decode()
            challenge = replace(made.make(P), digest=f"sha-256=:{value}:")
            return {**challenge.echo(), "id": made._id(challenge)}

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if payload:
                return None
            return Response(402, [("WWW-Authenticate", format_challenge(digest_of(b"this")))])

        shop.script = script
        assert (await payer.send("POST", "/quote", body=b"that")).reason == "protocol"
        got = await payer.send("POST", "/quote", body=b"this")
        assert (got.status, [one.action for one in got.sent]) == (200, [None, "open"])
        await payer.settled()
        again = await payer.send("POST", "/quote", body=b"this")
        assert [one.action for one in again.sent] == [None, "voucher"]  # such a challenge is for one request

    async def test_the_clients_own_authorization_is_never_overwritten(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        bearer = {"Authorization": "Bearer mine"}
        got = await payer.get(headers=bearer)
        assert (got.status, got.reason, len(got.sent)) == (402, "client-authorization", 1)
        shop.api.payee.challenges.header = "Payment-Authorization"
        got = await payer.get(headers=bearer)
        assert (got.status, got.sent[1].headers["authorization"]) == (200, "Bearer mine")
        got = await payer.get(headers=bearer)
        assert (got.status, len(got.sent)) == (200, 1)

    async def test_one_that_cannot_be_read(self, payer: Payer, shop: Shop) -> None:
        shop.script = lambda request, payload: Response(402, [("WWW-Authenticate", 'Payment id="1"')])
        got = await payer.get()
        assert (got.status, got.reason) == (402, "protocol")

    async def test_a_problem_that_cannot_be_read(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)

        def script(request: Request, payload: Mapping[str, Any]) -> Response:
            made = shop.refusal("verification-failed")
            return Response(402, made.headers, b"{")

        shop.script = script
        payer_type = type(payer)
        original = payer_type._once

        async def once(self: Payer, request: http.Request, sent: list[Any]) -> http.Response:
            return await self.shop.take(request)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(payer_type, "_once", once)
            got = await payer.get()
        assert payer_type._once is original
        assert (got.status, got.reason) == (402, "refused-by-server")  # a 402 with a fresh challenge, twice
        assert payer.till.channel.free == P


class TestNotOurs:
    @pytest.mark.parametrize(
        "options",
        [
            {"origin": "http://192.0.2.1"},
            {"headers": {"Payment-Authorization": "Payment e30"}},
            {"headers": {"Authorization": "Payment e30"}},
            {"headers": {"X-PAYMENT": "e30"}},
        ],
    )
    async def test_such_a_request_has_no_ticket(
        self, payer: Payer, shop: Shop, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shop.script = lambda request, payload: Response(200)
        request = http.Request.make(
            "GET", f"{options.get('origin', shop.url)}/quote", b"", options.get("headers", {})
        )
        assert payer.gate.consider(flow_of(request)) is None

    async def test_nor_has_one_of_another_scheme(self, payer: Payer) -> None:
        assert payer.gate.consider(flow_of(http.Request.make("GET", "ftp://127.0.0.1/"))) is None

    async def test_a_gate_that_breaks_lets_it_through(
        self, payer: Payer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(request: http.Request) -> None:
            raise RuntimeError("boom")

        monkeypatch.setattr("proxy_addon.payer.gate.origin_of", broken)
        assert payer.gate.consider(flow_of(http.Request.make("GET", "http://127.0.0.1/"))) is None
        assert "passed through unpaid" in caplog.text

    async def test_a_client_that_may_not(self, payer: Payer, shop: Shop) -> None:
        gate = PaymentGate(
            payer.parts, payer.settings.spend_policy(), reason_header=True, why_not=lambda flow: "from afar"
        )
        payer.gate = gate
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "client-not-allowed", 1)
        assert "accept-payment" not in got.sent[0].headers

    async def test_shadow_mode_says_what_it_would_have_done(
        self, payer: Payer, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        payer.gate = PaymentGate(payer.parts, replace(payer.settings.spend_policy(), shadow=True))
        with caplog.at_level(logging.INFO, "bursar"):
            got = await payer.get()
        assert (got.status, len(got.sent)) == (402, 1)
        assert "accept-payment" not in got.sent[0].headers
        assert "would have paid 0.01 USD" in caplog.text
        assert await payer.channels() == []

    async def test_without_a_key(self, payer: Payer, shop: Shop) -> None:
        payer.gate = PaymentGate(
            replace(payer.parts, signer=None), payer.settings.spend_policy(), reason_header=True
        )
        got = await payer.get()
        assert (got.status, got.reason) == (402, "no-key")

    async def test_an_end_that_cannot_be_booked_stays_counted(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        await warm(payer)

        def broken(*arguments: Any, **options: Any) -> None:
            raise LocalRefusal("internal", "boom")

        with monkeypatch.context() as patch:
            patch.setattr(payer.till, "end", broken)
            assert (await payer.get()).status == 200
        assert payer.till.channel.held == P
        assert "stays counted as spent" in caplog.text
        (hold,) = payer.till.channel.holds.values()
        payer.till.channel = replace(payer.till.channel, holds={}, held=0, uncertain=hold.amount)


class TestStranger:
    """A host that no rule is about: its 402 passes, with the reason."""

    async def test_it_is_told_why(self, payer: Payer, shop: Shop) -> None:
        flow = flow_of(http.Request.make("GET", "http://192.0.2.1/x"))
        made = shop.refusal("payment-required")
        flow.response = http.Response.make(
            402, b"", [(name.encode(), value.encode()) for name, value in made.headers]
        )
        payer.gate.stranger(flow)
        assert flow.response.headers["Bursar-Reason"] == "host-not-allowed"
        line = json.loads(payer.parts.audit.journal.path.read_text().splitlines()[-1])
        assert (line["kind"], line["reason"], line["host"]) == ("decision", "host-not-allowed", "192.0.2.1")

    @pytest.mark.parametrize(
        ("url", "status", "headers"),
        [
            ("http://127.0.0.1:8000/", 402, {}),
            ("http://192.0.2.1/", 402, {}),
            ("ftp://192.0.2.1/", 402, {}),
        ],
    )
    async def test_it_is_not_where_there_is_nothing_to_tell(
        self, payer: Payer, url: str, status: int, headers: dict[str, str]
    ) -> None:
        flow = flow_of(http.Request.make("GET", url))
        payer.gate.stranger(flow)  # no answer at all
        flow.response = http.Response.make(status, b"")
        payer.gate.stranger(flow)
        assert "Bursar-Reason" not in flow.response.headers


def flow_of(request: http.Request) -> http.HTTPFlow:
    from mitmproxy.test.tflow import tflow

    flow = tflow(req=request)
    assert isinstance(flow, http.HTTPFlow)
    return flow
