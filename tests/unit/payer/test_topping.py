"""A channel whose deposit runs out is topped up before, and no client notices; what became of it, the chain says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.methods.abi import to_bytes
from proxy_addon.payer import opening, topping
from proxy_addon.payer.fees import book_fees
from store.lifecycle import ChannelStatus
from store.records import Channel
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Got, Payer, Shop

P = PRICE
SMALL = 10 * P


@pytest.fixture
def shop() -> Shop:
    """Suggests deposits for ten requests."""
    return Shop(suggested_deposit=SMALL)


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain is asked without pauses."""
    for module in (opening, topping):
        monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.001)


async def warm(payer: Payer) -> Payer:
    assert (await payer.get()).status == 200
    await payer.settled()
    return payer


async def use_up(payer: Payer) -> list[Got]:
    """To the last price of the first deposit, one after the other."""
    return [await payer.get() for _ in range(9)]


def on_top_up(shop: Shop, answer: Any) -> list[Mapping[str, Any]]:
    """What the shop makes of top-ups; they are collected."""
    seen: list[Mapping[str, Any]] = []

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        if payload.get("action") != "topUp":
            return None
        seen.append(payload)
        found: Response | None = answer(request, payload)
        return found

    shop.script = script
    return seen


async def counter(payer: Payer, family: str) -> int:
    return sum((await payer.store.counters(family)).values())


