"""The money of a paid WebSocket, with the simulated shop as its server: no connection, only frames."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from mitmproxy import connection, http

from proxy_addon.core import frames
from proxy_addon.core.messages import parse_credential
from proxy_addon.demo.http1 import Request
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.gate import PaymentGate
from proxy_addon.payer.sockets import Socket
from store.lifecycle import ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Payer, Shop

PATHS = {"websocket_paths": ["/quote", "/free", "/nowhere"]}
UPGRADE = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}


def handshake(path: str = "/quote", **changes: Any) -> http.HTTPFlow:
    url, method = changes.pop("url", Shop.url), changes.pop("method", "GET")
    headers = {**UPGRADE, "Cookie": "secret", **changes.pop("headers", {})}
    client = connection.Client(peername=("127.0.0.1", 9), sockname=("127.0.0.1", 8), timestamp_start=0)
    client.state = connection.ConnectionState.OPEN
    flow = http.HTTPFlow(client, connection.Server(address=None))
    flow.request = http.Request.make(method, f"{url}{path}", b"", headers)
    return flow


class Seller:
    """The server's half of one connection. Each credential charges for one unit, as /quote does."""

    def __init__(self, shop: Shop, socket: Socket) -> None:
        self.shop, self.socket = shop, socket
        self.actions: list[str] = []
        self.woken = asyncio.Event()
        socket.begin(self.woken.set)

    async def asked(self) -> None:
        """Until there is a frame of ours."""
        while not self.socket.outgoing:
            self.woken.clear()
            async with asyncio.timeout(20):
                await self.woken.wait()

    async def take(self) -> None:
        """The next frame of ours; its receipt goes back."""
        await self.asked()
        frame = json.loads(self.socket.outgoing.popleft())
        assert frame["mpp"] == "authorization"
        self.actions.append(parse_credential(frame["authorization"]).payload["action"])
        headers = {"authorization": frame["authorization"]}
        answer = await self.shop.api.handler(Request("GET", "/quote", {}, headers, b""))
        assert answer.status == 200
        assert self.say("payment-receipt", self.receipt()) is False

    def receipt(self, **changes: Any) -> Mapping[str, Any]:
        account = self.shop.account
        return {
            "method": "tempo",
            "intent": "session",
            "status": "success",
            "timestamp": "2026-01-01T00:00:00Z",
            "reference": account.channel_id,
            "channelId": account.channel_id,
            "acceptedCumulative": str(account.accepted),
            "spent": str(account.spent),
            **changes,
        }

    def need(self, more: int = PRICE, **changes: Any) -> None:
        account = self.shop.account
        data = {
            "channelId": account.channel_id,
            "requiredCumulative": str(account.spent + more),
            "acceptedCumulative": str(account.accepted),
            "deposit": str(account.deposit),
            **changes,
        }
        assert self.say("payment-need-voucher", data) is False

    def say(self, name: str, data: Any) -> str | bool:
        return self.socket.heard(json.dumps({"mpp": name, "data": data}))


@pytest.fixture
def payer(make_payer: MakePayer) -> Payer:
    return make_payer(**PATHS)


async def connected(payer: Payer, shop: Shop) -> Seller:
    """A connection whose first credential was taken."""
    flow = handshake()
    await payer.gate.sockets.prepare(flow)
    socket = payer.gate.sockets.of(flow)
    assert socket is not None
    seller = Seller(shop, socket)
    await seller.take()
    return seller


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        (handshake(), True),
        (handshake("/quote?n=9"), True),
        (handshake(headers={"Upgrade": "WebSocket"}), True),
        (handshake(headers={"Upgrade": "h2c"}), False),
        (handshake(headers={"Sec-WebSocket-Version": "8"}), False),
        (handshake("/stream"), False),
        (handshake("/quote/more"), False),
        (handshake(method="POST"), False),
        (handshake(url="http://stranger.example"), False),
        (handshake(headers={"Authorization": "Payment abc"}), False),
        (handshake(headers={"Authorization": "Bearer abc"}), True),
    ],
)
async def test_which_handshakes_are_paid_for(payer: Payer, flow: http.HTTPFlow, expected: bool) -> None:
    assert payer.gate.sockets.pays_for(flow) is expected
    if expected:
        assert payer.gate.consider(flow) is None  # not a second time, by its header


