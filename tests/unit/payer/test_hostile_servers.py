"""What hostile servers have once broken, one test for each: found by ``make hostile``."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter, deque
from collections.abc import Mapping, Sized
from random import Random
from typing import Any
from weakref import WeakValueDictionary

import pytest
from mitmproxy import connection, http

from proxy_addon.core import policy
from proxy_addon.core.headers import format_challenge
from proxy_addon.core.strict_json import b64url_encode
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.mitm.gate import Again, Outcome
from proxy_addon.mitm.uplink import with_fields
from proxy_addon.payer import breaker, clocks, limits, offers, opening, retries, streams, topping
from proxy_addon.payer.ticket import PayTicket
from proxy_addon.payer.till import Grant, Till
from proxy_addon.payer.wants import Want
from store.lifecycle import ChannelStatus
from store.memory_store import SharedMemory
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Payer, Shop
from tests.unit.payer.test_streams import P, Stream, heads, streaming


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (opening, topping):
        monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.001)


@pytest.mark.parametrize("kind", ["verification-failed", "session/delta-too-small"])
@pytest.mark.parametrize("opens", [1, 2])
@pytest.mark.parametrize("reserve", ["0", "1"])
async def test_a_raise_that_the_deposit_has_no_room_for(
    make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch, kind: str, opens: int, reserve: str
) -> None:
    """What is free is enough, but the server wants more to be signed than is deposited: the search for a channel
    found the same one again and again."""
    shop.api.payee.challenges.suggested_deposit = 10 * P
    payer = make_payer(max_deposit="0.1", max_opens_per_day=opens, reserve=reserve)
    for _ in range(9):
        assert (await payer.get()).status == 200
        await payer.settled()
    first = payer.till
    assert first.channel.ceiling - first.channel.issued == P
    assert first.channel.reserved == (P if reserve == "1" else 0)
    looks: list[str] = []
    take = Till.take

    async def looking(till: Till, want: Want) -> Grant:
        looks.append(till.channel.channel_id)
        assert len(looks) < 10, "it goes round"
        return await take(till, want)

    monkeypatch.setattr(Till, "take", looking)
    shop.refuses_once(kind)  # a voucher for all that is deposited
    got = await payer.get()
    if opens == 1:
        assert got.status == 402
        assert got.reason is not None
    else:
        assert got.status == 200
    assert len(shop.accounts) == opens
    assert first.channel.issued == first.channel.authorised == first.channel.ceiling


@pytest.mark.parametrize("status", [402, 410, 500])
async def test_a_streams_voucher_is_refused_without_a_challenge(
    payer: Payer, shop: Shop, status: int
) -> None:
    """There is nothing to pay with it anew: the stream ends with the reason, not with an error of ours."""
    stream = await streaming(payer)
    seen = heads(shop, lambda number: shop.refusal(None, status, price=None))
    stream.need(3 * P)
    await stream.answered()
    assert stream.error["code"] == "refused-by-server"
    assert 1 <= len(seen) <= streams.MOST_TRIES
    stream.end(Outcome.CUT)


async def opened(payer: Payer) -> Stream:
    """A stream that its own request opened the channel for."""
    stream = Stream(payer)
    client = connection.Client(peername=("127.0.0.1", 9), sockname=("127.0.0.1", 8), timestamp_start=0)
    flow = http.HTTPFlow(client, connection.Server(address=None))
    flow.request = http.Request.make("GET", f"{payer.shop.url}{stream.path}")
    ticket = payer.gate.consider(flow)
    assert isinstance(ticket, PayTicket)
    await payer.gate.prepare(ticket)
    asked = await payer.shop.take(flow.request)
    decision = await payer.gate.answered(ticket, asked, asked.content)
    assert isinstance(decision, Again)
    response = await payer.shop.take(with_fields(flow.request, decision.outgoing))
    assert response.status_code == 200
    response.headers["content-type"] = "text/event-stream"
    body = payer.gate.received(ticket, response)
    assert body is not None
    assert ticket.attempt is not None
    assert ticket.attempt.stream is not None
    stream.ticket, stream.body, stream.metered = ticket, body, ticket.attempt.stream
    return stream


@pytest.mark.parametrize("units", [1, 2])
async def test_a_stream_whose_opening_fails(payer: Payer, shop: Shop, units: int) -> None:
    """The channel never came to be, and with it went the stream's hold."""
    vouchers: list[str] = []

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        if not payload:
            return None
        vouchers.append(payload["action"])
        return Response(200, [("Payment-Receipt", "e30")], b"")  # and it broadcasts nothing

    shop.script = script
    stream = await opened(payer)
    need = {
        "channelId": stream.channel.channel_id,
        "requiredCumulative": str(units * P),
        "acceptedCumulative": str(P),
        "deposit": str(20 * P),
    }
    stream.body.feed(f"event: payment-need-voucher\ndata: {json.dumps(need)}\n\n".encode())
    shop.clock.ahead += 120  # past the validity of what it kept back
    async with asyncio.timeout(20):
        await stream.answered()
    assert stream.error["code"] == "channel-not-open"
    assert vouchers == ["open"]
    assert stream.channel.status is ChannelStatus.FAILED
    stream.end(Outcome.CUT)
    assert stream.channel.held == 0


