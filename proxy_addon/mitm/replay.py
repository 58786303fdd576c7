"""The addon half of the replay: swaps our layer in, and awaits the gate on the layer's behalf."""

from __future__ import annotations

import asyncio
import logging

from mitmproxy.addonmanager import AddonManager
from mitmproxy.connection import Client
from mitmproxy.proxy.layer import NextLayer

from proxy_addon.mitm.backlog import SocketBacklog
from proxy_addon.mitm.gate import Gate
from proxy_addon.mitm.guard import describe
from proxy_addon.mitm.hooks import AnsweredErrand, PrepareErrand
from proxy_addon.mitm.layer import swap
from proxy_addon.mitm.paying import Limits, Paying
from proxy_addon.mitm.quick import quicken

logger = logging.getLogger(__name__)


class Replay:
    """An addon. A gate that fails or takes too long has said no: nothing is added, the upstream's answer passes."""

    def __init__(self, gate: Gate, addons: AddonManager, limits: Limits | None = None) -> None:
        quicken(addons)
        self._addons = addons
        self.paying = Paying(gate, SocketBacklog(addons), limits or Limits())

    def next_layer(self, nextlayer: NextLayer) -> None:
        # A script's hooks run before mitmproxy's own: have that decide first.
        self._addons.get("nextlayer").next_layer(nextlayer)  # type: ignore[no-untyped-call]
        swap(nextlayer, self.paying)

    def client_disconnected(self, client: Client) -> None:
        self.paying.client_gone(client)

    async def bursar_prepare(self, errand: PrepareErrand) -> None:
        try:
            async with asyncio.timeout(self.paying.limits.hook_seconds):
                gate = self.paying.gate
                errand.outgoing = await (gate.lost if errand.lost else gate.prepare)(errand.ticket)
        except Exception as error:
            logger.error("Preparing a payment failed, it is not made: %s", describe(error))

    async def bursar_answered(self, errand: AnsweredErrand) -> None:
        status = errand.response.status_code
        try:
            async with asyncio.timeout(self.paying.limits.hook_seconds):
                errand.decision = await self.paying.gate.answered(errand.ticket, errand.response, errand.body)
        except Exception as error:
            logger.error("Deciding on a %d answer failed, it passes: %s", status, describe(error))

    def bursar_tick(self, errand: None) -> None:
        pass