async def test_to_the_end(payer: Payer, shop: Shop) -> None:
    for _ in range(2):
        seller = await connected(payer, shop)
        assert payer.till.exclusive is not None  # although nobody said that it would be metered
        assert seller.say("message", "one") == "one"
        for _ in range(3):
            seller.need()
            await seller.take()
        assert seller.socket.heard("the application's own") is True
        assert seller.say("payment-close-ready", seller.receipt()) is False
        assert seller.socket.stopped == frames.Close(1000)
        seller.socket.finished(Outcome.CUT)
        seller.socket.finished(Outcome.CUT)
        await payer.settled()
    assert seller.actions == ["voucher"] * 4
    channel = payer.till.channel
    assert (channel.paid, channel.uncertain, channel.held) == (8 * PRICE, 0, 0)
    assert shop.account.spent == 8 * PRICE
    assert payer.till.exclusive is None
    assert (await payer.get()).status == 200  # the channel is for everyone again


async def test_the_probe_has_nothing_of_the_clients(payer: Payer, shop: Shop) -> None:
    seen: list[Request] = []
    shop.script = lambda request, payload: seen.append(request)
    await connected(payer, shop)
    probe = seen[0]
    assert (probe.method, probe.path) == ("GET", "/quote")
    assert not {"cookie", "upgrade", "authorization"} & {name.lower() for name in probe.headers}


async def test_cut_short(payer: Payer, shop: Shop) -> None:
    """What was asked for beyond is proof of what was before; the last unit may not have been charged."""
    seller = await connected(payer, shop)
    seller.need()
    await seller.take()
    seller.need()
    await seller.asked()
    seller.socket.finished(Outcome.CUT)
    await payer.settled()
    channel = payer.till.channel
    assert shop.account.spent == channel.paid == 2 * PRICE
    assert (channel.uncertain, channel.held) == (PRICE, 0)
    assert not seller.socket.outgoing  # what had not left never will
    assert seller.socket.heard('{"mpp":"payment-need-voucher","data":{}}') is False
    payer.honest = False  # the shop has not seen the last voucher


async def test_never_upgraded(payer: Payer, shop: Shop) -> None:
    flow = handshake()
    await payer.gate.sockets.prepare(flow)
    assert payer.gate.sockets.of(flow) is not None
    payer.gate.sockets.dropped(flow)
    payer.gate.sockets.dropped(flow)
    assert payer.gate.sockets.of(flow) is None
    await payer.settled()
    assert await payer.channels(ChannelStatus.FAILED) == await payer.channels()
    assert shop.accounts == {}


@pytest.mark.parametrize("how", ["while-preparing", "client", "shutdown"])
async def test_the_client_leaves_first(payer: Payer, shop: Shop, how: str) -> None:
    await payer.get()  # a channel
    await payer.settled()
    flow, sockets = handshake(), payer.gate.sockets
    if how == "while-preparing":
        flow.client_conn.state = connection.ConnectionState.CLOSED
    await sockets.prepare(flow)
    if how == "client":
        sockets.client_gone("somebody else")
        assert sockets.of(flow) is not None
        sockets.client_gone(flow.client_conn.id)
    elif how == "shutdown":
        sockets.shut()
    assert sockets.of(flow) is None
    channel = payer.till.channel
    assert (channel.held, channel.uncertain, channel.paid) == (0, 0, PRICE)
    assert channel.free == PRICE


async def test_no_answer_to_the_first_frame(payer: Payer, shop: Shop) -> None:
    await payer.get()
    await payer.settled()
    flow = handshake()
    await payer.gate.sockets.prepare(flow)
    socket = payer.gate.sockets.of(flow)
    assert socket is not None
    socket.begin(lambda: None)
    socket.outgoing.clear()  # it left
    socket.finished(Outcome.CUT)
    channel = payer.till.channel
    assert (channel.held, channel.uncertain) == (0, PRICE)
    payer.honest = False