# -- a server that is somebody else each time

MOST = 8
"""What is kept of each thing, in this test."""


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (offers, "MOST_OFFERS"),
        (breaker, "MOST_ORIGINS"),
        (clocks, "MOST_SERVERS"),
        (limits, "MOST_BUCKETS"),
        (retries, "MOST_KEPT"),
        (policy, "_MOST_REMEMBERED"),
    ):
        monkeypatch.setattr(module, name, MOST)


def sizes(root: object) -> Counter[str]:
    """The longest container of each attribute of our own objects that can be reached from `root`."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, (str, bytes, int, float, SharedMemory)):
            continue
        seen.add(id(one))
        if isinstance(one, Mapping | WeakValueDictionary):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, (list, tuple, set, frozenset, deque)):
            waiting += one
        elif type(one).__module__.partition(".")[0] in ("proxy_addon", "store"):
            names = [*getattr(one, "__dict__", ()), *getattr(type(one), "__slots__", ())]
            for name in names:
                held = getattr(one, name, None)
                if isinstance(held, Sized) and not isinstance(held, (str, bytes)):
                    label = f"{type(one).__name__}.{name}"
                    found[label] = max(found[label], len(held))
                waiting.append(held)
    return found


@pytest.mark.usefixtures("few")
async def test_nothing_grows_with_what_a_server_invents(make_payer: MakePayer, shop: Shop) -> None:
    """Payees, realms, prices, deltas, operators, clocks, and channels' fates; and its clients go from path to path."""
    payer = make_payer(max_opens_per_day=3, breaker_failures=1_000)
    random = Random(1)
    number = 0

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        nonlocal number
        number += 1
        if payload and number % 3:
            if number % 5 == 0:
                return shop.refusal(
                    random.choice(["session/channel-not-found", "x"]), random.choice([402, 410, 500])
                )
            return None
        made = shop.api.payee.challenges.make(random.choice([P, P + number]))
        content = dict(made.request_json)
        if number > 3:
            content["recipient"] = "0x" + random.randbytes(20).hex()
        content["methodDetails"] = {**content["methodDetails"], "minVoucherDelta": str(1 + number % 100)}
        if number % 7 == 0:
            content["currency"] = "0x" + random.randbytes(20).hex()
        raw = b64url_encode(json.dumps(content).encode())
        challenge = {**made.echo(), "request": raw, "realm": f"realm {number}", "id": f"id {number}"}
        fields = [
            ("WWW-Authenticate", format_challenge(challenge)),
            ("Date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ]
        return Response(402, fields, b"pay")

    shop.script = script
    before: Counter[str] = Counter()
    for round_ in range(3):
        for index in range(30):
            await payer.get(f"/quote/{round_}/{index}" if index % 2 else "/quote")
            shop.clock.ahead += 40  # past the end of each opening that it lets lie
        await payer.gate.release_idle(payer.parts.ticks() + 1)
        gc.collect()
        grown = sizes(payer.gate)
        if round_ > 1:  # by then all openings of the day are made
            bound = {label: size for label, size in grown.items() if size > max(before[label], 2 * MOST)}
            assert not bound, bound
        before |= grown
    assert number > 90
