"""Who is paid for, through the whole gate: each limit with its reason, clients to the unit, breaker, pins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.core.policy import ClientRule, Rates
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer.gate import PaymentGate
from store import budgets
from store.memory_store import SharedMemory
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import Got, Overtaking, Payer, Shop, ticks

ALICE = {"alice": ClientRule("policy.clients[0].max_per_day", "0.05")}
OTHERS = ClientRule("policy.max_per_day_per_client", "0.03")
HOST = "127.0.0.1:8000"


class Users:
    """Whose request comes next."""

    def __init__(self, payer: Payer, **policy: Any) -> None:
        self.payer, self.user = payer, None if "user" not in policy else policy.pop("user")
        chosen = replace(payer.settings.spend_policy(), **policy)
        payer.gate = PaymentGate(payer.parts, chosen, reason_header=True, user_of=lambda flow: self.user)

    async def get(self, user: str | None, path: str = "/quote", **options: Any) -> Got:
        """`consider` is called at once: whoever comes next does not change whose this is."""
        self.user = user
        return await self.payer.get(path, **options)

    async def all(self, users: list[str]) -> list[Got]:
        tasks = []
        for user in users:
            tasks.append(asyncio.ensure_future(self.get(user)))
            await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    async def used(self, client: str) -> int:
        counters = await self.payer.store.counters(budgets.CLIENT)
        return sum(value for key, value in counters.items() if key.endswith(f"/{client}"))


def refusals(payer: Payer) -> str:
    """What the ledger says was not paid."""
    return payer.parts.audit.journal.path.read_text()


# -- every reason, with its rule, its value and its key

Setup = Callable[[Payer, Shop], None]


def _policy(**fields: Any) -> Setup:
    def change(payer: Payer, shop: Shop) -> None:
        Users(payer, **fields)

    return change


def wrong_by(shop: Shop, days: float) -> None:
    """Our clock; with challenges that it takes for good, so that nothing else is in the way."""
    shop.clock.wrong = days * 86_400
    shop.api.payee.challenges.expires_s = int(days * 86_400) + 300


def _ahead(payer: Payer, shop: Shop) -> None:
    wrong_by(shop, 2.1)


@pytest.mark.parametrize(
    ("rule", "setup", "warm", "reason", "says"),
    [
        (
            {"max_price": "0.009"},
            None,
            0,
            "over-max-price",
            "asks 0.01 USD, over max_price 0.009 USD (policy.hosts[0]); raise it to pay this",
        ),
        (
            {"max_per_day": "0.02"},
            None,
            2,
            "limit-reached",
            "asks for 0.01 USD more, but 0.02 USD of policy.hosts[0].max_per_day = 0.02 USD are used; raise it, or wait"
            " until the day (UTC) is over",
        ),
        (
            {},
            _policy(max_per_day="0.02"),
            2,
            "limit-reached",
            "0.02 USD of policy.max_per_day = 0.02 USD are used",
        ),
        (
            {},
            _policy(max_lifetime="0.02", max_deposits_total="9"),
            2,
            "limit-reached",
            "0.02 USD of policy.max_lifetime = 0.02 USD are used; raise it, or close channels: what was not captured"
            " comes back",
        ),
        (
            {},
            _policy(clients={"local": ALICE["alice"]}),
            5,
            "limit-reached",
            "0.05 USD of policy.clients[0].max_per_day = 0.05 USD are used; raise it, or wait until the day",
        ),
        (
            {},
            _policy(other_clients=OTHERS),
            3,
            "limit-reached",
            "0.03 USD of policy.max_per_day_per_client = 0.03 USD are used",
        ),
        (
            {"max_opens_per_day": 0},
            None,
            0,
            "limit-reached",
            "asks for 1 more, but 0 of policy.hosts[0].max_opens_per_day = 0 are used",
        ),
        (
            {"max_deposits_per_day": "0.9"},
            None,
            0,
            "limit-reached",
            "asks for 1.00 USD more, but 0.00 USD of policy.hosts[0].max_deposits_per_day = 0.90 USD are used",
        ),
        (
            {},
            _policy(max_deposits_total="0.999999"),
            0,
            "limit-reached",
            "asks for 1.00 USD more, but 0.00 USD of policy.max_deposits_total = 0.999999 USD are used; raise it, or"
            " bring deposits home: bursar channels close",
        ),
        (
            {},
            _policy(rates=Rates(attempts_per_minute=1)),
            1,
            "too-many-attempts",
            "has made local pay anew more than 1 times a minute (limits.attempts_per_minute)",
        ),
        (
            {},
            _policy(rates=Rates(in_flight_per_origin=0)),
            0,
            "too-many-in-flight",
            "has 0 paid requests in flight, all that limits.in_flight_per_origin = 0 allows",
        ),
        (
            {},
            _policy(rates=Rates(in_flight=0)),
            0,
            "too-many-in-flight",
            "0 paid requests are in flight, all that limits.in_flight = 0 allows",
        ),
        ({}, _ahead, 0, "clock-ahead", "but the newest block of eip155:"),
    ],
)
async def test_reasons(
    make_payer: MakePayer,
    shop: Shop,
    rule: dict[str, Any],
    setup: Setup | None,
    warm: int,
    reason: str,
    says: str,
) -> None:
    """The client gets the server's own 402, the ledger says which rule, how much, and what to change."""
    payer = make_payer(**rule)
    if setup is not None:
        setup(payer, shop)
    for _ in range(warm):
        assert (await payer.get()).status == 200
        await payer.settled()
    shop.api.routes["/other"] = shop.api.routes["/quote"]
    got = await payer.get("/other" if reason == "too-many-attempts" else "/quote")
    assert (got.status, got.reason) == (402, reason)
    assert says in refusals(payer)
    assert not any(one.payload for one in got.sent), "something was signed"