@pytest.mark.parametrize("warm", [True, False])
async def test_the_server_refuses_the_first_frame(payer: Payer, shop: Shop, warm: bool) -> None:
    if warm:
        await payer.get()
        await payer.settled()
    flow = handshake()
    await payer.gate.sockets.prepare(flow)
    socket = payer.gate.sockets.of(flow)
    assert socket is not None
    socket.begin(lambda: None)
    socket.outgoing.clear()
    if not warm:
        shop.clock.ahead += 60  # the opening is past its validity: the chain will say so
    assert socket.heard(json.dumps({"mpp": "payment-error", "status": 402, "message": "no"})) is False
    assert socket.stopped == frames.Close(
        1008, "bursar stopped paying: refused-by-server"
    )  # it may never close
    socket.finished(Outcome.CUT)
    if warm:
        channel = payer.till.channel
        assert (channel.held, channel.uncertain, channel.free) == (0, 0, PRICE)
    payer.honest = False


async def test_the_server_refuses_a_voucher(payer: Payer, shop: Shop) -> None:
    seller = await connected(payer, shop)
    seller.need()
    await seller.asked()
    seller.socket.outgoing.clear()
    seller.woken.clear()
    seller.socket.heard(json.dumps({"mpp": "payment-error", "status": 402, "message": "no"}))
    async with asyncio.timeout(20):
        await seller.woken.wait()
    assert seller.socket.stopped == frames.Close(1008, "bursar stopped paying: refused-by-server")
    seller.socket.finished(Outcome.CUT)
    await payer.settled()
    channel = payer.till.channel
    assert (channel.paid, channel.uncertain, channel.held) == (PRICE, PRICE, 0)
    payer.honest = False


async def test_frames_of_other_channels_and_nonsense_move_nothing(payer: Payer, shop: Shop) -> None:
    seller = await connected(payer, shop)
    other = "0x" + "77" * 32
    seller.need(channelId=other)
    seller.say("payment-receipt", seller.receipt(channelId=other, spent="999999999"))
    seller.say("payment-receipt", {"spent": "1"})
    seller.say("payment-unheard-of", None)
    await asyncio.sleep(0)
    assert not seller.socket.outgoing
    assert seller.socket.stopped is None
    seller.say("payment-close-ready", seller.receipt(channelId=other, spent="999999999"))
    assert seller.socket.stopped == frames.Close(1000)
    seller.socket.finished(Outcome.CUT)
    await payer.settled()
    assert payer.till.channel.paid == shop.account.spent == PRICE


