"""A payer, its watchdog, and what can happen to its channels behind its back."""

from __future__ import annotations

import json
from typing import Any, Final

import httpx

from proxy_addon.chain import ChainClient
from proxy_addon.demo import reserve
from proxy_addon.methods.contract import ChainState
from proxy_addon.watchdog.rules import Rules
from proxy_addon.watchdog.watch import Watchdog
from store.records import Channel
from tests.unit.errands import serve_errands
from tests.unit.payer.shop import RPC_HOST, Payer, Shop

IDLE_S: Final = 3_600
FORCE_S: Final = 600
GRACE_S: Final = 961
EVERY_S: Final = 60


class Scene:
    """`force_s` 0: the watchdog may not spend network fees."""

    def __init__(self, payer: Payer, *, force_s: int = FORCE_S, max_fee: int = 50_000) -> None:
        self.payer = payer
        self.shop: Shop = payer.shop
        self.rules = Rules(lambda origin: IDLE_S * 1000, force_s * 1000, lambda channel: max_fee, EVERY_S)
        self.watchdog = self.another()

    def another(self) -> Watchdog:
        """As after a restart: it remembers nothing."""
        return Watchdog(self.payer.parts, self.rules, lambda: self.payer.gate.tills)

    @property
    def chain(self) -> ChainClient:
        (chain,) = self.payer.parts.chains.values()
        return chain

    async def channel(self) -> Channel:
        """The only one on record."""
        (channel,) = await self.payer.store.all()
        return channel

    async def paid(self, requests: int = 3) -> Channel:
        """So many requests on one channel, which is given back then."""
        for _ in range(requests):
            assert (await self.payer.get()).status == 200
        await self.payer.settled()
        await self.give_back()
        return await self.channel()

    async def give_back(self) -> None:
        self.pass_time(10)
        await self.payer.gate.release_idle(1000)
        assert self.payer.gate.tills == ()

    def pass_time(self, seconds: float) -> None:
        self.shop.clock.ahead += seconds

    async def look(self, after_s: float = 0) -> None:
        self.pass_time(after_s)
        await self.watchdog.look()

    def server_is_gone(self) -> None:
        """Nothing listens there any more; the chain goes on."""
        self.payer.honest = False  # there is nobody to compare with

        async def serve(request: httpx.Request) -> httpx.Response:
            if request.url.host == RPC_HOST:
                return await self.shop._serve(request)
            raise httpx.ConnectError("connection refused")

        serve_errands(self.payer.parts.outbound, httpx.AsyncClient(transport=httpx.MockTransport(serve)))

    async def state(self, channel: Channel) -> ChainState:
        return await self.payer.parts.method(channel).read_channel(self.chain, channel)

    async def another_tool_requests_the_close(self, channel: Channel) -> None:
        """With our key, and without a word to us."""
        method = self.payer.parts.method(channel)
        signer = self.payer.signer.requesting_close(channel)
        plan = method.plan_request_close(channel, await self.chain.head(), signer)
        await self.chain.send_raw(plan.transaction)
        assert (await self.state(channel)).close_requested_at is not None

    def payee_closes(self, channel_id: str) -> int:
        """On the chain, with the highest voucher that it has; what it captured."""
        account = self.shop.accounts[channel_id]
        self.shop.api.payee._transact(
            reserve.encode_close(account.descriptor, account.accepted, account.accepted, account.signature)
        )
        account.finalized = True
        return account.accepted

    @property
    def balance(self) -> int:
        return self.shop.chain.balance(self.payer.signer.address)

    def lines(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """Of the ledger."""
        text = self.payer.parts.audit.journal.path.read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [
            line
            for line in lines
            if line.get("kind") == kind and all(line.get(name) == value for name, value in wanted.items())
        ]