async def test_a_day_that_has_not_come_is_not_paid_on_and_one_that_is_over_neither(
    payer: Payer, shop: Shop
) -> None:
    assert (await payer.get()).status == 200
    await payer.settled()
    shop.clock.ahead += 3 * 86_400  # three days pass for everybody
    assert (await payer.get()).status == 200
    wrong_by(shop, -2)
    payer.gate._offers._kept.clear()
    got = await payer.get()
    assert (got.status, got.reason) == (402, "clock-went-back")
    assert "the clock went back: it says" in refusals(payer)
    wrong_by(shop, 0)
    assert (await payer.get()).status == 200


async def test_a_new_day_after_a_restart_waits_for_the_chain(
    make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the chain, warm requests go on on a day that was begun, and on no other."""
    shared = SharedMemory()
    first = make_payer(shared=shared)
    assert (await first.get()).status == 200
    await first.settled()
    await first.gate.close()
    (chain,) = first.parts.chains.values()

    async def silent(*arguments: Any) -> Any:
        from proxy_addon.core.errors import ChainUnavailable

        raise ChainUnavailable("no endpoint answered")

    monkeypatch.setattr(type(chain), "head", silent)
    second = make_payer(shared=shared, key=first.key)
    assert (await second.get()).status == 200
    shop.clock.ahead += 86_400
    got = await second.get()
    assert (got.status, got.reason) == (402, "clock-unconfirmed")
    monkeypatch.undo()
    shop.clock.ahead += 6
    assert (await second.get()).status == 200


# -- clients


async def test_each_client_has_its_own_day_to_the_unit(payer: Payer) -> None:
    users = Users(payer, clients=ALICE, other_clients=OTHERS)
    got = [
        (user, (await users.get(user)).status) for _ in range(7) for user in ("alice", "bob", "carol", None)
    ]
    await payer.settled()
    paid = {user: sum(1 for one, status in got if one == user and status == 200) for user, _ in got}
    assert paid == {"alice": 5, "bob": 3, "carol": 3, None: 3}
    assert [await users.used(name) for name in ("alice", "bob", "carol", "local")] == [
        50_000,
        30_000,
        30_000,
        30_000,
    ]
    assert sum(paid.values()) * PRICE == payer.till.channel.paid == payer.till.channel.issued


async def test_many_at_once_share_a_voucher_but_not_a_budget(payer: Payer, shop: Shop) -> None:
    users = Users(payer, clients=ALICE)
    assert (await users.get("bob")).status == 200
    await payer.settled()
    names = ["alice" if number % 3 else "bob" for number in range(60)]
    got = await users.all(names)
    paid = [name for name, one in zip(names, got, strict=True) if one.status == 200]
    assert paid.count("alice") == 5
    assert paid.count("bob") == 20
    assert {one.reason for one in got if one.status != 200} == {"limit-reached"}
    assert await users.used("alice") == 50_000


async def test_what_was_not_charged_is_the_clients_again(payer: Payer, shop: Shop) -> None:
    users = Users(payer, clients=ALICE)
    for _ in range(10):
        got = await users.get("alice", ends=Outcome.NOT_SENT)
        assert got.status == 502
    assert (await users.get("alice")).status == 200
    await payer.settled()
    for _ in range(10):
        await users.get("alice", ends=Outcome.NOT_SENT)
    assert [(await users.get("alice")).status for _ in range(5)] == [200] * 4 + [402]
    assert await users.used("alice") == 50_000


async def test_what_may_have_been_charged_stays(make_payer: MakePayer) -> None:
    payer = make_payer(breaker_failures=99)
    payer.honest = False
    users = Users(payer, clients=ALICE)
    for _ in range(5):
        await users.get("alice", ends=Outcome.LOST)
        await payer.settled()
    got = await users.get("alice")
    assert (got.status, got.reason) == (402, "limit-reached")


async def test_what_a_refusal_made_us_authorise_is_its_clients(payer: Payer, shop: Shop) -> None:
    """Repair d: the server says that nothing is left; the request is paid for twice, and counts twice."""
    users = Users(payer, clients=ALICE)
    assert (await users.get("alice")).status == 200
    await payer.settled()
    payer.honest = False
    shop.refuses_once("session/insufficient-balance")
    got = await users.get("alice")
    assert got.new_money == 2 * PRICE
    assert [(await users.get("alice")).status for _ in range(3)] == [200, 200, 402]


async def test_no_commit_more_than_without_clients(make_payer: MakePayer, shop: Shop) -> None:
    """What a client needs is reserved in the commits that are made anyway, and somewhat ahead."""
    rule = {"authorise_ahead": "1", "reserve": "0"}
    plain, limited = make_payer(**rule), make_payer(**rule)
    users = Users(limited, other_clients=ClientRule("policy.max_per_day_per_client", "50"))
    costs = []
    for payer, users_ in ((plain, Users(plain)), (limited, users)):
        assert (await users_.get("alice")).status == 200
        await payer.settled()
        before = payer.commits, payer.signatures
        for _ in range(10):
            assert (await users_.get("alice")).status == 200
        for _ in range(4):
            assert {one.status for one in await users_.all(["alice", "bob"] * 16)} == {200}
        costs.append((payer.commits - before[0], payer.signatures - before[1]))
    assert costs[0] == costs[1]


async def test_with_a_reserve_each_client_has_a_commit_of_its_own_at_most(
    make_payer: MakePayer, shop: Shop
) -> None:
    """Where the channel has reserved so much that none is made."""
    plain, limited = make_payer(reserve="1"), make_payer(reserve="1")
    users = Users(limited, other_clients=ClientRule("policy.max_per_day_per_client", "50"))
    costs = []
    for payer, users_ in ((plain, Users(plain)), (limited, users)):
        assert (await users_.get("alice")).status == 200
        await payer.settled()
        before = payer.commits, payer.signatures
        for name in ["alice"] * 20 + ["alice", "bob"] * 20:
            assert (await users_.get(name)).status == 200
        costs.append((payer.commits - before[0], payer.signatures - before[1]))
    assert costs[0][1] == costs[1][1] == 60
    assert costs[0][0] <= costs[1][0] <= costs[0][0] + 2


async def test_money_that_another_client_left_over(payer: Payer, shop: Shop) -> None:
    """Bob's request is paid out of what Alice's freed: one commit for his day, none for the channel."""
    users = Users(payer, other_clients=ClientRule("policy.max_per_day_per_client", "50"))
    assert (await users.get("alice")).status == 200
    await payer.settled()
    await users.get("alice", ends=Outcome.NOT_SENT)
    authorised, signatures = payer.till.channel.authorised, payer.signatures
    assert payer.till.channel.free == PRICE
    assert (await users.get("bob")).status == 200
    assert (payer.till.channel.authorised, payer.signatures) == (authorised, signatures)
    assert await users.used("bob") >= PRICE


async def test_what_is_reserved_ahead_goes_back(make_payer: MakePayer, shop: Shop) -> None:
    shared = SharedMemory()
    users = Users(make_payer(shared=shared), other_clients=ClientRule("policy.max_per_day_per_client", "50"))
    payer = users.payer
    assert (await users.get("alice")).status == 200
    await payer.settled()
    assert await users.used("alice") > PRICE
    await payer.gate.release_idle(60_000)
    assert await users.used("alice") > PRICE
    shop.clock.ahead += 61
    await payer.gate.release_idle(60_000)
    assert await users.used("alice") == PRICE
    assert (await users.get("alice")).status == 200
    await payer.gate.close()
    assert await users.used("alice") == 2 * PRICE


async def test_a_process_that_dies_loses_what_it_reserved_and_nothing_is_passed(
    make_payer: MakePayer, shop: Shop
) -> None:
    shared, served, key = SharedMemory(), 0, None
    for _ in range(4):
        payer = make_payer(shared=shared, key=key)
        key = payer.key
        users = Users(payer, other_clients=ClientRule("policy.max_per_day_per_client", "1"))
        for _ in range(20):
            served += (await users.get("alice")).status == 200
            await payer.settled()
        await payer.die()
    payer = make_payer(shared=shared, key=key)
    users = Users(payer, other_clients=ClientRule("policy.max_per_day_per_client", "1"))
    while (await users.get("alice")).status == 200:
        served += 1
    assert 85 <= served <= 100
    assert await users.used("alice") <= 1_000_000


async def test_a_name_is_a_name_only_with_a_password(payer: Payer) -> None:
    """Without one everybody here is "local", and the ledger has no user."""
    users = Users(payer, clients={"local": OTHERS})
    assert (await users.get(None)).status == 200
    assert '"user"' not in refusals(payer)
    assert await users.used("local") == PRICE
    assert (await users.get("alice")).status == 200
    assert '"user":"alice"' in refusals(payer)


async def test_streams_count_as_they_grow(make_payer: MakePayer, shop: Shop) -> None:
    users = Users(make_payer(max_price="0.05"), clients=ALICE)
    got = await users.get("alice", "/stream", query={"n": 3})
    assert got.status == 200
    assert await users.used("alice") >= PRICE


# -- seats


async def test_seats_are_given_back_however_a_request_ends(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer()
    seats = payer.gate.guard.seats
    payer.honest = False
    for ending in (Outcome.COMPLETE, Outcome.NOT_SENT, Outcome.LOST, Outcome.CUT, Outcome.COMPLETE):
        await payer.get(ends=ending)
        await payer.settled()
        assert len(seats) == 0, ending
    shop.refuses_once("session/insufficient-balance")
    await payer.get()
    shop.refuses(9, "verification-failed")
    await payer.get()
    assert len(seats) == 0


async def test_beyond_the_seats_the_402_passes(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer()
    Users(payer, rates=Rates(in_flight_per_origin=3))
    assert (await payer.get()).status == 200
    await payer.settled()
    traffic = Overtaking(shop, 0, 1, 2)
    first = [asyncio.ensure_future(payer.get()) for _ in range(3)]
    await ticks(50)
    got = await payer.get()
    assert (got.status, got.reason) == (402, "too-many-in-flight")
    for number in range(3):
        traffic.let(number)
    assert [one.status for one in await asyncio.gather(*first)] == [200] * 3
    assert (await payer.get()).status == 200


async def test_a_client_that_leaves_while_it_waits_leaves_its_seat_and_its_day(
    make_payer: MakePayer, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer = make_payer()
    users = Users(payer, clients=ALICE)
    assert (await users.get("alice")).status == 200
    await payer.settled()
    usual, goes_on = payer.store.set, asyncio.Event()

    async def slow(*arguments: Any) -> None:
        await goes_on.wait()
        await usual(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(payer.store, "set", slow)
        task = asyncio.ensure_future(users.get("alice"))
        await ticks(20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        goes_on.set()
        await ticks(20)
    assert len(payer.gate.guard.seats) == 0
    assert [(await users.get("alice")).status for _ in range(5)] == [200] * 4 + [402]


# -- the breaker, on the wire


def broken(shop: Shop, status: int = 500) -> None:
    """A server that takes each payment and answers with an error, without a receipt."""

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        return Response(status, [], b"no") if payload else None

    shop.script = script


async def test_a_server_that_takes_and_delivers_nothing_is_left_alone(
    make_payer: MakePayer, shop: Shop
) -> None:
    payer = make_payer(breaker_failures=3)
    payer.honest = False
    assert (await payer.get()).status == 200
    await payer.settled()
    broken(shop)
    assert [(await payer.get()).status for _ in range(3)] == [500] * 3
    got = await payer.get()
    assert (got.status, got.reason) == (402, "breaker-open")
    assert not any(one.payload for one in got.sent)
    assert "3 payments in a row brought nothing" in refusals(payer)
    shop.clock.ahead += 60
    got = await payer.get()
    assert [bool(one.payload) for one in got.sent] == [False, True]  # one is tried, with a fresh challenge
    assert got.status == 500
    assert (await payer.get()).reason == "breaker-open"
    shop.clock.ahead += 60
    shop.script = lambda request, payload: None
    assert (await payer.get()).status == 200
    assert [len(one.sent) for one in await payer.all(5)] == [1] * 5  # as before, in advance


async def test_402_for_ever(payer: Payer, shop: Shop) -> None:
    assert (await payer.get()).status == 200
    await payer.settled()
    shop.refuses(10**6, "method-unsupported")
    reasons = [(await payer.get()).reason for _ in range(8)]
    assert reasons == ["refused-by-server"] * 5 + ["breaker-open"] * 3
    assert payer.till.channel.authorised == 2 * PRICE


async def test_an_honest_server_with_a_bad_day_is_paid(make_payer: MakePayer, shop: Shop) -> None:
    """Each fifth answer is a 500 that was not charged for: between them it delivers."""
    payer = make_payer()
    payer.honest = False
    number = 0

    def script(request: Request, payload: Mapping[str, Any]) -> Response | None:
        nonlocal number
        number += bool(payload)
        return Response(500, [], b"no") if payload and number % 5 == 0 else None

    shop.script = script
    got = []
    for _ in range(60):
        got.append((await payer.get()).status)
        await payer.settled()
    assert {200, 500} == set(got)
    assert not payer.gate.guard.breaker.is_open(HOST)


async def test_a_retry_after_is_no_failure(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer(breaker_failures=2)
    assert (await payer.get()).status == 200
    await payer.settled()
    shop.refuses(4, "verification-failed", headers=[("Retry-After", "1")])
    for _ in range(4):
        assert (await payer.get()).reason == "retry-after"
        shop.clock.ahead += 2
    assert (await payer.get()).status == 200


async def test_what_was_not_delivered_is_in_the_store(make_payer: MakePayer, shop: Shop) -> None:
    shared = SharedMemory()
    payer = make_payer(shared=shared, breaker_max_undelivered="0.025")
    payer.honest = False
    assert (await payer.get()).status == 200
    await payer.settled()
    broken(shop)
    for _ in range(2):
        await payer.get()
    await payer.gate.close()
    (key,) = await payer.store.counters("undelivered/")
    assert (await payer.store.counters("undelivered/"))[key] == 2 * PRICE
    after = make_payer(shared=shared, key=payer.key, breaker_max_undelivered="0.025")
    after.honest = False
    assert (await after.get()).status == 500
    got = await after.get()
    assert (got.status, got.reason) == (402, "breaker-open")
    assert "0.03 USD were paid today, or may have been" in refusals(after)


# -- pins


def move(shop: Shop, payee: str = "0x" + "c" * 40) -> str:
    """From now on the shop's challenges name another payee; as it was."""
    before = shop.api.payee.challenges.payee
    shop.api.payee.challenges.payee = payee
    return before


async def test_a_payee_is_pinned_with_the_first_opening(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer(pin_payee=True)
    assert (await payer.get()).status == 200
    await payer.settled()
    (pin,) = await payer.store.pins()
    assert (pin.origin, pin.payee) == (f"http://{HOST}", shop.api.payee.address)
    payer.gate._offers._kept.clear()  # as for another route
    payee = move(shop)
    got = await payer.get()
    assert (got.status, got.reason) == (402, "payee-changed")
    assert not any(one.payload for one in got.sent)
    assert (
        f"{HOST} names the payee 0xcccc…cccc, but was first paid as {payee[:6]}…{payee[-4:]}"
        f" (policy.hosts[0].pin_payee); if it has moved for good: bursar pins forget {HOST}"
    ) in refusals(payer)
    move(shop, payee)
    assert (await payer.get()).status == 200


async def test_a_pin_that_was_forgotten_elsewhere(make_payer: MakePayer, shop: Shop) -> None:
    payer = make_payer(pin_payee=True)
    payer.honest = False
    assert (await payer.get()).status == 200
    await payer.settled()
    payer.gate._offers._kept.clear()
    move(shop)
    assert (await payer.get()).reason == "payee-changed"
    assert await payer.store.forget_pin(f"http://{HOST}")  # by `bursar pins forget`, while the proxy runs
    got = await payer.get()
    assert "open" in [one.action for one in got.sent]
    assert [pin.payee for pin in await payer.store.pins()] == ["0x" + "c" * 40]
    shop.clock.ahead += 60  # the shop knows nothing of that payee: its opening never lands


async def test_a_channel_from_before_the_rule_pins_with_its_next_raise(
    make_payer: MakePayer, shop: Shop
) -> None:
    shared = SharedMemory()
    first = make_payer(shared=shared)
    assert (await first.get()).status == 200
    await first.settled()
    await first.gate.close()
    assert await first.store.pins() == ()
    second = make_payer(shared=shared, key=first.key, pin_payee=True)
    assert (await second.get()).status == 200
    assert [pin.payee for pin in await second.store.pins()] == [shop.api.payee.address]
    second.gate._offers._kept.clear()
    move(shop)
    assert (await second.get()).reason == "payee-changed"


async def test_two_processes_with_different_ideas_of_the_payee(make_payer: MakePayer, shop: Shop) -> None:
    """Both have looked when there was no pin: the store has the last word."""
    shared = SharedMemory()
    first, second = make_payer(shared=shared, pin_payee=True), make_payer(shared=shared, pin_payee=True)
    first.honest = second.honest = False
    traffic = Overtaking(shop, 3)
    one = asyncio.ensure_future(first.get())
    await ticks(6)
    move(shop)
    traffic.let(3)
    two = asyncio.ensure_future(second.get())
    got = await asyncio.gather(one, two)
    shop.clock.ahead += 60
    (pin,) = await first.store.pins()
    opened = {channel.scope.payee for channel in await first.channels()}
    assert opened == {pin.payee}
    assert sorted((one.reason or "paid") for one in got if one.status == 402)[0] in (
        "open-refused",
        "payee-changed",
    )


async def test_an_origin_without_pins_may_move(payer: Payer, shop: Shop) -> None:
    payer.honest = False
    assert (await payer.get()).status == 200
    await payer.settled()
    payer.gate._offers._kept.clear()
    move(shop)
    assert "open" in [one.action for one in (await payer.get()).sent]
    assert await payer.store.pins() == ()
    shop.clock.ahead += 60
