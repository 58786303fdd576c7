"""What is uncertain is made known because somebody asks: by the chain first, then by the server's word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import pytest

from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.messages import Receipt, format_receipt
from proxy_addon.demo import reserve
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.payer import opening, topping
from proxy_addon.payer.reconciling import reconcile
from store import account, budgets
from store.channels import ChannelBusy
from store.journal import read_lines
from store.lifecycle import ChannelStatus
from store.records import Channel, CounterMove
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Payer, Shop
from tests.unit.payer.test_repeating import EXPIRY_S, Line, lose, order, warm

P = PRICE


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (opening, topping):
        monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
        monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.001)


@pytest.fixture
def line(shop: Shop) -> Line:
    return Line(shop)


@pytest.fixture
def clerk(make_payer: MakePayer, payer: Payer) -> Payer:
    """Another process on the same store: the command."""
    return make_payer(shared=payer.backend.shared, key=payer.key)


async def left_alone(payer: Payer, shop: Shop, *, expired: bool = True) -> str:
    """The proxy has given its only channel back."""
    channel_id = payer.till.channel.channel_id
    shop.clock.ahead += EXPIRY_S if expired else 4
    await payer.gate.release_idle(3_000)
    assert payer.tills == []
    return channel_id


def lines(payer: Payer, kind: str) -> list[Mapping[str, Any]]:
    return [one.fields for one in read_lines(payer.parts.audit.journal.path) if one.fields["kind"] == kind]


def amounts(channel: Channel) -> tuple[int, int, int]:
    return channel.paid, channel.uncertain, channel.free


async def on_record(payer: Payer, channel_id: str) -> Channel:
    found = await payer.store.find(channel_id)
    assert found is not None
    return found


class TestServer:
    @pytest.mark.parametrize(
        ("when", "expected", "adjusted", "released"),
        [("before", (P, 0, P), 0, P), ("after", (2 * P, 0, 0), P, 0)],
    )
    async def test_its_word_decides(
        self,
        payer: Payer,
        clerk: Payer,
        shop: Shop,
        line: Line,
        when: str,
        expected: tuple[int, int, int],
        adjusted: int,
        released: int,
    ) -> None:
        await warm(payer)
        await lose(payer, line, when)
        channel_id = await left_alone(payer, shop)
        done = await reconcile(clerk.parts, channel_id)
        assert amounts(done.before) == (P, P, 0)
        assert amounts(done.after) == expected
        assert done.why == ""
        stored = await on_record(clerk, channel_id)
        assert (amounts(stored), stored.owner) == (expected, None)
        (told,) = lines(clerk, "reconciled")
        assert (told["adjustment"], told["released"], told["uncertain_now"]) == (
            str(adjusted),
            str(released),
            "0",
        )
        # And the proxy goes on with what was found out.
        assert (await order(payer)).status == 200
        assert shop.account.spent == payer.till.channel.paid

    async def test_of_two_the_sum_is_known(self, payer: Payer, clerk: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        await lose(payer, line, "before", body=b"another")
        channel_id = await left_alone(payer, shop)
        done = await reconcile(clerk.parts, channel_id)
        assert amounts(done.before) == (P, 2 * P, 0)
        assert amounts(done.after) == (2 * P, 0, P)

    async def test_not_before_nothing_can_be_charged_any_more(
        self, payer: Payer, clerk: Payer, shop: Shop, line: Line
    ) -> None:
        await warm(payer)
        await lose(payer, line)
        channel_id = await left_alone(payer, shop, expired=False)
        done = await reconcile(clerk.parts, channel_id)
        assert amounts(done.after) == (P, P, 0)
        assert "may still be charged until" in done.why
        assert f"bursar channels close {channel_id[:10]}" in done.why
        assert not line.probes

    async def test_what_it_claims_beyond_stays_uncertain(
        self, payer: Payer, clerk: Payer, shop: Shop, line: Line
    ) -> None:
        """A person takes its word for what was sent, not for more."""
        await warm(payer)
        till = payer.till
        await till.commit(raised=5 * P, counters=till_counters(payer, 5 * P))
        till.channel = account.issue(till.channel, 5 * P)
        await lose(payer, line, "after")
        channel_id = await left_alone(payer, shop)
        greedy(shop, spent=5 * P)
        done = await reconcile(clerk.parts, channel_id)
        assert amounts(done.before) == (P, P, 4 * P)
        assert amounts(done.after) == (2 * P, 3 * P, P)
        assert "claims" in done.why
        assert "channels close" in done.why

    @pytest.mark.parametrize("spent", [0, P - 1])
    async def test_what_contradicts_what_is_paid_is_not_believed(
        self, payer: Payer, clerk: Payer, shop: Shop, line: Line, spent: int
    ) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        channel_id = await left_alone(payer, shop)
        greedy(shop, spent=spent)
        done = await reconcile(clerk.parts, channel_id)
        assert amounts(done.after) == (P, P, 0)
        assert "contradicts" in done.why
        assert not lines(clerk, "reconciled")

    async def test_one_that_says_nothing(self, payer: Payer, clerk: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        channel_id = await left_alone(payer, shop)
        shop.script = lambda request, payload: Response(204) if payload else None
        done = await reconcile(clerk.parts, channel_id)
        assert (done.after.uncertain, "did not say" in done.why) == (P, True)

    async def test_one_that_is_gone(self, payer: Payer, clerk: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        channel_id = await left_alone(payer, shop)

        def down(request: Request, payload: Mapping[str, Any]) -> Response:
            raise httpx.ConnectError("refused")

        shop.script = down
        with pytest.raises(LocalRefusal, match="did not answer") as refused:
            await reconcile(clerk.parts, channel_id)
        assert refused.value.reason == "server-unreachable"
        assert (await on_record(clerk, channel_id)).owner is None

    async def test_one_that_takes_no_voucher_twice_is_not_asked(
        self, payer: Payer, clerk: Payer, shop: Shop, line: Line
    ) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        payer.till.channel = replace(payer.till.channel, equal_refused=True)
        channel_id = await left_alone(payer, shop)
        done = await reconcile(clerk.parts, channel_id)
        assert (done.after.uncertain, "no voucher twice" in done.why, line.probes) == (P, True, [])

    async def test_a_crash_after_the_line_loses_nothing(
        self, payer: Payer, make_payer: MakePayer, shop: Shop, line: Line
    ) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        channel_id = await left_alone(payer, shop)
        dying = make_payer(shared=payer.backend.shared, key=payer.key)
        usual = dying.store.release

        async def dies(channel: Channel) -> None:
            await dying.die()
            await usual(channel)

        dying.store.release = dies  # type: ignore[method-assign]
        with pytest.raises(Exception, match=r".+"):
            await reconcile(dying.parts, channel_id)
        assert amounts(await on_record(payer, channel_id)) == (P, P, 0)
        assert amounts(await payer.parts.claim(channel_id)) == (2 * P, 0, 0)


class TestChain:
    async def test_a_channel_that_was_closed_leaves_nothing_open(
        self, payer: Payer, clerk: Payer, shop: Shop, line: Line
    ) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        channel_id = await left_alone(payer, shop)
        close_by_the_payee(shop, channel_id)
        done = await reconcile(clerk.parts, channel_id)
        assert done.after.status is ChannelStatus.CLOSED
        assert (done.after.captured, *amounts(done.after)[:2]) == (2 * P, 2 * P, 0)
        again = await reconcile(clerk.parts, channel_id)
        assert again.before == again.after

    async def test_an_opening_that_nobody_saw_the_end_of(
        self, payer: Payer, make_payer: MakePayer, shop: Shop
    ) -> None:
        def cut(request: Request, payload: Mapping[str, Any]) -> Response | None:
            return Response(503, (), b"") if payload else None

        shop.script = cut
        assert (await payer.get()).status == 503
        (channel,) = await payer.channels()
        await payer.die()
        clerk = make_payer(shared=payer.backend.shared, key=payer.key)
        shop.clock.ahead += 60
        done = await reconcile(clerk.parts, channel.channel_id)
        assert done.after.status is ChannelStatus.FAILED
        assert sum((await clerk.store.counters("lifetime/")).values()) == 0

    async def test_a_chain_that_does_not_answer(
        self, payer: Payer, clerk: Payer, shop: Shop, line: Line
    ) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        channel_id = await left_alone(payer, shop)

        async def down(request: Request) -> Response:
            return Response(503)

        shop.rpc.handler = down
        with pytest.raises(LocalRefusal, match="open") as refused:
            await reconcile(clerk.parts, channel_id)
        assert refused.value.reason == "chain-unavailable"
        assert (await on_record(clerk, channel_id)).owner is None


async def test_a_busy_channel_is_named(payer: Payer, clerk: Payer, line: Line) -> None:
    await warm(payer)
    await lose(payer, line, "after")
    with pytest.raises(ChannelBusy, match="in use by process"):
        await reconcile(clerk.parts, payer.till.channel.channel_id)


async def test_one_that_is_not_on_record(payer: Payer) -> None:
    with pytest.raises(LocalRefusal, match="bursar channels list"):
        await reconcile(payer.parts, "0xnone")


async def test_without_a_doubt_only_the_chain_is_asked(
    payer: Payer, clerk: Payer, shop: Shop, line: Line
) -> None:
    await warm(payer)
    channel_id = await left_alone(payer, shop)
    done = await reconcile(clerk.parts, channel_id)
    assert amounts(done.before) == amounts(done.after) == (P, 0, 0)
    assert (done.why, line.probes) == ("", [])


def till_counters(payer: Payer, amount: int) -> Any:
    token, host = payer.till.channel.scope.token, payer.till.channel.scope.host
    keys = (
        budgets.host_day(token, host, "2027-01-01"),
        budgets.total_day(token, "2027-01-01"),
        budgets.lifetime(token),
    )
    return [CounterMove(key, amount) for key in keys]


def greedy(shop: Shop, *, spent: int) -> None:
    """The server answers probes with a receipt of its liking."""

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        if not payload or request.method != "HEAD":
            return None
        book = shop.account
        receipt = Receipt(
            method="tempo",
            intent="session",
            timestamp="2027-01-01T00:00:00Z",
            reference=book.channel_id,
            challenge_id="c",
            channel_id=book.channel_id,
            accepted_cumulative=book.accepted,
            spent=spent,
            units=1,
        )
        return Response(204, [("Payment-Receipt", format_receipt(receipt))])

    shop.script = script


def close_by_the_payee(shop: Shop, channel_id: str) -> None:
    book, payee = shop.accounts[channel_id], shop.api.payee
    payee._transact(reserve.encode_close(book.descriptor, book.accepted, book.spent, book.signature))
    book.finalized = True