class TestInTime:
    async def test_one_after_the_other(self, payer: Payer, shop: Shop) -> None:
        tops = on_top_up(shop, lambda request, payload: None)
        got = []
        for _ in range(45):
            got.append(await payer.get())
            await payer.settled()
        assert {one.status for one in got} == {200}
        assert {tuple(one.problems) for one in got[1:]} == {()}  # each is one upstream request
        channel = payer.till.channel
        assert shop.account.spent == channel.paid == channel.issued == 45 * P
        assert channel.deposit == shop.chain.channel(channel.channel_id).deposit == (1 + len(tops)) * SMALL
        assert channel.pending is None
        assert await counter(payer, "deposits/") == channel.deposit
        assert await counter(payer, "opens/") == 1
        # What the network took is on record, and nothing else is missing from the wallet.
        assert channel.fees > 0
        assert shop.chain.balance(payer.signer.address) == 5_000_000 - channel.deposit - channel.fees
        assert len(channel.transactions) == 1 + len(tops)

    @pytest.mark.parametrize("silent", [{0}, {1}, {0, 1}, {2}, {1, 2}])
    async def test_a_fee_that_was_not_told_is_on_record_in_the_end(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch, silent: set[int]
    ) -> None:
        """Each top-up costs the same: what is missing cannot be told by its amount."""
        asked: list[str] = []
        (chain,) = payer.parts.chains.values()
        receipt = chain.receipt

        async def flaky(tx_hash: str) -> Any:
            if tx_hash not in asked:
                asked.append(tx_hash)
                if len(asked) - 1 in silent:
                    raise ChainUnavailable("no answer")
            return await receipt(tx_hash)

        monkeypatch.setattr(chain, "receipt", flaky)
        for _ in range(31):
            assert (await payer.get()).status == 200
            await payer.settled()
        channel = payer.till.channel
        assert len(channel.transactions) == 4
        fees = 5_000_000 - channel.deposit - shop.chain.balance(payer.signer.address)
        assert channel.fees < fees
        await book_fees(payer.parts, payer.till)
        assert payer.till.channel.fees == fees
        lines = [json.loads(line) for path in (payer.parts.ledger.glob("*")) for line in path.open()]
        told = {line["tx"]: fee for line in lines if (fee := int(line.get("fee", 0)))}
        assert told.keys() == set(channel.transactions)
        assert sum(told.values()) == fees

    async def test_many_at_once(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        got = await payer.all(64)
        assert {one.status for one in got} == {200}
        assert shop.account.spent == payer.till.channel.paid == 65 * P
        assert {one.new_money for one in got} == {P}

    async def test_many_at_once_on_a_cold_channel(self, payer: Payer, shop: Shop) -> None:
        got = await payer.all(40)
        assert {one.status for one in got} == {200}
        assert shop.account.spent == payer.till.channel.paid == 40 * P

    async def test_it_goes_to_the_resource_without_its_query_and_body(self, payer: Payer, shop: Shop) -> None:
        seen: list[Request] = []

        def note(request: Request, payload: Mapping[str, Any]) -> None:
            seen.append(request)

        on_top_up(shop, note)
        for _ in range(10):
            await payer.send("POST", "/quote", query={"secret": 1}, body=b"x")
            await payer.settled()
        assert {(one.method, one.path, one.body) for one in seen} == {("POST", "/quote", b"")}
        assert {tuple(one.query) for one in seen} == {()}
        assert shop.account.spent == 10 * P  # it charges for none of them


class TestTheChainDecides:
    async def test_an_answer_that_is_lost(self, payer: Payer, shop: Shop) -> None:
        def lost(request: Request, payload: Mapping[str, Any]) -> Response:
            shop.chain.send(to_bytes(payload["transaction"]))
            raise httpx.ReadError("cut")

        await self._goes_on(payer, shop, lost)

    async def test_an_answer_that_says_no_after_it_was_done(self, payer: Payer, shop: Shop) -> None:
        def denied(request: Request, payload: Mapping[str, Any]) -> Response:
            shop.chain.send(to_bytes(payload["transaction"]))
            return Response(500, (), b"no")

        await self._goes_on(payer, shop, denied)

    async def test_a_server_that_broadcasts_late(self, payer: Payer, shop: Shop) -> None:
        def late(request: Request, payload: Mapping[str, Any]) -> Response:
            raw = to_bytes(payload["transaction"])
            asyncio.get_running_loop().call_later(0.05, shop.chain.send, raw)
            return Response(504, (), b"wait")

        await self._goes_on(payer, shop, late)

    @staticmethod
    async def _goes_on(payer: Payer, shop: Shop, answer: Any) -> None:
        await warm(payer)
        on_top_up(shop, answer)
        got = await use_up(payer) + await payer.all(5)
        assert {one.status for one in got} == {200}
        await payer.settled()
        channel = payer.till.channel
        assert channel.deposit > SMALL
        assert (channel.pending, channel.paid) == (None, 15 * P)
        assert await counter(payer, "deposits/") == channel.deposit

    async def test_one_that_is_refused_gives_way_to_another_channel(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        tops = on_top_up(shop, lambda request, payload: shop.refusal("verification-failed"))
        served = await use_up(payer)  # the channel goes on with what it has
        assert {one.status for one in served} == {200}
        waiting = asyncio.gather(*(payer.get() for _ in range(5)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        shop.clock.ahead += 60
        assert {one.status for one in await waiting} == {200}
        await payer.settled()
        old, new = await payer.channels()
        assert (old.status, old.deposit, old.authorised) == (ChannelStatus.OPEN, SMALL, SMALL)
        assert old.pending is None
        assert new.status is ChannelStatus.OPEN
        assert len(tops) == 1
        # What it had taken of the day's deposits was given back.
        assert await counter(payer, "deposits/") == 2 * SMALL

    async def test_one_that_is_refused_again_and_again_is_not_tried_for_each_request(
        self, make_payer: MakePayer, shop: Shop
    ) -> None:
        payer = await warm(make_payer(max_channels_per_scope=1))
        tops = on_top_up(shop, lambda request, payload: shop.refusal("verification-failed"))
        for _ in range(8):
            assert (await payer.get()).status == 200
            shop.clock.ahead += 1
        shop.clock.ahead += 60
        await payer.settled()
        assert len(tops) == 1
        assert (await payer.get()).status == 200
        clients = asyncio.gather(*(payer.get() for _ in range(6)))
        for _ in range(20):
            await asyncio.sleep(0.01)
            shop.clock.ahead += 60
        got = await clients
        assert {(one.status, one.reason) for one in got} == {(402, "scope-full")}
        assert len(tops) <= 3


class TestLimits:
    async def test_of_the_deposit_another_channel_is_opened(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_deposit="0.15"))
        got = []
        for _ in range(20):
            got.append(await payer.get())
            await payer.settled()
        assert {one.status for one in got} == {200}
        assert [one.deposit for one in await payer.channels()] == [150_000, SMALL]

    async def test_of_the_days_deposits(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer(max_deposits_per_day="0.15"))
        got = await use_up(payer)
        assert {one.status for one in got} == {200}
        got = await payer.all(3)
        assert {(one.status, one.reason) for one in got} == {(402, "limit-reached")}
        assert await counter(payer, "deposits/") == SMALL
        shop.clock.ahead += 86_400
        assert (await payer.get()).status == 200

    async def test_of_the_wallet(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = make_payer(key=b"\x07" * 32)
        shop.chain.fund(payer.signer.address, SMALL + 60_000)
        await warm(payer)
        assert {one.status for one in await use_up(payer)} == {200}
        got = await payer.get()
        assert (got.status, got.reason) == (402, "unfunded")
        shop.chain.fund(payer.signer.address, 5_000_000)
        assert (await payer.get()).status == 200
        assert len(shop.accounts) == 1  # it was topped up

    async def test_of_the_chain(self, payer: Payer, shop: Shop) -> None:
        """While it does not answer, what is there is used, and then nothing is risked."""
        await warm(payer)
        usual = shop.rpc.handler

        async def down(request: Request) -> Response:
            return Response(503)

        shop.rpc.handler = down
        assert {one.status for one in await use_up(payer)} == {200}
        got = await payer.get()
        assert (got.status, got.reason) == (402, "chain-unavailable")
        shop.rpc.handler = usual
        shop.clock.ahead += 60
        assert (await payer.get()).status == 200


class TestCrash:
    @pytest.mark.parametrize("landed", [True, False])
    async def test_a_top_up_that_its_process_did_not_survive(
        self, make_payer: MakePayer, shop: Shop, landed: bool
    ) -> None:
        first = await warm(make_payer())

        def cut(request: Request, payload: Mapping[str, Any]) -> Response:
            if landed:
                shop.chain.send(to_bytes(payload["transaction"]))
            shop.rpc.handler = down
            sent.set()
            raise httpx.ReadError("cut")

        sent = asyncio.Event()
        usual = shop.rpc.handler

        async def down(request: Request) -> Response:
            return Response(503)

        on_top_up(shop, cut)
        for _ in range(8):
            assert (await first.get()).status == 200
        await sent.wait()
        assert (await self._on_record(first)).pending is not None
        await first.die()
        shop.rpc.handler = usual
        shop.script = lambda request, payload: None
        second = make_payer(shared=first.backend.shared, key=first.key)
        got = [await second.get()]
        shop.clock.ahead += 60
        await second.settled()
        got += await second.all(5)
        assert {one.status for one in got} == {200}
        await second.settled()
        channel = second.till.channel
        assert (channel.pending, len(shop.accounts)) == (None, 1)
        assert channel.deposit == shop.chain.channel(channel.channel_id).deposit
        assert await counter(second, "deposits/") == channel.deposit
        assert shop.account.spent == 15 * P == channel.paid + channel.uncertain

    async def test_a_stop_between_the_record_and_the_sending(
        self, make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The transaction is durable and nobody else has it: the chain says, at the next start, that it never was."""
        first = await warm(make_payer())
        seen = on_top_up(shop, lambda request, payload: None)
        usual, writing, go = first.store.set, asyncio.Event(), asyncio.Event()

        async def slow(channel: Channel, *arguments: Any) -> None:
            if channel.pending is not None:
                writing.set()
                await go.wait()
            await usual(channel, *arguments)

        monkeypatch.setattr(first.store, "set", slow)
        for _ in range(8):
            assert (await first.get()).status == 200
        await writing.wait()
        stopping = asyncio.create_task(first.gate.close())
        await asyncio.sleep(0.01)
        go.set()
        await stopping
        record = await self._on_record(first)
        assert record.pending is not None
        assert (record.owner, record.deposit, seen) == (None, SMALL, [])
        assert await counter(first, "deposits/") == 2 * SMALL
        second = make_payer(shared=first.backend.shared, key=first.key)
        assert (await second.get()).status == 200
        shop.clock.ahead += 60
        await second.settled()
        channel = second.till.channel
        assert (channel.pending, channel.deposit, seen) == (None, SMALL, [])
        assert await counter(second, "deposits/") == SMALL
        assert {one.status for one in await second.all(5)} == {200}
        await second.settled()
        assert second.till.channel.deposit == shop.account.deposit > SMALL
        assert await counter(second, "deposits/") == second.till.channel.deposit

    @staticmethod
    async def _on_record(payer: Payer) -> Channel:
        (channel,) = await payer.channels()
        return channel


async def test_a_stream_does_not_wait_for_what_the_server_would_not_take(payer: Payer, shop: Shop) -> None:
    """The pause after a refused top-up is for streams, too: each try lasts until it is past its validity."""
    await warm(payer)
    seen = on_top_up(shop, lambda request, payload: Response(402, (), b""))
    (offer,) = payer.gate._offers._kept.values()
    desk, till = offer.desk, payer.till
    desk._not_taken_until = payer.parts.ticks() + 60_000
    got = await payer.get()
    assert got.ticket is not None
    assert got.ticket.attempt is not None
    want = got.ticket.attempt.want
    async with asyncio.timeout(20):
        assert not await desk.make_room(till, want, offer.terms, offer.challenge, 2 * SMALL)
    assert not seen
    assert till.channel.pending is None
