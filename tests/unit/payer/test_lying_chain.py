"""F9: the chain's RPC is down, slow, lies, or contradicts itself. Warm requests go on; the rest waits or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import orjson
import pytest

from proxy_addon.chain import ChainClient
from proxy_addon.core.dispatch import RESERVE_AFTER
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.methods.abi import uint_word
from proxy_addon.methods.tempo_session.calls import GET_STATE
from proxy_addon.payer import closing, opening, reconciling, topping
from proxy_addon.watchdog.rules import Rules
from proxy_addon.watchdog.watch import Watchdog
from store.lifecycle import ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, Body, Payer, Shop, ticks

S = ChannelStatus
Lie = Callable[[str, list[Any], Any], Any]
"""Of a method, its parameters and the true result: what the endpoint says. May raise ``httpx.ConnectError``."""


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (opening, topping):
        monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.001)


def honest(method: str, params: list[Any], result: Any) -> Any:
    return result


def down(method: str, params: list[Any], result: Any) -> Any:
    raise httpx.ConnectError("connection refused")


def deposit_is(amount: int) -> Lie:
    """As the state of every channel, whatever the truth."""
    return state_is(settled=0, deposit=amount)


def state_is(*, settled: int, deposit: int) -> Lie:
    def lie(method: str, params: list[Any], result: Any) -> Any:
        if method != "eth_call" or not params[0]["data"].startswith("0x" + GET_STATE.hex()):
            return result
        words = (uint_word(settled), uint_word(deposit), uint_word(0))
        return "0x" + b"".join(words).hex()

    return lie


def absent(method: str, params: list[Any], result: Any) -> Any:
    """It has no channel, no receipt and no event, and its blocks are of a later time."""
    match method:
        case "eth_getBlockByNumber":
            return {**result, "timestamp": hex(int(result["timestamp"], 16) + 3600)}
        case "eth_getTransactionReceipt":
            return None
        case "eth_getLogs":
            return []
        case _:
            return deposit_is(0)(method, params, result)


class Endpoints:
    """RPC endpoints before the simulated chain, each with its own idea of the truth; `lies` may change."""

    def __init__(self, payer: Payer, *lies: Lie, quorum: int = 1, confirmations: int = 0) -> None:
        self._shop = payer.shop
        self.lies = list(lies)
        (name,) = payer.parts.chains
        client = ChainClient(
            [f"https://rpc{number}.example" for number in range(len(lies))],
            self._shop.chain.chain_id,
            quorum=quorum,
            confirmations=confirmations,
        )
        client._client = httpx.AsyncClient(transport=httpx.MockTransport(self._serve))
        payer.parts.chains[name] = client  # type: ignore[index]

    async def _serve(self, request: httpx.Request) -> httpx.Response:
        number = int(request.url.host.removeprefix("rpc").partition(".")[0])
        asked = orjson.loads(await request.aread())
        answer = self._shop.rpc._one(asked)
        if "result" in answer and asked["method"] != "eth_chainId":
            answer["result"] = self.lies[number](asked["method"], asked["params"], answer["result"])
        return httpx.Response(200, stream=Body(orjson.dumps(answer)))


async def settled(payer: Payer) -> None:
    """As far as it goes while the chain does not decide."""
    await ticks(400)


class TestDown:
    async def test_warm_requests_go_on_and_a_cold_one_is_refused_with_the_reason(
        self, make_payer: MakePayer, shop: Shop
    ) -> None:
        payer = make_payer(max_channels_per_scope=1)
        endpoints = Endpoints(payer, honest)
        assert (await payer.get()).status == 200
        await payer.settled()
        endpoints.lies[0] = down
        assert [(await payer.get()).status for _ in range(5)] == [200] * 5
        cold = make_payer()
        Endpoints(cold, down)
        refused = await cold.get()
        assert (refused.status, refused.reason) == (402, "chain-unavailable")
        assert await cold.channels() == []
        cold_again = Endpoints(cold, honest)
        assert (await cold.get()).status == 200
        assert cold_again.lies == [honest]

    async def test_an_opening_waits_for_it_and_is_not_forgotten(self, payer: Payer, shop: Shop) -> None:
        endpoints = Endpoints(payer, honest)

        def after_the_broadcast(method: str, params: list[Any], result: Any) -> Any:
            return down(method, params, result) if shop.accounts else result

        endpoints.lies[0] = after_the_broadcast
        assert (await payer.get()).status == 200  # the server took it
        await settled(payer)
        (channel,) = await payer.channels()
        assert channel.status in (S.PROPOSED, S.SENT, S.UNKNOWN)
        endpoints.lies[0] = honest
        await payer.settled()
        (channel,) = await payer.channels()
        assert (channel.status, channel.deposit) == (S.OPEN, DEPOSIT)

    async def test_the_end_waits_a_moment_for_an_opening_that_the_server_confirmed(
        self, payer: Payer, shop: Shop
    ) -> None:
        """One request, and the process ends, as with `bursar exec`: the deposit is on record all the same."""
        endpoints = Endpoints(payer, honest)
        asked = 0

        def not_yet(method: str, params: list[Any], result: Any) -> Any:
            nonlocal asked
            asked += bool(shop.accounts)
            return down(method, params, result) if 0 < asked < 4 else result

        endpoints.lies[0] = not_yet
        assert (await payer.get()).status == 200
        assert payer.gate.tills[0].channel.status in (S.PROPOSED, S.SENT)
        await payer.gate.close()
        (channel,) = await payer.channels()
        assert (channel.status, channel.deposit) == (S.OPEN, DEPOSIT)
        assert asked >= 4

    async def test_a_slow_one_delays_nobody_who_is_warm(self, payer: Payer) -> None:
        assert (await payer.get()).status == 200
        await payer.settled()
        (chain,) = payer.parts.chains.values()
        hanging: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def serve(request: httpx.Request) -> httpx.Response:
            await hanging
            raise AssertionError

        chain._client = httpx.AsyncClient(transport=httpx.MockTransport(serve))
        async with asyncio.timeout(5):
            assert [(await payer.get()).status for _ in range(3)] == [200] * 3
        hanging.cancel()


class TestLies:
    @pytest.mark.parametrize("factor", [2, 10])
    async def test_a_deposit_that_we_did_not_make_authorises_nothing(
        self, make_payer: MakePayer, shop: Shop, factor: int
    ) -> None:
        payer = make_payer(max_deposit="1000", max_deposits_per_day="1", max_opens_per_day=1)
        Endpoints(payer, deposit_is(factor * DEPOSIT))
        assert (await payer.get()).status == 200
        await payer.settled()
        channel = payer.till.channel
        assert (channel.deposit, channel.ceiling) == (DEPOSIT, DEPOSIT)
        for _ in range(DEPOSIT // PRICE):
            await payer.get()
        assert payer.till.channel.authorised <= DEPOSIT
        assert max(one.voucher for one in payer.sent if "cumulativeAmount" in one.payload) <= DEPOSIT

    async def test_less_than_we_have_signed_for_cannot_be(
        self, payer: Payer, caplog: pytest.LogCaptureFixture
    ) -> None:
        endpoints = Endpoints(payer, deposit_is(DEPOSIT - 1))
        assert (await payer.get()).status == 200
        await settled(payer)
        (channel,) = await payer.channels()
        assert channel.status is not S.OPEN
        assert "that cannot be" in caplog.text
        endpoints.lies[0] = honest
        await payer.settled()
        assert payer.till.channel.deposit == DEPOSIT

    async def test_a_top_up_counts_for_what_we_added(self, payer: Payer, shop: Shop) -> None:
        assert (await payer.get()).status == 200
        await payer.settled()
        (offer,) = payer.gate._offers._kept.values()
        Endpoints(payer, deposit_is(50 * DEPOSIT))
        await topping.top_up(
            payer.parts,
            payer.till,
            offer.caps,
            offer.challenge,
            amount=DEPOSIT,
            fee_payer=False,
            host="shop",
            resource=offer.resource,
        )
        assert payer.till.channel.deposit == 2 * DEPOSIT

    async def test_a_close_hands_out_no_more_than_vouchers_carried(
        self, make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An endpoint and the payee together do not get what is on record ahead of use."""
        payer = make_payer(reserve="1")
        payer.honest = False
        for _ in range(RESERVE_AFTER + 1):
            assert (await payer.get()).status == 200
            await payer.settled()
        channel = payer.till.channel
        assert channel.reserved
        await payer.gate.close()
        Endpoints(payer, state_is(settled=channel.authorised, deposit=DEPOSIT))
        monkeypatch.setattr(closing, "CHAIN_WAIT_S", 0.01)
        handed_out: list[int] = []

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if payload.get("action") == "close":
                handed_out.append(int(payload["cumulativeAmount"]))
            return None

        shop.script = script
        with pytest.raises(LocalRefusal, match="still open"):
            await closing.close_channel(payer.parts, channel.channel_id)
        assert handed_out == [channel.issued]

    @pytest.mark.parametrize("by", ["hand", "watchdog"])
    async def test_what_is_settled_is_no_more_than_vouchers_carried(
        self, make_payer: MakePayer, shop: Shop, by: str
    ) -> None:
        """The next voucher is above what is settled: with a lie it would carry all that is reserved."""
        payer = make_payer(reserve="1")
        for _ in range(RESERVE_AFTER + 1):
            assert (await payer.get()).status == 200
            await payer.settled()
        channel = payer.till.channel
        assert channel.reserved
        await payer.till.release()
        endpoints = Endpoints(payer, state_is(settled=channel.authorised, deposit=DEPOSIT))
        if by == "hand":
            await reconciling.reconcile(payer.parts, channel.channel_id)
        else:
            rules = Rules(lambda origin: 86_400_000, 0, lambda channel: 0, 1)
            await Watchdog(payer.parts, rules, lambda: payer.gate.tills).look()
        (after,) = await payer.channels()
        assert (after.settled, after.issued) == (channel.issued, channel.issued)
        endpoints.lies = [honest]
        vouchers = [int(one.payload["cumulativeAmount"]) for one in (await payer.get()).sent if one.payload]
        assert vouchers == [channel.issued + PRICE]

    async def test_nothing_is_opened_while_two_contradict_each_other(
        self, payer: Payer, caplog: pytest.LogCaptureFixture
    ) -> None:
        Endpoints(payer, absent, honest, quorum=2)
        refused = await payer.get()
        assert (refused.status, refused.reason) == (402, "chain-unavailable")
        assert "rpc0.example" in caplog.text
        assert "rpc1.example" in caplog.text
        assert await payer.channels() == []

    async def test_one_of_two_that_hides_an_opening_does_not_make_it_fail(
        self, payer: Payer, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        def hides(method: str, params: list[Any], result: Any) -> Any:
            return absent(method, params, result) if shop.accounts else result

        endpoints = Endpoints(payer, hides, honest, quorum=2)
        assert (await payer.get()).status == 200
        await settled(payer)
        (channel,) = await payer.channels()
        assert channel.status in (S.PROPOSED, S.SENT, S.UNKNOWN)  # neither open nor failed: nobody knows
        assert "contradict each other" in caplog.text
        assert "rpc0.example" in caplog.text
        assert "rpc1.example" in caplog.text
        endpoints.lies[0] = honest
        await payer.settled()
        assert payer.till.channel.deposit == DEPOSIT

    async def test_one_of_three_is_outvoted(self, payer: Payer, caplog: pytest.LogCaptureFixture) -> None:
        Endpoints(payer, absent, honest, honest, quorum=2)
        assert (await payer.get()).status == 200
        await payer.settled()
        assert (payer.till.channel.status, payer.till.channel.deposit) == (S.OPEN, DEPOSIT)
        assert "rpc0.example contradicts" in caplog.text

    async def test_what_is_not_deep_enough_does_not_count_yet(self, payer: Payer, shop: Shop) -> None:
        Endpoints(payer, honest, confirmations=3)
        assert (await payer.get()).status == 200
        await settled(payer)
        (channel,) = await payer.channels()
        assert channel.status is not S.OPEN
        for _ in range(4):
            shop.clock.ahead += 1
            shop.chain.head()
        await payer.settled()
        assert payer.till.channel.status is S.OPEN
