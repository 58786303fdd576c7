"""F6: a client's own retry of a request whose outcome is not known. Promise: counted until known, paid as a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import pytest
from mitmproxy import connection, http

from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.closing import close_channel
from store import account
from store.account import UNKNOWN_MARGIN_MS
from store.journal import read_lines
from store.lifecycle import ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Got, Overtaking, Payer, Shop, ticks

P = PRICE
ORDER = b"one of these"
EXPIRY_S = 300 + UNKNOWN_MARGIN_MS / 1000 + 1


class Cut(Exception):
    """The connection breaks."""


@dataclass
class Line:
    """Between the proxy and the shop; breaks under the next payment, before or after the shop has served it."""

    shop: Shop
    breaks: str | None = None
    seen: list[Request] = field(default_factory=list)  # what reached the shop with a payment

    def __post_init__(self) -> None:
        self.shop.script, self.shop.pace = self._script, self._pace

    def _script(self, request: Request, payload: Mapping[str, Any]) -> Response | None:
        if payload.get("action") in ("voucher", "open"):
            self.seen.append(request)
        return None

    async def _pace(self, returning: bool) -> None:
        await asyncio.sleep(0)
        if self.breaks == ("after" if returning else "before"):
            self.breaks = None
            raise Cut

    def keys(self, method: str = "POST") -> list[str | None]:
        return [one.headers.get("idempotency-key") for one in self.seen if one.method == method]

    @property
    def probes(self) -> list[Request]:
        return [one for one in self.seen if one.method == "HEAD"]


@pytest.fixture
def line(shop: Shop) -> Line:
    return Line(shop)


async def warm(payer: Payer) -> Payer:
    assert (await payer.send("POST", "/quote", body=b"warm")).status == 200
    await payer.settled()
    return payer


async def order(payer: Payer, **options: Any) -> Got:
    return await payer.send("POST", "/quote", **({"body": ORDER} | options))


async def lose(payer: Payer, line: Line, when: str = "before", **options: Any) -> None:
    line.breaks = when
    with pytest.raises(Cut):
        await order(payer, **options)


def lines(payer: Payer, kind: str) -> list[Mapping[str, Any]]:
    return [one.fields for one in read_lines(payer.parts.audit.journal.path) if one.fields["kind"] == kind]


def answers(shop: Shop, line: Line, *found: Response | None) -> None:
    """What the next payments with content get; None: what the shop makes of it."""
    left = list(found)

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        line._script(request, payload)
        return left.pop(0) if payload and request.method != "HEAD" and left else None

    shop.script = script


def heads(shop: Shop, line: Line, found: Callable[[], Response]) -> None:
    """What probes get."""

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        line._script(request, payload)
        return found() if payload and request.method == "HEAD" else None

    shop.script = script


class TestRecognised:
    @pytest.mark.parametrize(("when", "charged"), [("before", 2), ("after", 3)])
    async def test_the_retry_is_a_request_of_its_own_with_the_first_ones_key(
        self, payer: Payer, shop: Shop, line: Line, when: str, charged: int
    ) -> None:
        await warm(payer)
        await lose(payer, line, when)
        assert (payer.till.channel.paid, payer.till.channel.uncertain) == (P, P)
        got = await order(payer)
        assert got.status == 200
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.held) == (2 * P, P, 0)  # counted until it is known
        assert shop.account.spent == charged * P
        _, lost, again = lines(payer, "sent")
        assert again["retry_of"] == lost["request"] != again["request"]
        assert "retry_of" not in lost
        assert [one["retry_of"] for one in lines(payer, "ended") if "retry_of" in one] == [lost["request"]]
        assert set(line.keys()[-2:] if when == "after" else line.keys()[-1:]) == {lost["request"]}
        assert not line.probes  # what was lost may still arrive: there is nothing to be learned yet
        shop.clock.ahead += EXPIRY_S
        assert (await payer.get("/quote")).status == 200
        channel = payer.till.channel
        assert channel.paid + channel.uncertain == shop.account.spent == (charged + 1) * P
        assert channel.uncertain == (P if when == "after" else 0)

    async def test_once_it_is_answered_the_same_bytes_are_another_order(
        self, payer: Payer, line: Line
    ) -> None:
        await warm(payer)
        await lose(payer, line)
        for _ in range(3):
            assert (await order(payer)).status == 200
        keys = line.keys()[1:]
        assert len(set(keys)) == 3

    async def test_a_retry_that_is_lost_too(self, payer: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        for when in ("after", "before", "after"):
            await lose(payer, line, when)
        assert (await order(payer)).status == 200
        assert len(set(line.keys()[1:])) == 1
        first, *others = lines(payer, "sent")[1:]
        assert {one["retry_of"] for one in others} == {first["request"]}
        assert payer.till.channel.uncertain == 3 * P
        assert shop.account.spent == 4 * P

    @pytest.mark.parametrize(
        "other",
        [
            {"body": b"two of these"},
            {"query": {"n": 1}},
            {"headers": {"Idempotency-Key": "the-clients"}},
        ],
    )
    async def test_what_differs_is_none(self, payer: Payer, line: Line, other: dict[str, Any]) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        assert (await order(payer, **other)).status == 200
        assert len(set(line.keys())) == 3
        assert not any("retry_of" in one for one in lines(payer, "sent"))
        assert (await order(payer)).status == 200  # and it may still come
        assert line.keys()[1] == line.keys()[-1]

    async def test_the_clients_own_key_is_the_clients(self, payer: Payer, line: Line) -> None:
        await warm(payer)
        own = {"headers": {"Idempotency-Key": "own"}}
        await lose(payer, line, "after", **own)
        assert (await order(payer, **own)).status == 200
        assert line.keys()[1:] == ["own", "own"]
        lost, again = lines(payer, "sent")[1:]
        assert again["retry_of"] == lost["request"]

    async def test_two_at_once_one_is_the_retry(self, payer: Payer, line: Line) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        got = await asyncio.gather(order(payer), order(payer))
        assert [one.status for one in got] == [200, 200]
        keys = line.keys()[1:]
        assert (len(keys), len(set(keys)), keys.count(keys[0])) == (3, 2, 2)

    async def test_a_retry_that_never_left_leaves_it_open(self, payer: Payer, line: Line) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        await order(payer, ends=Outcome.NOT_SENT)
        assert (await order(payer)).status == 200
        assert line.keys()[1] == line.keys()[-1]

    async def test_a_retry_over_a_limit_leaves_it_open(
        self, make_payer: MakePayer, shop: Shop, line: Line
    ) -> None:
        payer = await warm(make_payer(max_per_day="0.02"))
        await lose(payer, line, "after")
        assert (await order(payer)).reason == "limit-reached"
        shop.clock.ahead += 86_400
        payer.gate.repeats.known._now = lambda: shop.clock.ms() - 86_400_000  # kept for an hour only
        assert (await order(payer)).status == 200
        assert line.keys()[1] == line.keys()[-1]

    async def test_a_client_that_left_may_come_again(self, payer: Payer, line: Line) -> None:
        await warm(payer)
        await order(payer, ends=Outcome.CUT)
        assert (await order(payer)).status == 200
        assert line.keys()[1] == line.keys()[-1]

    async def test_a_long_lost_one_is_forgotten(self, payer: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        await lose(payer, line, "after")
        shop.clock.ahead += 3_601
        assert (await order(payer)).status == 200
        assert line.keys()[1] != line.keys()[-1]

    async def test_a_get_has_no_key_and_is_told_apart_all_the_same(self, payer: Payer, line: Line) -> None:
        await warm(payer)
        assert (await payer.get()).status == 200
        line.breaks = "after"
        with pytest.raises(Cut):
            await payer.get()
        assert (await payer.get()).status == 200
        _, lost, again = [one for one in lines(payer, "sent") if one["method"] == "GET"]
        assert again["retry_of"] == lost["request"]
        assert set(line.keys("GET")) == {None}

    async def test_the_opening_request_too(self, payer: Payer, shop: Shop, line: Line) -> None:
        """Whether its channel is there is for the chain to say; the retry waits for that, and uses it."""
        left = iter(["no", "after"])  # the 402 arrives, the answer to the opening does not

        async def pace(returning: bool) -> None:
            if returning and next(left, "no") == "after":
                raise Cut

        shop.pace = pace
        with pytest.raises(Cut):
            await order(payer)
        assert (await order(payer)).status == 200
        await payer.settled()
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, len(shop.accounts)) == (P, P, 1)
        lost, again = lines(payer, "sent")
        assert again["retry_of"] == lost["request"]
        assert len(set(line.keys())) == 1


class TestBody:
    async def test_it_is_waited_for_where_something_is_unknown(self, payer: Payer, line: Line) -> None:
        def consider(method: str, path: str) -> bool:
            client = connection.Client(
                peername=("127.0.0.1", 9), sockname=("127.0.0.1", 8), timestamp_start=0
            )
            flow = http.HTTPFlow(client, connection.Server(address=None))
            flow.request = http.Request.make(method, f"{payer.shop.url}{path}", b"")
            ticket = payer.gate.consider(flow)
            assert ticket is not None
            return ticket.watches_body

        await warm(payer)
        assert not consider("POST", "/quote")
        await lose(payer, line)
        assert consider("POST", "/quote?n=1")
        assert not consider("PUT", "/quote")
        assert not consider("GET", "/quote")
        assert not consider("POST", "/stream")
        assert (await order(payer)).status == 200
        assert not consider("POST", "/quote")

    async def test_without_its_end_nobody_can_say_that_it_is_the_same(self, payer: Payer, line: Line) -> None:
        """An upload that breaks off, or is too long to be kept: neither is a retry of the other."""
        await warm(payer)
        await lose(payer, line, "after", whole=False)
        assert len(payer.gate.repeats.known) == 0
        assert not any("unanswered" in one for one in lines(payer, "ended"))
        await lose(payer, line, "after")
        assert (await order(payer, whole=False)).status == 200
        assert len(set(line.keys())) == 4
        assert (await order(payer)).status == 200
        assert len(set(line.keys())) == 4


class TestProbe:
    async def test_what_was_not_charged_is_used_again(self, payer: Payer, shop: Shop, line: Line) -> None:
        """A gateway's 502 before the shop was reached: no receipt."""
        await warm(payer)
        answers(shop, line, Response(502, (), b"bad gateway"))
        assert (await order(payer)).status == 502
        assert payer.till.channel.uncertain == P
        before = payer.till.channel.authorised
        assert (await order(payer)).status == 200
        assert len(line.probes) == 1
        channel = payer.till.channel
        assert (channel.authorised, channel.paid, channel.uncertain) == (before, 2 * P, 0)
        assert shop.account.spent == 2 * P
        (told,) = lines(payer, "probe")
        assert told["uncertain_now"] == "0"

    async def test_what_was_charged_stays_counted(self, payer: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        shop_serves = shop.api.routes["/quote"]

        def lost_receipt(request: Request, payload: Mapping[str, Any]) -> Response | None:
            line._script(request, payload)
            if payload and request.method == "POST":
                shop.script = line._script
                book = shop.account
                book.accepted, book.spent = int(payload["cumulativeAmount"]), book.spent + P
                return Response(504, (), b"gateway timeout")
            return None

        assert shop_serves.price == P
        shop.script = lost_receipt
        assert (await order(payer)).status == 504
        assert (await order(payer)).status == 200
        channel = payer.till.channel
        assert (len(line.probes), channel.paid, channel.uncertain) == (1, 2 * P, P)
        assert shop.account.spent == 3 * P
        assert line.keys()[1] == line.keys()[2]

    async def test_an_error_with_a_receipt_is_an_answer(self, payer: Payer, line: Line) -> None:
        await warm(payer)
        assert (await order(payer, query={"status": 500})).status == 500
        assert (await order(payer, query={"status": 500})).status == 500
        assert not line.probes
        assert len(set(line.keys())) == 3
        assert payer.till.channel.paid == 3 * P

    @pytest.mark.parametrize("status", [200, 404])
    async def test_an_answer_without_a_receipt_is_no_reason_to_try_again(
        self, payer: Payer, shop: Shop, line: Line, status: int
    ) -> None:
        await warm(payer)
        answers(shop, line, Response(status, (), b"served"))
        for _ in range(2):
            assert (await order(payer)).status in (status, 200)
        assert not line.probes
        assert len(set(line.keys())) == 3

    async def test_not_while_the_channel_is_busy(self, payer: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        assert (await payer.get()).status == 200
        answers(shop, line, Response(502, (), b"bad gateway"))
        assert (await order(payer)).status == 502
        held = Overtaking(shop, 1)
        slow = asyncio.create_task(payer.get())
        await ticks(20)
        assert (await order(payer)).status == 200
        assert not line.probes
        held.let(1)
        assert (await slow).status == 200
        assert payer.till.channel.uncertain == P

    async def test_one_that_is_lost_holds_nobody_up(self, payer: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        answers(shop, line, Response(502, (), b"bad gateway"))
        assert (await order(payer)).status == 502

        def cut() -> Response:
            raise httpx.ReadError("cut")

        heads(shop, line, cut)
        assert (await order(payer)).status == 200
        channel = payer.till.channel
        assert (channel.paid, channel.uncertain, channel.free) == (2 * P, 0, P)  # it has cost a raise

    async def test_a_server_that_serves_it_like_a_get_is_not_asked_again(
        self, payer: Payer, shop: Shop, line: Line
    ) -> None:
        await warm(payer)
        for _ in range(2):
            answers(shop, line, Response(502, (), b"bad gateway"))
            assert (await order(payer)).status == 502
            heads(shop, line, lambda: Response(200, (), b""))
            assert (await order(payer)).status == 200
        assert len(line.probes) == 1

    async def test_a_settled_voucher_is_not_probed_with(self, payer: Payer, shop: Shop, line: Line) -> None:
        await warm(payer)
        answers(shop, line, Response(502, (), b"bad gateway"))
        assert (await order(payer)).status == 502
        payer.till.channel = replace(payer.till.channel, settled=payer.till.channel.authorised)
        assert (await order(payer)).status == 200
        assert not line.probes


@pytest.fixture
def strict(shop: Shop, make_payer: MakePayer) -> Payer:
    payer = make_payer()
    payer.gate.repeats._strict = True
    return payer


class TestStrict:
    async def test_refused_until_it_is_known(self, strict: Payer, shop: Shop, line: Line) -> None:
        await warm(strict)
        await lose(strict, line, "after")
        spent = shop.account.spent
        got = await order(strict)
        assert (got.status, got.reason, len(line.probes)) == (402, "strict-retries", 0)
        assert shop.account.spent == spent
        (told,) = lines(strict, "decision")
        channel = strict.till.channel
        for part in (
            "POST",
            "/quote",
            "0.01",
            "Try again after 20",
            f"bursar reconcile {channel.channel_id[:10]}",
        ):
            assert part in told["message"]
        assert (await strict.get()).status == 200  # a method that changes nothing is no matter of this
        shop.clock.ahead += EXPIRY_S
        again = await order(strict)
        assert (again.status, len(line.probes)) == (200, 1)
        channel = strict.till.channel
        assert channel.paid + channel.uncertain == shop.account.spent
        assert line.keys()[1] == line.keys()[-1]

    async def test_lost_on_the_way_there(self, strict: Payer, shop: Shop, line: Line) -> None:
        await warm(strict)
        await lose(strict, line, "before")
        assert (await order(strict)).reason == "strict-retries"
        shop.clock.ahead += EXPIRY_S
        before = strict.till.channel.authorised
        assert (await order(strict)).status == 200
        channel = strict.till.channel
        assert (channel.authorised, channel.paid, channel.uncertain) == (before, 2 * P, 0)

    async def test_two_in_doubt_of_which_one_was_charged(self, strict: Payer, shop: Shop, line: Line) -> None:
        """The server's sum does not say which: somebody has to decide."""
        await warm(strict)
        await lose(strict, line, "after")
        await lose(strict, line, "before", body=b"another")
        shop.clock.ahead += EXPIRY_S
        assert (await order(strict)).reason == "strict-retries"
        assert len(line.probes) == 1
        assert strict.till.channel.uncertain == P

    async def test_what_another_process_has_reconciled(self, strict: Payer, shop: Shop, line: Line) -> None:
        await warm(strict)
        await lose(strict, line, "after")
        till = strict.till
        till.channel = account.reconciled(till.channel, P)
        assert (await order(strict)).status == 200
        assert not line.probes

    async def test_a_channel_that_is_closed_leaves_nothing_open(
        self, strict: Payer, shop: Shop, line: Line
    ) -> None:
        await warm(strict)
        await lose(strict, line, "after")
        channel_id = strict.till.channel.channel_id
        shop.clock.ahead += 10
        await strict.gate.release_idle(3_000)
        result = await close_channel(strict.parts, channel_id)
        assert result.channel.status is ChannelStatus.CLOSED
        assert (await order(strict)).status == 200
        assert line.keys()[1] == line.keys()[-1]

    async def test_the_refusal_names_a_way_that_works(self, strict: Payer, line: Line) -> None:
        await warm(strict)
        await lose(strict, line, "after")
        assert (await order(strict)).reason == "strict-retries"
        assert (await order(strict, headers={"Idempotency-Key": "another"})).status == 200


class TestAfterARestart:
    @pytest.mark.parametrize("how", ["kill -9", "SIGTERM"])
    async def test_a_retry_is_recognised_by_the_ledger(
        self, make_payer: MakePayer, shop: Shop, line: Line, how: str
    ) -> None:
        first = await warm(make_payer())
        if how == "SIGTERM":
            await lose(first, line, "after")
            await first.gate.close()
        else:
            held = Overtaking(shop, 1)
            held.let_later(60)
            lost = asyncio.create_task(order(first))
            await ticks(50)
            lost.cancel()
            first.gate.finished = lambda ticket, outcome: None  # type: ignore[method-assign]
            await first.die()
            await asyncio.gather(lost, return_exceptions=True)
            shop.pace = line._pace
        second = make_payer(shared=first.backend.shared, key=first.key)
        second.gate.repeats.recall()
        got = await order(second)
        assert got.status == 200
        assert line.keys()[-2] == line.keys()[-1]
        channel = second.till.channel
        assert (channel.paid, channel.uncertain) == (2 * P, P)
        assert shop.account.spent == 3 * P
        # And it is used up, for the next process as well.
        await second.gate.close()
        third = make_payer(shared=first.backend.shared, key=first.key)
        third.gate.repeats.recall()
        assert len(third.gate.repeats.known) == 0

    async def test_the_probe_claims_the_channel_first(
        self, make_payer: MakePayer, shop: Shop, line: Line
    ) -> None:
        first = await warm(make_payer())
        answers(shop, line, Response(502, (), b"bad gateway"))
        assert (await order(first)).status == 502
        await first.gate.close()
        second = make_payer(shared=first.backend.shared, key=first.key)
        second.gate.repeats.recall()
        before = (await second.channels())[0].authorised
        assert (await order(second)).status == 200
        assert len(line.probes) == 1
        channel = second.till.channel
        assert (channel.authorised, channel.paid, channel.uncertain) == (before, 2 * P, 0)


class TestAnotherWorker:
    """A client's next connection may be with another process, which lives as long as the one that lost its answer."""

    @pytest.fixture
    async def pair(self, make_payer: MakePayer) -> tuple[Payer, Payer]:
        """Each has a channel of its own."""
        first = await warm(make_payer())
        second = make_payer(shared=first.backend.shared, key=first.key)
        second.gate.repeats.recall()
        return first, await warm(second)

    async def test_a_retry_is_recognised_at_once(self, pair: tuple[Payer, Payer], line: Line) -> None:
        first, second = pair
        await lose(first, line, "after")
        assert (await order(second)).status == 200
        assert line.keys()[-2] == line.keys()[-1]
        lost = lines(first, "sent")[-1]["request"]
        assert lines(second, "sent")[-1]["retry_of"] == lost
        # It is used up there as well, as soon as that has read it.
        assert len(first.gate.repeats.known) == 1
        first.gate.repeats.look()
        assert len(first.gate.repeats.known) == 0
        assert (await order(first)).status == 200
        assert line.keys()[-1] != line.keys()[-2]

    async def test_one_that_is_not_lost_is_not_repeated(self, pair: tuple[Payer, Payer], line: Line) -> None:
        first, second = pair
        assert [(await order(one)).status for one in (first, second, first, second)] == [200] * 4
        assert len(set(line.keys())) == len(line.keys())
        second.gate.repeats.look()
        assert not second.gate.repeats._neighbours._whose

    async def test_strict_while_the_other_one_has_the_channel(
        self, pair: tuple[Payer, Payer], shop: Shop, line: Line
    ) -> None:
        """Its record in the store does not say yet that anything is in doubt."""
        first, second = pair
        second.gate.repeats._strict = True
        assert (await order(first)).status == 200
        await lose(first, line, "after")
        spent = [one.spent for one in shop.accounts.values()]
        assert (await order(second)).reason == "strict-retries"
        assert [one.spent for one in shop.accounts.values()] == spent

    async def test_one_that_died_with_it(self, pair: tuple[Payer, Payer], shop: Shop, line: Line) -> None:
        first, second = pair
        held = Overtaking(shop, 1)
        held.let_later(60)
        lost = asyncio.create_task(order(first))
        await ticks(50)
        second.gate.repeats.look()
        assert len(second.gate.repeats.known) == 0  # in flight is not lost
        lost.cancel()
        first.gate.finished = lambda ticket, outcome: None  # type: ignore[method-assign]
        await first.die()
        await asyncio.gather(lost, return_exceptions=True)
        shop.pace = line._pace
        assert (await order(second)).status == 200
        assert line.keys()[-2] == line.keys()[-1]
        assert "retry_of" in lines(second, "sent")[-1]
