"""The mitmproxy addon: wiring only. ``mitmdump -s proxy_addon/addon.py --set bursar_config=FILE``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Final

if "proxy_addon" not in sys.modules:  # loaded by path from a checkout that is not installed
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from mitmproxy import ctx, exceptions, http, version
from mitmproxy.addonmanager import Loader
from mitmproxy.connection import Client
from mitmproxy.proxy import layer

from proxy_addon import config
from proxy_addon.core.errors import BursarError
from proxy_addon.mitm import compat, door, peers
from proxy_addon.mitm.dialing import Dialing
from proxy_addon.mitm.draining import Draining
from proxy_addon.mitm.guard import guard_logs
from proxy_addon.mitm.hooks import AnsweredErrand, PrepareErrand
from proxy_addon.mitm.paying import Limits
from proxy_addon.mitm.replay import Replay
from proxy_addon.mitm.unwatched import Events
from proxy_addon.mitm.websocket import Sockets
from proxy_addon.payer.gate import PaymentGate
from proxy_addon.runtime import Runtime, egress_of, open_runtime
from store.contract import StoreError

log: Final = logging.getLogger("bursar")

HOOK_SECONDS: Final = 60.0  # longer than a request waits for a pending opening
CLOSE_SECONDS: Final = 10.0


class BursarAddon:
    """Opens the runtime when the proxy runs, and hands mitmproxy's events to the replay."""

    def __init__(self) -> None:
        self.settings: config.Settings | None = None
        self.runtime: Runtime | None = None
        self.failure: str | None = None  # why nothing is paid, for whoever started us
        self.cause: Exception | None = None  # the same, where an exception said so
        self.dialing = Dialing()
        self.draining = Draining()
        self.addons = (door.Door(), self.dialing, self.draining, Events())  # mitmproxy calls its hooks, too
        self._gate: PaymentGate | None = None
        self._replay: Replay | None = None
        self._sockets: Sockets | None = None
        self._upkeep: asyncio.Task[None] | None = None
        self._started = asyncio.Event()

    def load(self, loader: Loader) -> None:
        guard_logs()
        loader.add_option("bursar_config", str, str(config.DEFAULT_PATH), "Configuration file of bursar.")

    def configure(self, updated: set[str]) -> None:
        if "bursar_config" not in updated:
            return
        if self._started.is_set():
            message = "bursar_config is read at the start only: restart the proxy to change it"
            raise exceptions.OptionsError(message)  # type: ignore[no-untyped-call]
        try:
            self.settings = config.load(Path(ctx.options.bursar_config))
        except config.ConfigError as error:
            # Raised, it would come with a traceback. mitmdump ends at an error that is logged while it starts.
            self.failure = str(error)
            log.error("bursar: %s", error)

    async def running(self) -> None:
        if self.settings is None:
            return  # `configure` has said why
        self.dialing.open(egress_of(self.settings), ctx.master.addons)
        try:
            self.failure = compat.why_unsupported(version.VERSION) or await self._start(self.settings)
        finally:
            self._started.set()
        if self.failure is not None:
            # A warning: mitmdump ends at an error that is logged while it starts, and the traffic with it.
            log.warning("bursar: %s. All traffic passes, nothing is paid", self.failure.rstrip("."))

    async def _start(self, settings: config.Settings) -> str | None:
        try:
            self.runtime = await open_runtime(settings, need_signer=settings.mode == "pay")
        except (BursarError, StoreError, config.ConfigError) as error:
            self.cause = error
            return str(error)
        proxy = settings.proxy
        self._gate = PaymentGate(
            self.runtime.parts,
            settings.spend_policy(),
            reason_header=proxy.reason_header,
            strict_retries=proxy.strict_retries,
            locate=settings.locate,
            why_not=lambda flow: door.why_unpaid(flow, ctx.options),
            user_of=lambda flow: peers.user_of(flow, ctx.options),
        )
        await asyncio.to_thread(self._gate.repeats.recall)
        limits = Limits(repeatable_body=proxy.max_body_mib * 1024 * 1024, hook_seconds=HOOK_SECONDS)
        self._replay = Replay(self._gate, ctx.master.addons, limits)
        self._sockets = Sockets(self._gate.sockets, ctx.master.addons, HOOK_SECONDS)
        self._replay.paying.sockets = self._sockets
        self._upkeep = asyncio.create_task(self._release_idle(proxy.release_idle_s), name="bursar-upkeep")
        self.runtime.watch(lambda: self._gate.tills if self._gate is not None else ())
        payer = self.runtime.signer.address if self.runtime.signer is not None else "nobody (shadow mode)"
        log.info("bursar: pays as %s, for %d host rules", payer, len(settings.policy.hosts))
        if not settings.policy.hosts:
            log.warning("bursar: no [[policy.hosts]] in the config, so nobody is paid")
        return None

    async def _release_idle(self, idle_s: int) -> None:
        assert self._gate is not None
        while True:
            await asyncio.sleep(min(1.0, idle_s))
            try:
                await self._gate.release_idle(idle_s * 1000)
            except Exception:
                log.exception("bursar: idle channels were not given back")

    def next_layer(self, nextlayer: layer.NextLayer) -> Awaitable[None] | None:
        if not self._started.is_set():
            return self._next_layer_when_started(nextlayer)
        self._next_layer(nextlayer)
        return None

    async def _next_layer_when_started(self, nextlayer: layer.NextLayer) -> None:
        # A client that connects while the key is decrypted waits for it, rather than get a 402.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOOK_SECONDS):
                await self._started.wait()
        self._next_layer(nextlayer)

    def _next_layer(self, nextlayer: layer.NextLayer) -> None:
        if self._replay is not None:
            self._replay.next_layer(nextlayer)

    async def bursar_prepare(self, errand: PrepareErrand) -> None:
        if self._replay is not None:
            await self._replay.bursar_prepare(errand)

    async def bursar_answered(self, errand: AnsweredErrand) -> None:
        if self._replay is not None:
            await self._replay.bursar_answered(errand)

    def bursar_tick(self, errand: None) -> None:
        pass

    def requestheaders(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        if self._sockets is None or "upgrade" not in flow.request.headers:
            return None
        # Of a client that has been turned away (no password, no allowed destination), nothing is asked on.
        return None if flow.response or self.dialing.refusal(flow) else self._sockets.before_upgrade(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        if self._sockets is not None:
            self._sockets.dropped(flow)

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        if self._sockets is not None and flow.response is not None and flow.response.status_code != 101:
            self._sockets.dropped(flow)
        if self._gate is not None and flow.response is not None and flow.response.status_code == 402:
            self._gate.stranger(flow)

    def client_disconnected(self, client: Client) -> None:
        if self._replay is not None:
            self._replay.client_disconnected(client)
        if self._sockets is not None:
            self._sockets.gate.client_gone(client.id)

    async def drain(self) -> None:
        """Let what is under way end. A proxy of ours does so before any addon is told that it is over."""
        if self.settings is not None:
            await self.draining.drain(ctx.master.addons, self.settings.proxy.drain_s)

    async def done(self) -> None:
        """Async, so that mitmdump does not load us twice; within a deadline, since it waits without one."""
        await self.drain()
        if self._upkeep is not None:
            self._upkeep.cancel()
        if self._replay is not None:
            self._replay.paying.close()
        if self._sockets is not None:
            self._sockets.gate.shut()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                if self._gate is not None:
                    await self._gate.close()
                if self.runtime is not None:
                    await self.runtime.close()
        except TimeoutError:
            log.warning("bursar: stopped before everything was given back; the next start folds it in")


addons = [BursarAddon()]
