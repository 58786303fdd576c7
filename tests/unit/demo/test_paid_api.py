"""The paid API over real HTTP: what it takes, what it refuses, and that its accounts follow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from proxy_addon.core.messages import Challenge, parse_problem
from proxy_addon.core.strict_json import b64url_encode
from proxy_addon.demo.chain import SimulatedChain
from proxy_addon.demo.http1 import Request, Response
from proxy_addon.demo.paid_api import PRICE, PaidApi, Route
from proxy_addon.methods.tempo_session.calls import TOP_UP
from proxy_addon.methods.tempo_session.v2 import RESERVE
from store.records import Channel
from tests.unit.demo.conftest import FUNDS
from tests.unit.demo.wallet import METHOD, Answer, Wallet, challenge_of, read

DEPOSIT = 100_000


class Payer:
    """A wallet with an open channel, and one request paid on it."""

    def __init__(self, http: httpx.AsyncClient, wallet: Wallet, challenge: Challenge) -> None:
        self.http = http
        self.wallet = wallet
        self.challenge = challenge
        self.channel = wallet.plan(challenge, DEPOSIT)

    async def send(
        self, payload: dict[str, Any], method: str = "GET", path: str = "/quote", **kwargs: Any
    ) -> Answer:
        headers = self.wallet.credential(self.challenge, payload)
        return read(await self.http.request(method, path, headers=headers, **kwargs))

    async def pay(self, amount: int, method: str = "GET", path: str = "/quote") -> Answer:
        return await self.send(self.wallet.voucher_payload(self.channel, amount), method, path)


@pytest.fixture
async def fresh(http: httpx.AsyncClient, wallet: Wallet) -> Payer:
    """Nothing opened yet."""
    return Payer(http, wallet, challenge_of(await http.get("/quote")))


@pytest.fixture
async def payer(fresh: Payer) -> Payer:
    answer = await fresh.send(fresh.wallet.open_payload(fresh.channel, PRICE))
    assert answer.status == 200
    return fresh


async def test_the_challenge_is_one_that_our_own_method_reads(http: httpx.AsyncClient, api: PaidApi) -> None:
    response = await http.get("/quote")
    assert (response.status_code, response.headers["cache-control"]) == (402, "no-store")
    assert read(response).problem == "payment-required"
    problem = parse_problem(response.headers["content-type"], response.content)
    challenge = challenge_of(response)
    assert problem is not None
    assert problem.challenge_id == challenge.id
    terms = METHOD.terms(challenge)
    assert (terms.price, terms.payee, terms.chain) == (PRICE, api.payee.address, "eip155:42431")
    assert (terms.escrow, terms.suggested_deposit, terms.fee_payer) == (RESERVE, 100_000, False)
    assert challenge.expires_at is not None
    assert (await http.get("/free")).json() == {"free": True}
    assert (await http.get("/nothing")).status_code == 404


class TestSession:
    async def test_open_pay_close(self, payer: Payer, api: PaidApi, chain: SimulatedChain) -> None:
        account = api.payee.accounts[payer.channel.channel_id]
        assert (account.spent, account.accepted, account.deposit) == (PRICE, PRICE, DEPOSIT)
        for cumulative in (20_000, 30_000):
            answer = await payer.pay(cumulative)
            assert answer.status == 200
            assert answer.receipt is not None
            assert (answer.receipt.spent, answer.receipt.accepted_cumulative) == (cumulative, cumulative)
            assert answer.response.headers["cache-control"] == "private"
        closed = await payer.send(payer.wallet.close_payload(payer.channel, 30_000), "POST")
        assert closed.status == 204
        assert closed.receipt is not None
        assert closed.receipt.tx_hash == account.closed_by
        assert (account.captured, account.refunded, account.finalized) == (30_000, 70_000, True)
        assert chain.channel(payer.channel.channel_id).deposit == 0
        fees = sum(mined.fee for mined in chain.transactions.values() if mined.sender == payer.wallet.address)
        assert chain.balance(payer.wallet.address) == FUNDS - 30_000 - fees
        assert api.charged == 30_000
        assert (await payer.pay(40_000)).problem == "session/channel-finalized"

    async def test_one_voucher_covers_several_requests(self, payer: Payer, api: PaidApi) -> None:
        for spent in (20_000, 30_000):
            answer = await payer.pay(30_000)
            assert answer.receipt is not None
            assert answer.receipt.spent == spent
        answer = await payer.pay(30_000)
        assert (answer.status, answer.problem) == (402, "session/insufficient-balance")
        assert api.charged == 30_000

    async def test_head_takes_a_voucher_and_charges_nothing(self, payer: Payer, api: PaidApi) -> None:
        answer = await payer.pay(50_000, "HEAD")
        assert (answer.status, answer.response.content) == (204, b"")
        assert answer.receipt is not None
        assert (answer.receipt.accepted_cumulative, answer.receipt.spent) == (50_000, PRICE)
        assert api.log[-1].charged == 0

    @pytest.mark.parametrize(
        ("path", "content", "charged"),
        [("/quote", b"", 0), ("/quote", b"{}", PRICE), ("/quote?status=200", b"", PRICE)],
    )
    async def test_post_is_content_with_a_body_or_a_query(
        self, payer: Payer, api: PaidApi, path: str, content: bytes, charged: int
    ) -> None:
        payload = payer.wallet.voucher_payload(payer.channel, 20_000)
        answer = await payer.send(payload, "POST", path, content=content)
        assert answer.status == (200 if charged else 204)
        assert api.log[-1].charged == charged

    async def test_a_top_up_raises_the_deposit(self, payer: Payer, api: PaidApi) -> None:
        assert (await payer.pay(150_000)).problem == "session/amount-exceeds-deposit"
        answer = await payer.send(payer.wallet.top_up_payload(payer.channel, 50_000), "POST")
        assert answer.status == 204
        assert api.payee.accounts[payer.channel.channel_id].deposit == 150_000
        assert (await payer.pay(150_000)).status == 200

    async def test_a_stream_comes_in_chunks_and_whole(self, payer: Payer) -> None:
        answer = await payer.pay(20_000, path="/stream?chunks=3&size=4")
        assert answer.response.headers["transfer-encoding"] == "chunked"
        assert answer.response.content == b"aaaabbbbcccc"

    async def test_an_application_may_fail_after_the_charge(self, payer: Payer, api: PaidApi) -> None:
        answer = await payer.pay(20_000, path="/quote?status=404&delay_ms=1")
        assert (answer.status, api.charged) == (404, 20_000)
        assert answer.receipt is not None

    async def test_after_a_settlement_vouchers_must_pass_it(self, payer: Payer, api: PaidApi) -> None:
        await payer.pay(30_000, "HEAD")
        api.payee.settle(payer.channel.channel_id)
        assert (await payer.pay(30_000)).problem == "verification-failed"
        assert (await payer.pay(30_001)).status == 200
        closed = await payer.send(payer.wallet.close_payload(payer.channel, 30_000), "POST")
        assert closed.status == 204
        account = api.payee.accounts[payer.channel.channel_id]
        assert (account.captured, account.spent) == (30_000, 20_000)


Forge = Callable[[Wallet, Channel], dict[str, Any]]


def _with(payload: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {**payload, **change}


def _flip(text: str, at: int = -10) -> str:
    flipped = "1" if text[at] == "0" else "0"
    return text[:at] + flipped + text[at + 1 :]


REFUSED_VOUCHERS: dict[str, tuple[int, str, Forge]] = {
    "lower": (402, "verification-failed", lambda w, c: w.voucher_payload(c, PRICE - 1)),
    "over the deposit": (
        402,
        "session/amount-exceeds-deposit",
        lambda w, c: w.voucher_payload(c, DEPOSIT + 1),
    ),
    "amount raised after signing": (
        402,
        "session/invalid-signature",
        lambda w, c: _with(w.voucher_payload(c, 20_000), cumulativeAmount="20001"),
    ),
    "tampered signature": (
        402,
        "session/invalid-signature",
        lambda w, c: _with(
            w.voucher_payload(c, 20_000), signature=_flip(w.voucher_payload(c, 20_000)["signature"])
        ),
    ),
    "no signature": (
        402,
        "session/invalid-signature",
        lambda w, c: _with(w.voucher_payload(c, 20_000), signature="0x"),
    ),
    "someone else's signature": (
        402,
        "session/invalid-signature",
        lambda w, c: Wallet(w.chain, bytes.fromhex("33" * 32)).voucher_payload(c, 20_000),
    ),
    "another channel's signature": (
        402,
        "session/invalid-signature",
        lambda w, c: _with(
            w.voucher_payload(c, 20_000),
            signature=w.voucher_payload(replace(c, channel_id="0x" + "12" * 32), 20_000)["signature"],
        ),
    ),
    "unknown channel": (410, "session/channel-not-found", lambda w, c: w.voucher_payload(_other(c), 20_000)),
    "id of another descriptor": (
        402,
        "verification-failed",
        lambda w, c: _with(w.voucher_payload(c, 20_000), channelId="0x" + "12" * 32),
    ),
    "descriptor of another payee": (
        402,
        "verification-failed",
        lambda w, c: w.voucher_payload(_foreign(c), 20_000),
    ),
    "no descriptor": (
        402,
        "verification-failed",
        lambda w, c: _with(w.voucher_payload(c, 20_000), descriptor=None),
    ),
    "no channel": (
        402,
        "verification-failed",
        lambda w, c: _with(w.voucher_payload(c, 20_000), channelId="0x12"),
    ),
    "amount with a sign": (
        402,
        "verification-failed",
        lambda w, c: _with(w.voucher_payload(c, 20_000), cumulativeAmount="+20000"),
    ),
    "no action": (402, "invalid-payload", lambda w, c: _with(w.voucher_payload(c, 20_000), action="pay")),
    "signature no string": (
        402,
        "verification-failed",
        lambda w, c: _with(w.voucher_payload(c, 20_000), signature=1),
    ),
    "close below what was spent": (402, "verification-failed", lambda w, c: w.close_payload(c, PRICE - 1)),
    "close by someone else": (
        402,
        "session/invalid-signature",
        lambda w, c: Wallet(w.chain, bytes.fromhex("33" * 32)).close_payload(c, 20_000),
    ),
    "opening sent again": (500, "internal-payment-error", lambda w, c: w.open_payload(c, PRICE)),
    "top-up of another amount": (
        402,
        "verification-failed",
        lambda w, c: _with(w.top_up_payload(c, 5), additionalDeposit="6"),
    ),
    "top-up that is none": (
        402,
        "verification-failed",
        lambda w, c: _with(w.top_up_payload(c, 5), transaction="0x" + w.request_close(c).hex()),
    ),
    "top-up that fails on the chain": (
        500,
        "internal-payment-error",
        lambda w, c: w.top_up_payload(c, FUNDS),
    ),
}


def _respelled(channel: Channel, **change: str) -> Channel:
    """The same channel with another descriptor, and the id that follows from it."""
    from proxy_addon.methods.tempo_session.calls import channel_id

    descriptor = {**channel.descriptor, **change}
    found = channel_id(descriptor, escrow=RESERVE, chain_id=channel.scope.chain_id)
    return replace(channel, descriptor=descriptor, channel_id=found)


def _other(channel: Channel) -> Channel:
    return _respelled(channel, salt="0x" + "09" * 32)


def _foreign(channel: Channel) -> Channel:
    return _respelled(channel, payee="0x" + "55" * 20)


@pytest.mark.parametrize("name", REFUSED_VOUCHERS)
async def test_refused_and_nothing_moves(
    name: str, payer: Payer, api: PaidApi, chain: SimulatedChain
) -> None:
    status, problem, forge = REFUSED_VOUCHERS[name]
    account = replace(api.payee.accounts[payer.channel.channel_id])
    answer = await payer.send(forge(payer.wallet, payer.channel))
    assert (answer.status, answer.problem, answer.receipt) == (status, problem, None)
    assert challenge_of(answer.response).id != payer.challenge.id
    assert api.payee.accounts == {payer.channel.channel_id: account}
    assert chain.channel(payer.channel.channel_id).deposit == DEPOSIT
    assert (await payer.pay(20_000)).status == 200  # still as good as before


REFUSED_OPENINGS: dict[str, tuple[int, str, Forge]] = {
    "voucher below the price": (402, "verification-failed", lambda w, c: w.open_payload(c, PRICE - 1)),
    "voucher over the deposit": (
        402,
        "session/amount-exceeds-deposit",
        lambda w, c: w.open_payload(c, DEPOSIT + 1),
    ),
    "voucher of someone else": (
        402,
        "session/invalid-signature",
        lambda w, c: Wallet(w.chain, bytes.fromhex("33" * 32)).open_payload(c, PRICE),
    ),
    "signer of another descriptor": (
        402,
        "verification-failed",
        lambda w, c: _with(w.open_payload(c, PRICE), authorizedSigner="0x" + "01" * 20),
    ),
    "transaction of another channel": (
        402,
        "verification-failed",
        lambda w, c: _with(w.open_payload(_other(c), PRICE)),
    ),
    "no opening at all": (
        402,
        "verification-failed",
        lambda w, c: _with(w.open_payload(c, PRICE), transaction="0x" + w.request_close(c).hex()),
    ),
    "call of another contract": (
        402,
        "verification-failed",
        lambda w, c: _with(
            w.open_payload(c, PRICE), transaction="0x" + w.transaction(TOP_UP, "0x" + "01" * 20).hex()
        ),
    ),
    "type hash": (402, "verification-failed", lambda w, c: _with(w.open_payload(c, PRICE), type="hash")),
    "transaction cut short": (
        402,
        "verification-failed",
        lambda w, c: _with(
            w.open_payload(c, PRICE), transaction=w.open_payload(c, PRICE)["transaction"][:-2]
        ),
    ),
    "transaction of an unfunded wallet": (500, "internal-payment-error", lambda w, c: _of_a_pauper(w, c)),
}


def _of_a_pauper(wallet: Wallet, channel: Channel) -> dict[str, Any]:
    pauper = Wallet(wallet.chain, bytes.fromhex("44" * 32))
    scope = replace(channel.scope, payer=pauper.address, voucher_signer=pauper.address)
    from proxy_addon.methods.contract import ChainHead

    head = wallet.chain.head()
    plan = METHOD.plan_open(
        scope,
        deposit=DEPOSIT,
        salt=bytes(32),
        head=ChainHead(head.number, head.timestamp, wallet.chain.base_fee),
        fee_payer=False,
        signer=pauper.signer.opening(scope, deposit=DEPOSIT),
    )
    assert channel.pending is not None
    planned = replace(
        channel,
        scope=scope,
        channel_id=plan.channel_id,
        descriptor=plan.descriptor,
        pending=replace(channel.pending, raw=plan.transaction),
    )
    return pauper.open_payload(planned, PRICE)


@pytest.mark.parametrize("name", REFUSED_OPENINGS)
async def test_openings_refused(name: str, fresh: Payer, api: PaidApi, chain: SimulatedChain) -> None:
    status, problem, forge = REFUSED_OPENINGS[name]
    answer = await fresh.send(forge(fresh.wallet, fresh.channel))
    assert (answer.status, answer.problem) == (status, problem)
    assert api.payee.accounts == {}
    assert chain.balance(RESERVE) == 0
    assert (await fresh.send(fresh.wallet.open_payload(fresh.channel, PRICE))).status == 200


async def test_a_deposit_below_the_price_is_refused(fresh: Payer, chain: SimulatedChain) -> None:
    fresh.channel = fresh.wallet.plan(fresh.challenge, PRICE - 1)
    answer = await fresh.send(fresh.wallet.open_payload(fresh.channel, PRICE - 1))
    assert answer.problem == "verification-failed"
    assert chain.balance(RESERVE) == 0


async def test_an_opening_that_is_not_mined_serves_nothing(
    fresh: Payer, api: PaidApi, chain: SimulatedChain
) -> None:
    chain.mining = False
    answer = await fresh.send(fresh.wallet.open_payload(fresh.channel, PRICE))
    assert (answer.status, answer.problem, api.charged) == (500, "internal-payment-error", 0)


class TestChallenges:
    async def test_one_that_was_changed(self, payer: Payer) -> None:
        cheaper = b'{"amount":"1"}'
        for forged in (
            replace(payer.challenge, id="x" * 43),
            replace(payer.challenge, expires="2099-01-01T00:00:00Z"),
            replace(payer.challenge, request=b64url_encode(cheaper)),
            replace(payer.challenge, realm="elsewhere"),
            replace(payer.challenge, opaque=b64url_encode(b"{}")),
        ):
            payer.challenge = forged
            answer = await payer.pay(20_000)
            assert (answer.status, answer.problem) == (402, "invalid-challenge")

    async def test_one_of_another_price(self, payer: Payer, api: PaidApi) -> None:
        api.routes["/dear"] = Route(50_000, api.routes["/quote"].handler)
        answer = await payer.pay(60_000, path="/dear")
        assert answer.problem == "invalid-challenge"
        payer.challenge = challenge_of(answer.response)
        assert (await payer.pay(60_000, path="/dear")).status == 200

    async def test_one_that_was_forgotten(self, payer: Payer, api: PaidApi) -> None:
        api.payee.challenges.forget()
        answer = await payer.pay(20_000)
        assert answer.problem == "invalid-challenge"
        payer.challenge = challenge_of(answer.response)
        assert (await payer.pay(20_000)).status == 200

    async def test_expired(self, payer: Payer, api: PaidApi) -> None:
        clock = api.payee.challenges.clock
        api.payee.challenges.clock = lambda: clock() + 301
        assert (await payer.pay(20_000)).problem == "payment-expired"

    async def test_garbage(self, http: httpx.AsyncClient) -> None:
        answer = read(await http.get("/quote", headers={"Authorization": "Payment e30"}))
        assert (answer.status, answer.problem) == (402, "malformed-credential")
        answer = read(await http.get("/quote", headers={"Authorization": "Bearer e30"}))
        assert (answer.status, answer.problem) == (402, "payment-required")

    async def test_the_source_must_be_the_payer(self, payer: Payer) -> None:
        payload = payer.wallet.voucher_payload(payer.channel, 20_000)
        stranger = Wallet(payer.wallet.chain, bytes.fromhex("33" * 32))
        response = await payer.http.get("/quote", headers=stranger.credential(payer.challenge, payload))
        assert read(response).problem == "verification-failed"


async def test_a_requested_close_ends_the_service(payer: Payer, chain: SimulatedChain) -> None:
    chain.send(payer.wallet.request_close(payer.channel))
    answer = await payer.pay(20_000)
    assert (answer.status, answer.problem) == (410, "session/channel-finalized")
    close = await payer.send(payer.wallet.close_payload(payer.channel, 20_000), "POST")
    assert close.problem == "session/channel-finalized"
    chain.warp(901)
    chain.send(payer.wallet.withdraw(payer.channel))
    assert (await payer.pay(20_000)).problem == "session/channel-not-found"


async def test_close_twice(payer: Payer) -> None:
    payload = payer.wallet.close_payload(payer.channel, PRICE)
    assert (await payer.send(payload, "POST")).status == 204
    assert (await payer.send(payload, "POST")).problem == "session/channel-finalized"


async def test_options(chain: SimulatedChain, wallet: Wallet) -> None:
    options: dict[str, Any] = {
        "min_voucher_delta": 500,
        "header": "Payment-Authorization",
        "suggested_deposit": None,
        "key": bytes.fromhex("66" * 32),
    }
    async with (
        PaidApi(chain, price=100, **options) as api,
        httpx.AsyncClient(base_url=api.url, trust_env=False) as http,
    ):
        payer = Payer(http, wallet, challenge_of(await http.get("/quote")))
        terms = METHOD.terms(payer.challenge)
        assert (terms.min_delta, terms.suggested_deposit, terms.price) == (500, None, 100)
        assert (await payer.send(wallet.open_payload(payer.channel, 100))).status == 200
        assert (await payer.pay(599)).problem == "session/delta-too-small"
        assert (await payer.pay(600)).status == 200
        assert (await payer.pay(600)).status == 200


async def test_interception(api: PaidApi, http: httpx.AsyncClient) -> None:
    async def teapot(request: Request) -> Response | None:
        return Response(418) if request.headers.get("x-tea") else None

    api.intercept = teapot
    assert (await http.get("/free", headers={"x-tea": "1"})).status_code == 418
    assert (await http.get("/free")).status_code == 200


async def test_a_handler_that_fails_is_a_500(api: PaidApi, http: httpx.AsyncClient) -> None:
    async def broken(request: Request) -> Response:
        raise RuntimeError("broken")

    api.routes["/broken"] = Route(0, broken)
    assert (await http.get("/broken")).status_code == 500
    assert (await http.get("/free")).status_code == 200


async def test_a_large_body_with_expect(api: PaidApi, http: httpx.AsyncClient) -> None:
    response = await http.post("/quote", content=b"x" * 300_000, headers={"Expect": "100-continue"})
    assert response.status_code == 402


async def test_not_http(api: PaidApi) -> None:
    import asyncio

    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
