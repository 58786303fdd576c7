"""The watchdog with a real payer beside it: what comes home, when, and what it must leave alone."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer.closing import close_channel
from proxy_addon.payer.topping import top_up
from proxy_addon.signer import SignerRefused
from proxy_addon.watchdog.rules import TRIES_BEFORE_FORCE
from proxy_addon.watchdog.watch import LOOKS_UNTIL_MISSING
from store.channels import ChannelBusy
from store.lifecycle import ChannelStatus
from tests.unit.payer.shop import DEPOSIT, FUNDS, ticks
from tests.unit.watchdog.conftest import MakeScene
from tests.unit.watchdog.scene import EVERY_S, FORCE_S, GRACE_S, IDLE_S, Scene

S = ChannelStatus


def fees(scene: Scene) -> int:
    """What the chain has taken from the wallet for gas."""
    address = scene.payer.signer.address
    return sum(one.fee for one in scene.shop.chain.transactions.values() if one.sender == address)


async def let_it_try(scene: Scene, times: int = TRIES_BEFORE_FORCE) -> None:
    """Looks, each after the pause that the last failure has made."""
    for _ in range(times):
        await scene.look(after_s=EVERY_S << 5)


class TestIdle:
    async def test_a_channel_closes_by_itself_when_it_was_idle_for_long(self, scene: Scene) -> None:
        before = await scene.paid(3)
        await scene.look()
        assert (await scene.channel()).status is S.OPEN
        await scene.look(after_s=IDLE_S)
        channel = await scene.channel()
        assert (channel.status, channel.captured, channel.refunded) == (
            S.CLOSED,
            3 * PRICE,
            DEPOSIT - 3 * PRICE,
        )
        assert scene.balance == FUNDS - 3 * PRICE - before.fees
        (line,) = scene.lines("watchdog")
        assert "nothing was paid with it since" in line["message"]
        assert len(scene.lines("closed")) == 1
        assert scene.payer.parts.closing == set()

    async def test_how_long_it_has_been_idle_counts_across_restarts_and_failures(self, scene: Scene) -> None:
        channel = await scene.paid()
        scene.server_is_gone()
        await scene.look(after_s=IDLE_S)
        after = await scene.channel()
        assert (after.status, after.updated_at, after.owner) == (S.OPEN, channel.updated_at, None)
        scene.watchdog = scene.another()
        await scene.look()
        assert scene.lines("watchdog", failed=1)

    async def test_a_request_is_served_as_ever_after_a_close(self, scene: Scene) -> None:
        await scene.paid()
        await scene.look(after_s=IDLE_S)
        assert (await scene.payer.get()).status == 200
        await scene.payer.settled()
        assert sorted(one.status for one in await scene.payer.store.all()) == [S.CLOSED, S.OPEN]

    async def test_a_channel_in_use_is_left_alone(self, scene: Scene) -> None:
        assert (await scene.payer.get()).status == 200
        await scene.payer.settled()
        await scene.look(after_s=10 * IDLE_S)
        assert scene.payer.till.usable
        assert (await scene.channel()).status is S.OPEN

    async def test_what_may_still_be_charged_is_waited_for(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channel = await scene.paid()
        usual = type(scene.payer.store).unfinished

        async def doubtful(store: Any) -> Any:
            later = scene.payer.parts.now() + 60_000
            return tuple(replace(one, eligible_at=later) for one in await usual(store))

        monkeypatch.setattr(type(scene.payer.store), "unfinished", doubtful)
        await scene.look(after_s=IDLE_S)
        assert (await scene.channel()).status is channel.status


class TestWithoutTheServer:
    async def test_it_is_forced_when_the_server_does_not_come_back(self, scene: Scene) -> None:
        await scene.paid(3)
        scene.server_is_gone()
        await scene.look(after_s=IDLE_S)
        await let_it_try(scene)
        channel = await scene.channel()
        assert (channel.status, channel.close_amount) == (S.CLOSING, None)
        (requested,) = scene.lines("close-requested")
        await scene.look(after_s=60)  # the grace: nothing to do
        assert len(scene.lines("close-requested")) == 1
        await scene.look(after_s=GRACE_S)
        channel = await scene.channel()
        assert (channel.status, channel.captured, channel.refunded) == (S.CLOSED, 0, DEPOSIT)
        assert channel.fees == fees(scene) == FUNDS - scene.balance
        assert requested["ready_at"] * 1000 > channel.opened_at

    async def test_no_network_fee_is_spent_unless_the_config_says_so(self, make_scene: MakeScene) -> None:
        scene = make_scene(force_s=0)
        await scene.paid(3)
        paid = fees(scene)
        scene.server_is_gone()
        await scene.look(after_s=IDLE_S)
        await let_it_try(scene, 6)
        assert (await scene.channel()).status is S.OPEN
        assert fees(scene) == paid
        told = scene.lines("watchdog", failed=1)[-1]["message"]
        assert "bursar channels close --force" in told

    async def test_a_step_that_is_too_dear_waits(self, make_scene: MakeScene) -> None:
        scene = make_scene(max_fee=10)
        await scene.paid()
        paid = fees(scene)
        scene.server_is_gone()
        await scene.look(after_s=IDLE_S + FORCE_S)
        await let_it_try(scene, 5)
        channel = await scene.channel()
        assert (channel.status, fees(scene)) == (S.OPEN, paid)  # nothing was begun that it may not end
        assert "over [watchdog].max_fee" in scene.lines("watchdog")[-1]["message"]

    async def test_a_wallet_that_cannot_pay_the_fee_is_told_what_it_needs(self, scene: Scene) -> None:
        await scene.paid()
        scene.shop.chain.fund(scene.payer.signer.address, -scene.balance)
        scene.server_is_gone()
        await scene.look(after_s=IDLE_S + FORCE_S)
        await let_it_try(scene, 5)
        assert "it must have" in scene.lines("watchdog")[-1]["message"]
        assert (await scene.channel()).status is S.OPEN

    async def test_failures_back_off(self, scene: Scene) -> None:
        await scene.paid()
        scene.server_is_gone()
        asked = scene.payer.parts.outbound
        await scene.look(after_s=IDLE_S)
        tries = scene.watchdog._tries[(await scene.channel()).channel_id]
        pauses = []
        for _ in range(8):
            pauses.append(tries.next_at - scene.payer.parts.now())
            await scene.look()  # too early: nothing is done
            assert tries.next_at - scene.payer.parts.now() <= pauses[-1]
            await scene.look(after_s=pauses[-1] / 1000 + 1)
            if scene.lines("close-requested"):
                break
        assert pauses == sorted(pauses)
        assert asked is scene.payer.parts.outbound

    async def test_a_channel_that_was_set_aside_comes_home_by_force(self, scene: Scene) -> None:
        await scene.paid(3)
        till = scene.payer.parts.till(await scene.payer.parts.claim((await scene.channel()).channel_id))
        await till.commit(change=lambda record: replace(record, status=S.ASIDE, note="a test"))
        await till.release()
        await scene.look()
        assert (await scene.channel()).status is S.ASIDE
        await scene.look(after_s=FORCE_S)
        await scene.look(after_s=GRACE_S)
        channel = await scene.channel()
        assert (channel.status, channel.refunded) == (S.CLOSED, DEPOSIT)
        assert channel.fees == fees(scene)

    async def test_what_waits_for_a_person_is_told_once(self, make_scene: MakeScene) -> None:
        scene = make_scene(force_s=0)
        await scene.paid()
        till = scene.payer.parts.till(await scene.payer.parts.claim((await scene.channel()).channel_id))
        await till.commit(change=lambda record: replace(record, status=S.ASIDE, note="a test"))
        await till.release()
        for _ in range(3):
            await scene.look(after_s=FORCE_S)
        (line,) = scene.lines("watchdog")
        assert "bursar channels close --force" in line["message"]
        assert "force_close_after_s" in line["message"]


class TestBegunByOthers:
    """A channel whose close was begun by somebody else gets no further signature."""

    async def test_while_it_is_in_use(self, scene: Scene) -> None:
        assert (await scene.payer.get()).status == 200
        await scene.payer.settled()
        till = scene.payer.till
        channel = till.channel
        await scene.another_tool_requests_the_close(channel)
        signed, left = till.signatures, len(scene.payer.sent)
        await scene.look()
        assert not till.usable
        assert till.channel.status is S.ASIDE
        assert "requested on the chain" in till.channel.note

        # Not by the till, not with what is durable already, and not by the signer.
        with pytest.raises(LocalRefusal, match="requested on the chain"):
            till._sign(till.channel.authorised)
        record = (await scene.payer.store.all())[0]
        digest = till.method.voucher_digest(record, record.authorised)
        with pytest.raises(SignerRefused, match="is aside"):
            scene.payer.signer.sign_voucher(digest, record, record.authorised)

        # The next request is served on another channel.
        assert (await scene.payer.get()).status == 200
        assert till.signatures == signed
        assert not [
            one for one in scene.payer.sent[left:] if one.payload and one.channel_id == channel.channel_id
        ]
        (line,) = scene.lines("close-noticed")
        assert line["ready_at"] > 0

    async def test_in_the_moment_of_noticing_a_waiting_request_goes_elsewhere(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The record is not durable yet; nothing is signed all the same."""
        assert (await scene.payer.get()).status == 200
        await scene.payer.settled()
        till = scene.payer.till
        await scene.another_tool_requests_the_close(till.channel)
        signed = till.signatures
        slow = asyncio.Event()
        usual = type(scene.payer.store).set

        async def set_slowly(store: Any, channel: Any, *arguments: Any, **options: Any) -> None:
            if channel.status is S.ASIDE:
                await slow.wait()
            await usual(store, channel, *arguments, **options)

        monkeypatch.setattr(type(scene.payer.store), "set", set_slowly)
        looking = asyncio.create_task(scene.look())
        while till.halted is None:
            await ticks(1)
        request = asyncio.create_task(scene.payer.get())
        await asyncio.sleep(0.01)
        slow.set()
        assert (await request).status == 200
        await looking
        assert till.signatures == signed

    async def test_while_nobody_uses_it(self, make_scene: MakeScene) -> None:
        scene = make_scene(force_s=0)
        channel = await scene.paid()
        await scene.another_tool_requests_the_close(channel)
        await scene.look()
        channel = await scene.channel()
        assert channel.status is S.ASIDE
        told = [line["message"] for line in scene.lines("watchdog")]
        assert any("waits in the escrow: bring it home from 2" in message for message in told)
        assert (await scene.payer.get()).status == 200
        assert len(await scene.payer.store.all()) == 2

    async def test_what_they_began_is_ended(self, scene: Scene) -> None:
        channel = await scene.paid()
        await scene.another_tool_requests_the_close(channel)
        await scene.look()
        await scene.look(after_s=GRACE_S)
        closed = await scene.channel()
        assert (closed.status, closed.captured, closed.refunded) == (S.CLOSED, 0, DEPOSIT)

    async def test_a_close_by_the_payee_is_booked(self, scene: Scene) -> None:
        await scene.paid(3)
        captured = scene.payee_closes((await scene.channel()).channel_id)
        await scene.look()
        channel = await scene.channel()
        assert (channel.status, channel.captured, channel.refunded) == (
            S.CLOSED,
            captured,
            DEPOSIT - captured,
        )
        assert scene.lines("closed")

    async def test_a_close_by_the_payee_ends_its_use(self, scene: Scene) -> None:
        assert (await scene.payer.get()).status == 200
        await scene.payer.settled()
        till = scene.payer.till
        scene.payee_closes(till.channel.channel_id)
        await scene.look()
        assert till.halted is not None
        await scene.give_back()
        await scene.look()
        assert (await scene.channel()).status is S.CLOSED

    async def test_a_top_up_does_not_cancel_it(self, scene: Scene) -> None:
        assert (await scene.payer.get()).status == 200
        await scene.payer.settled()
        till = scene.payer.till
        await scene.another_tool_requests_the_close(till.channel)
        (offer,) = scene.payer.gate._offers._kept.values()
        with pytest.raises(LocalRefusal, match="nothing is added") as refused:
            await top_up(
                scene.payer.parts,
                till,
                offer.caps,
                offer.challenge,
                amount=1,
                fee_payer=False,
                host="shop",
                resource=offer.resource,
            )
        assert refused.value.reason == "close-begun"
        assert (await scene.state(till.channel)).close_requested_at is not None
        assert till.halted is not None

    async def test_a_close_signs_nothing_where_one_was_requested(self, scene: Scene) -> None:
        channel = await scene.paid()
        await scene.another_tool_requests_the_close(channel)
        with pytest.raises(LocalRefusal, match="withdraw its deposit after") as refused:
            await close_channel(scene.payer.parts, channel.channel_id)
        assert refused.value.reason == "close-requested"
        assert (await scene.channel()).status is S.ASIDE
        assert not scene.lines("close-sent")

    async def test_what_the_payee_has_settled_is_known(self, scene: Scene) -> None:
        channel = await scene.paid(2)
        scene.shop.api.payee.settle(channel.channel_id)
        await scene.look()
        after = await scene.channel()
        assert (after.settled, after.status, after.updated_at) == (2 * PRICE, S.OPEN, channel.updated_at)
        assert (await scene.payer.get()).status == 200

    async def test_a_channel_that_the_chain_does_not_have_is_set_aside_and_kept(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A node that is behind, or a fork that was given up: no event says what became of it."""
        channel = await scene.paid()
        method = scene.payer.parts.method(channel)
        usual = method.read_channel

        async def absent(chain: Any, record: Any) -> Any:
            return replace(await usual(chain, record), exists=False)

        monkeypatch.setattr(type(method), "read_channel", lambda self, *arguments: absent(*arguments))
        for _ in range(LOOKS_UNTIL_MISSING - 1):
            await scene.look(after_s=EVERY_S)
            assert (await scene.channel()).status is S.OPEN
        for _ in range(3):
            await scene.look(after_s=EVERY_S)
        channel = await scene.channel()
        assert (channel.status, channel.deposit) == (S.ASIDE, DEPOSIT)
        monkeypatch.undo()
        await scene.look(after_s=FORCE_S)
        await scene.look(after_s=GRACE_S)
        assert (await scene.channel()).refunded == DEPOSIT


class TestBesideTheTraffic:
    async def test_a_request_takes_a_channel_from_a_close_that_has_not_begun(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channel = await scene.paid()
        asked, go = asyncio.Event(), asyncio.Event()
        usual = type(scene.payer.parts.outbound).send

        async def send(outbound: Any, method: str, url: str, headers: Any) -> Any:
            asked.set()
            await go.wait()
            return await usual(outbound, method, url, headers)

        monkeypatch.setattr(type(scene.payer.parts.outbound), "send", send)
        looking = asyncio.create_task(scene.look(after_s=IDLE_S))
        await asked.wait()  # the server is asked for a challenge: nothing is signed or written for the close
        request = await scene.payer.get()
        assert request.status == 200
        go.set()
        await looking
        assert [one.channel_id for one in await scene.payer.store.all()] == [channel.channel_id]
        assert scene.payer.till.usable
        assert not scene.lines("close-sent")
        assert (await scene.payer.get()).status == 200

    async def test_from_its_beginning_on_nobody_takes_it(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channel = await scene.paid()
        begun, go = asyncio.Event(), asyncio.Event()
        usual = type(scene.payer.parts.outbound).send

        async def send(outbound: Any, method: str, url: str, headers: Any) -> Any:
            record = await scene.payer.store.find(channel.channel_id)
            if record is not None and record.status is S.DRAINING:
                begun.set()
                await go.wait()
            return await usual(outbound, method, url, headers)

        monkeypatch.setattr(type(scene.payer.parts.outbound), "send", send)
        looking = asyncio.create_task(scene.look(after_s=IDLE_S))
        await begun.wait()
        with pytest.raises(ChannelBusy):
            await scene.payer.parts.claim(channel.channel_id)
        assert (await scene.payer.get()).status == 200  # on another one
        go.set()
        await looking
        by_status = {one.status: one for one in await scene.payer.store.all()}
        assert by_status[S.CLOSED].channel_id == channel.channel_id
        assert by_status[S.OPEN].channel_id == scene.payer.till.channel.channel_id

    async def test_a_chain_that_does_not_answer_stops_nothing(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert (await scene.payer.get()).status == 200
        await scene.payer.settled()

        async def silent(*arguments: Any) -> Any:
            raise ChainUnavailable("chain 42431: nobody answers")

        monkeypatch.setattr(type(scene.chain), "head", silent)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                await scene.look(after_s=EVERY_S)
        assert caplog.text.count("waits for the chain") == 1
        assert (await scene.payer.get()).status == 200
        assert scene.payer.till.usable


class TestLeftByADeadProcess:
    async def test_it_is_recovered_and_counts_as_idle_from_then_on(self, make_payer: Any, shop: Any) -> None:
        dead = make_payer()
        assert (await dead.get()).status == 200
        await dead.settled()
        await dead.die()
        scene = Scene(make_payer(shared=dead.backend.shared, key=dead.key))
        await scene.look(after_s=IDLE_S)
        channel = await scene.channel()
        assert (channel.status, channel.owner) == (S.OPEN, None)
        assert channel.updated_at > scene.payer.parts.now() - 1000
        await scene.look(after_s=IDLE_S + 3_700)
        assert (await scene.channel()).status is S.CLOSED

    @pytest.mark.parametrize("landed", [True, False])
    async def test_the_chain_decides_on_an_opening_that_nobody_waits_for(
        self, make_payer: Any, shop: Any, landed: bool
    ) -> None:
        dead = make_payer()
        shop.chain.mining = landed
        request = asyncio.create_task(dead.get())
        while not await dead.channels():
            await ticks(1)
        await ticks(50)
        await dead.die()
        request.cancel()
        scene = Scene(make_payer(shared=dead.backend.shared, key=dead.key))
        scene.payer.honest = False
        shop.chain.mining = True
        scene.pass_time(60)
        await scene.look()
        channel = await scene.channel()
        assert channel.status is (S.OPEN if landed else S.FAILED)
        assert channel.deposit == (DEPOSIT if landed else 0)


class TestEnds:
    async def test_an_end_that_the_chain_takes_back_is_no_end(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An endpoint lied, or a fork was given up: the deposit is still there, and it is not forgotten."""
        channel = await scene.paid(3)
        await scene.look()
        method = scene.payer.parts.method(channel)
        usual = method.read_channel

        async def absent(chain: Any, record: Any) -> Any:
            return replace(await usual(chain, record), exists=False)

        async def closing(*arguments: Any) -> Any:
            from proxy_addon.methods.contract import Closing

            return Closing(captured=PRICE, refunded=DEPOSIT - PRICE, tx_hash="0x" + "ee" * 32)

        monkeypatch.setattr(type(method), "read_channel", lambda self, *arguments: absent(*arguments))
        monkeypatch.setattr(type(method), "read_closing", lambda self, *arguments: closing(*arguments))
        await scene.look()
        assert (await scene.channel()).status is S.CLOSED
        monkeypatch.undo()
        await scene.look(after_s=EVERY_S)
        again = await scene.channel()
        assert (again.status, again.deposit, again.captured) == (S.ASIDE, DEPOSIT, None)
        assert again.authorised == channel.authorised
        assert "on record as closed" in again.note
        counters = await scene.payer.store.counters()
        assert (
            sum(value for key, value in counters.items() if key.startswith("lifetime/")) == again.authorised
        )
        assert sum(value for key, value in counters.items() if key.startswith("refunded/")) == 0
        await scene.look(after_s=2 * IDLE_S)
        await scene.look(after_s=GRACE_S)
        assert (await scene.channel()).refunded == DEPOSIT

    async def test_an_opening_that_landed_after_all_is_taken_up_again(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert (await scene.payer.get()).status == 200
        channel = await scene.channel()
        method = scene.payer.parts.method(channel)
        usual = method.read_channel

        async def absent(chain: Any, record: Any) -> Any:
            scene.pass_time(60)
            return replace(await usual(chain, record), exists=False)

        async def nowhere(*arguments: Any) -> bool:
            return False

        monkeypatch.setattr(type(method), "read_channel", lambda self, *arguments: absent(*arguments))
        monkeypatch.setattr("proxy_addon.payer.opening._landed", nowhere)
        await scene.look()
        await scene.payer.settled()
        assert (await scene.channel()).status is S.FAILED
        monkeypatch.undo()
        await scene.look(after_s=EVERY_S)
        again = await scene.channel()
        assert (again.status, again.deposit, again.authorised) == (S.ASIDE, DEPOSIT, PRICE)
        assert scene.lines("revived")
        scene.payer.honest = False

    async def test_a_true_end_stays_one(self, scene: Scene) -> None:
        await scene.paid()
        await scene.look(after_s=IDLE_S)
        for _ in range(4):
            await scene.look(after_s=EVERY_S)
        assert (await scene.channel()).status is S.CLOSED
        assert scene.watchdog._ends._left == {}
