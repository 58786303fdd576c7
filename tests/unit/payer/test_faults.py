"""What fails on our own side (store, ledger, chain, a client that leaves): nothing is signed that is not durable."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer import booking, desk, opening
from proxy_addon.payer.wants import ChannelUnusable
from store.contract import StoreUnavailable
from store.lifecycle import PENDING_OPEN, ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Overtaking, Payer, Shop, ticks

P = PRICE


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(opening, "LONGEST_WAIT_S", 0.001)
    monkeypatch.setattr(desk, "RETRY_S", 0.01)


async def warm(payer: Payer) -> Payer:
    assert (await payer.get()).status == 200
    await payer.settled()
    return payer


def fail_commits(payer: Payer) -> None:
    def full() -> None:
        raise OSError("disk full")

    payer.backend.shared.before_commit = full


def slow_commits(payer: Payer, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Commits wait until the event is set."""
    usual = payer.store.set
    go = asyncio.Event()

    async def slow(*arguments: Any) -> None:
        await go.wait()
        await usual(*arguments)

    monkeypatch.setattr(payer.store, "set", slow)
    return go


class TestStore:
    async def test_a_raise_that_cannot_be_written_signs_nothing(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        signatures = payer.signatures
        fail_commits(payer)
        got = await payer.get()
        assert (got.status, got.reason, [one.action for one in got.sent]) == (402, "store", [None])
        assert (payer.signatures, payer.till.channel.authorised) == (signatures, P)
        payer.backend.shared.before_commit = None
        assert (await payer.get()).status == 200

    async def test_an_opening_that_cannot_be_written_is_none(self, payer: Payer, shop: Shop) -> None:
        fail_commits(payer)
        got = await payer.get()
        assert (got.status, got.reason, len(got.sent)) == (402, "store", 1)
        payer.backend.shared.before_commit = None
        assert (await payer.get()).status == 200
        assert len(await payer.channels()) == 1

    async def test_one_that_cannot_be_read_is_none_either(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(scope: object) -> None:
            raise StoreUnavailable("it cannot be read")

        with monkeypatch.context() as patch:
            patch.setattr(payer.store, "of_scope", broken)
            assert (await payer.get()).reason == "store"

    async def test_what_became_of_an_opening_is_learned_later(self, payer: Payer, shop: Shop) -> None:
        """The server has opened it, and then the disk is full."""

        def script(request: Request, payload: Mapping[str, Any]) -> None:
            if payload:
                fail_commits(payer)

        shop.script = script
        assert (await payer.get()).status == 200
        await payer.settled()
        (channel,) = await payer.channels()
        assert channel.status in PENDING_OPEN
        payer.backend.shared.before_commit = None
        shop.script = lambda request, payload: None
        assert (await payer.get()).status == 200
        assert payer.till.channel.status is ChannelStatus.OPEN
        assert shop.account.spent == 2 * P == payer.till.channel.paid

    async def test_a_channel_that_cannot_be_set_aside_is_left_all_the_same(
        self, payer: Payer, shop: Shop, caplog: pytest.LogCaptureFixture
    ) -> None:
        await warm(payer)
        old = payer.till

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if payload.get("action") != "voucher":
                return None
            payer.backend.shared.before_commit = fails_once
            return shop.refusal("session/invalid-signature")

        def fails_once() -> None:
            payer.backend.shared.before_commit = None
            raise OSError("disk full")

        shop.script = script
        with caplog.at_level(logging.WARNING, "bursar"):
            assert (await payer.get()).status == 402
        assert old.fenced
        told = [one.message for one in caplog.records]
        assert not any("set aside" in one for one in told)  # it is not on record
        assert any(f"nothing more is paid with {old.channel.channel_id}" in one for one in told)
        await asyncio.sleep(0.03)
        shop.script = lambda request, payload: None
        await payer.settled()

    async def test_one_that_cannot_be_given_back_is_dropped(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        fail_commits(payer)
        shop.clock.ahead += 10
        await payer.gate.release_idle(3_000)
        assert payer.tills == []
        payer.backend.shared.before_commit = None
        assert (await payer.get()).status == 200  # it is still its process's own

    async def test_a_raise_that_waits_for_a_channel_to_be_set_aside_goes_elsewhere(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await warm(payer)
        till = payer.till
        go = slow_commits(payer, monkeypatch)
        aside = asyncio.create_task(
            booking.set_aside(
                payer.parts.audit, till, "test", token=payer.settings.token("", ""), host="shop"
            )
        )
        await ticks(5)
        late = asyncio.create_task(payer.get())
        await ticks(10)
        go.set()
        await aside
        got = await late
        assert (got.status, [one.action for one in got.sent]) == (200, ["open"])
        assert till.channel.authorised == P

    async def test_who_is_cancelled_leaves_the_memory_as_it_will_be_on_record(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await warm(payer)
        till = payer.till
        go = slow_commits(payer, monkeypatch)
        commit = asyncio.create_task(till.commit(change=lambda record: replace(record, fees=7)))
        await ticks(5)
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        go.set()
        await ticks(10)
        (record,) = await payer.channels()
        assert (record.fees, till.channel.fees) == (7, 7)

    async def test_a_process_that_was_fenced_signs_nothing(self, make_payer: MakePayer, shop: Shop) -> None:
        payer = await warm(make_payer())
        till = payer.till
        await payer.get()
        (attempt,) = [one.attempt for one in [(await payer.get()).ticket] if one is not None]
        assert attempt is not None
        # Another process claims it, as if this one had died.
        payer.backend.shared.owners.discard(payer.backend.owner_id)
        other = await warm(make_payer(shared=payer.backend.shared, key=payer.key))
        assert len(shop.accounts) == 1
        signatures = till.signatures
        with pytest.raises(Exception, match="has another owner now"):
            await till.commit()
        assert (till.fenced, till.usable) == (True, False)
        with pytest.raises(ChannelUnusable, match="went to another process"):
            till.check_usable()
        with pytest.raises(ChannelUnusable, match="went to another process"):
            till.resend(attempt.grant, attempt.want)
        assert await till.release() is False
        assert till.signatures == signatures
        payer.backend.shared.owners.add(payer.backend.owner_id)
        await other.gate.close()


class TestLedger:
    async def test_what_is_not_in_the_ledger_does_not_leave(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await warm(payer)
        usual = os.write

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            got = await payer.get()
        assert os.write is usual
        assert (got.status, got.reason, [one.action for one in got.sent]) == (402, "ledger", [None])
        channel = payer.till.channel
        assert (channel.held, channel.uncertain, channel.free) == (0, 0, P)  # authorised, and not used
        assert channel.reserved == P  # nor signed for anybody
        assert (await payer.get()).status == 200
        assert payer.till.channel.authorised == channel.authorised

    async def test_nor_is_it_sent_again(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await warm(payer)
        patch = pytest.MonkeyPatch()

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            patch.setattr(os, "write", full)
            return shop.refusal("payment-expired")

        shop.script = script
        try:
            got = await payer.get()
        finally:
            patch.undo()
        assert (got.status, got.reason, len(got.sent)) == (402, "ledger", 1)
        assert (payer.till.channel.held, payer.till.channel.free) == (0, P)

    async def test_nor_is_anything_opened(self, payer: Payer, shop: Shop) -> None:
        patch = pytest.MonkeyPatch()

        def full(fd: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(os, "write", full)
        try:
            got = await payer.get()
        finally:
            patch.undo()
        assert (got.status, got.reason, len(got.sent)) == (402, "ledger", 1)
        await payer.settled()
        (channel,) = await payer.channels()
        assert (channel.status, channel.note) == (ChannelStatus.FAILED, "it was never sent")
        assert (await payer.get()).status == 200


class TestClientLeaves:
    async def test_while_it_waits_for_a_raise(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await warm(payer)
        go = slow_commits(payer, monkeypatch)
        client = asyncio.create_task(payer.get())
        await ticks(10)
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        go.set()
        await ticks(20)
        channel = payer.till.channel
        assert (channel.held, channel.free, channel.reserved) == (0, P, P)
        assert (await payer.get()).status == 200
        assert payer.till.channel.authorised == channel.authorised  # what was raised for the one who left

    async def test_in_the_moment_of_its_grant(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        usual = payer.till.grant

        def grant(want: Any, step: int = 0) -> Any:
            asyncio.get_running_loop().call_soon(client.cancel)
            return usual(want, step)

        payer.till.grant = grant  # type: ignore[method-assign]
        client = asyncio.create_task(payer.get())
        with pytest.raises(asyncio.CancelledError):
            await client
        payer.till.grant = usual  # type: ignore[method-assign]
        assert (payer.till.channel.held, payer.till.channel.free) == (0, P)

    async def test_after_its_credential_has_left(self, payer: Payer, shop: Shop) -> None:
        await warm(payer)
        Overtaking(shop, 0)
        client = asyncio.create_task(payer.get())
        await ticks(20)
        client.cancel()
        with pytest.raises(asyncio.CancelledError):
            await client
        channel = payer.till.channel
        assert (channel.held, channel.uncertain) == (0, P)


class TestChain:
    @staticmethod
    def hide(
        payer: Payer, monkeypatch: pytest.MonkeyPatch, name: str, answer: Callable[..., Awaitable[Any]]
    ) -> None:
        (chain,) = payer.parts.chains.values()
        monkeypatch.setattr(type(chain), name, answer)

    async def test_an_opening_that_was_closed_at_once_has_not_failed(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The channel is not there, but its transaction was: its deposit is not given up."""
        looked = 0

        async def absent(*arguments: Any) -> Any:
            nonlocal looked
            looked += 1
            shop.clock.ahead += 60
            state = await usual(*arguments)
            return replace(state, exists=False) if looked < 4 else state

        assert (await payer.get()).status == 200
        till = payer.tills[0]
        usual = till.method.read_channel
        monkeypatch.setattr(type(till.method), "read_channel", lambda self, *arguments: absent(*arguments))
        await payer.settled()
        assert looked == 4
        assert till.channel.status is ChannelStatus.OPEN

    async def test_a_sponsored_one_is_found_by_its_events(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The network knows it by another hash."""
        assert (await payer.get()).status == 200
        till = payer.tills[0]
        (chain,) = payer.parts.chains.values()
        await payer.settled()
        state = await till.method.read_channel(chain, till.channel)
        pending = replace(till.channel, pending=replace(await self._pending(shop), tx_hash="0x" + "ee" * 32))
        assert await opening._landed(chain, pending, state)
        nowhere = replace(pending, channel_id="0x" + "dd" * 32)
        assert not await opening._landed(chain, nowhere, state)

    @staticmethod
    async def _pending(shop: Shop) -> Any:
        from tests.unit.methods.samples import pending

        return pending(tx_hash=shop.account.opened_by)

    async def test_one_that_reverted_has_failed(self, payer: Payer, shop: Shop) -> None:
        def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
            if not payload:
                return None
            from proxy_addon.methods.abi import to_bytes

            spent = shop.chain.balance(payer.signer.address) - 100_000
            shop.chain._storage.write(
                ("0x20c0000000000000000000000000000000000000", payer.signer.address), 100_000, 0
            )
            shop.chain.send(to_bytes(payload["transaction"]))
            assert spent > 0
            return Response(500)

        shop.script = script
        assert (await payer.get()).status == 500
        shop.clock.ahead += 60
        await payer.settled()
        (channel,) = await payer.channels()
        assert channel.status is ChannelStatus.FAILED
        assert sum((await payer.store.counters("deposits/")).values()) == 0

    async def test_a_fee_that_is_not_told_is_no_reason_to_wait(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def silent(*arguments: Any) -> None:
            raise ChainUnavailable("no answer")

        self.hide(payer, monkeypatch, "receipt", silent)
        await warm(payer)
        assert (payer.till.channel.status, payer.till.channel.fees) == (ChannelStatus.OPEN, 0)
        assert "fee of" in caplog.text

    async def test_while_the_chain_is_silent_an_opening_waits(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        usual = shop.rpc.handler

        async def down(request: Request) -> Response:
            return Response(503)

        def script(request: Request, payload: Mapping[str, Any]) -> None:
            if payload:
                shop.rpc.handler = down

        shop.script = script
        assert (await payer.get()).status == 200
        waiting = asyncio.create_task(payer.get())
        await asyncio.sleep(0.03)
        assert not waiting.done()
        assert "waits for the chain" in caplog.text
        shop.rpc.handler = usual
        assert (await waiting).status == 200
        assert len(await payer.channels()) == 1

    async def test_patience_has_an_end(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(desk, "PATIENCE_S", 0)
        assert (await payer.get()).status == 200
        usual = shop.rpc.handler

        async def down(request: Request) -> Response:
            return Response(503)

        shop.rpc.handler = down
        got = await payer.get()
        shop.rpc.handler = usual
        assert (got.status, got.reason) == (402, "scope-busy")

    async def test_without_a_chain_nothing_is_opened(self, payer: Payer, shop: Shop) -> None:
        async def down(request: Request) -> Response:
            return Response(503)

        shop.rpc.handler = down
        got = await payer.get()
        assert (got.status, got.reason) == (402, "chain-unavailable")
        assert await payer.channels() == []