async def test_over_a_limit_it_is_stopped(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer(**PATHS, max_per_stream="0.003")
    seller = await connected(payer, shop)
    seller.need(1_000_000)
    async with asyncio.timeout(20):
        await seller.woken.wait()
    assert seller.socket.stopped is not None
    assert seller.socket.stopped.code == 1008
    assert seller.socket.stopped.reason.startswith("bursar stopped paying: over-")
    assert not seller.socket.outgoing
    seller.socket.finished(Outcome.CUT)


async def test_a_receipt_for_an_earlier_frame_is_no_answer(payer: Payer, shop: Shop) -> None:
    seller = await connected(payer, shop)
    seller.need()
    await seller.asked()
    seller.say("payment-receipt", seller.receipt())  # of what was accepted before
    await asyncio.sleep(0)
    await seller.take()
    seller.say("payment-close-ready", seller.receipt())
    seller.socket.finished(Outcome.CUT)
    await payer.settled()
    assert payer.till.channel.paid == shop.account.spent == 2 * PRICE


async def test_a_voucher_without_an_answer_is_sent_again(
    payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy_addon.payer.sockets.FRAME_SECONDS", 0.02)
    seller = await connected(payer, shop)
    seller.need()
    await seller.asked()
    lost = seller.socket.outgoing.popleft()
    await seller.asked()
    assert seller.socket.outgoing[0] == lost  # no new money
    await seller.take()
    seller.say("payment-close-ready", seller.receipt())
    seller.socket.finished(Outcome.CUT)
    await payer.settled()
    assert payer.till.channel.authorised == shop.account.spent == 2 * PRICE


async def test_a_challenge_that_is_about_to_expire_is_replaced(payer: Payer, shop: Shop) -> None:
    seller = await connected(payer, shop)
    await payer.settled()
    first = payer.till.channel.holds
    assert len(first) == 1
    shop.clock.ahead += 280  # of 300 s
    probes: list[Request] = []

    def note(request: Request, payload: Mapping[str, Any]) -> None:
        if not payload:
            probes.append(request)

    shop.script = note
    seller.need()
    await seller.take()
    assert [one.method for one in probes] == ["GET"]
    seller.say("payment-close-ready", seller.receipt())
    seller.socket.finished(Outcome.CUT)
    await payer.settled()
    assert payer.till.channel.paid == shop.account.spent == 2 * PRICE


@pytest.mark.parametrize("then", ["request", "socket"])
async def test_a_raise_that_outlives_its_connection_is_there_for_the_next(
    tmp_path: Path, then: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the end of the deposit: what is planned before that commit is on record would be over it."""
    shop = Shop(suggested_deposit=2 * PRICE)
    shop.api.routes["/other"] = shop.api.routes["/quote"]
    rule: dict[str, Any] = {**PATHS, "max_deposit": "0.02", "max_opens_per_day": 1}
    payer = Payer(shop, tmp_path, **rule)
    seller = await connected(payer, shop)
    await payer.settled()
    usual, arrived, go = payer.store.set, asyncio.Event(), asyncio.Event()

    async def late(*arguments: Any) -> None:
        arrived.set()
        await go.wait()
        await usual(*arguments)

    monkeypatch.setattr(payer.store, "set", late)
    seller.need()
    async with asyncio.timeout(20):
        await arrived.wait()  # the second unit is on its way to the disk
    seller.socket.finished(Outcome.CUT)
    if then == "request":
        next_one: asyncio.Future[Any] = asyncio.ensure_future(payer.get("/other"))
    else:
        next_one = asyncio.ensure_future(connected(payer, shop))
    for _ in range(20):
        await asyncio.sleep(0)
    go.set()
    found = await next_one
    assert then == "socket" or found.status == 200
    assert payer.till.channel.issued == 2 * PRICE
    assert not [one for one in caplog.records if one.exc_info]
    monkeypatch.undo()
    await payer.close()


async def test_no_voucher_where_the_need_is_covered_twice(payer: Payer, shop: Shop) -> None:
    """A server that repeats itself gets the same voucher, not another."""
    seller = await connected(payer, shop)
    seller.need()
    await seller.take()
    before = payer.till.channel.authorised
    seller.need(0)
    await seller.asked()
    assert payer.till.channel.authorised == before == 2 * PRICE
    seller.socket.finished(Outcome.CUT)


class TestNothingToPay:
    async def test_a_server_that_asks_nothing(self, payer: Payer) -> None:
        for path in ("/free", "/nowhere"):
            flow = handshake(path)
            await payer.gate.sockets.prepare(flow)
            assert (flow.response, payer.gate.sockets.of(flow)) == (None, None)

    async def test_a_server_that_does_not_answer(self, payer: Payer, shop: Shop) -> None:
        def unreachable(request: Request, payload: Mapping[str, Any]) -> None:
            raise httpx.ConnectError("down")

        shop.script = unreachable
        flow = handshake()
        await payer.gate.sockets.prepare(flow)
        assert (flow.response, payer.gate.sockets.of(flow)) == (None, None)

    async def test_over_the_price(self, make_payer: MakePayer) -> None:
        payer = make_payer(**PATHS, max_price="0.000001")
        flow = handshake()
        await payer.gate.sockets.prepare(flow)
        assert payer.gate.sockets.of(flow) is None
        assert flow.response is not None
        assert flow.response.status_code == 402
        assert flow.response.headers["Bursar-Reason"] == "over-max-price"
        assert "www-authenticate" in flow.response.headers
        assert await payer.channels() == []

    async def test_shadow(self, payer: Payer) -> None:
        policy = replace(payer.settings.spend_policy(), shadow=True)
        gate = PaymentGate(payer.parts, policy)
        flow = handshake()
        await gate.sockets.prepare(flow)
        assert (flow.response, gate.sockets.of(flow)) == (None, None)
        assert await payer.channels() == []

    async def test_a_client_that_nothing_is_paid_for(self, payer: Payer) -> None:
        gate = PaymentGate(payer.parts, payer.settings.spend_policy(), why_not=lambda flow: "not you")
        flow = handshake()
        await gate.sockets.prepare(flow)
        assert gate.sockets.of(flow) is None
        assert flow.response is not None
        assert flow.response.status_code == 402
