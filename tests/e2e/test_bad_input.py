"""Whatever is wrong, nothing is signed, the client gets the upstream's own answer, and the log says what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import Got, curl
from tests.e2e.proxies import KEY_VARIABLE, Home, Proxy, rule, until
from tests.e2e.scripted import PRICE, Request, Upstream, always, answer, b64json, from_now
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def upstream(devnet: Devnet) -> Iterator[Upstream]:
    with Upstream(devnet) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(make_home: MakeHome, make_proxy: MakeProxy, upstream: Upstream) -> Iterator[Proxy]:
    policy = {"max_per_day": "5", "max_lifetime": "10", "hosts": [rule(upstream.authority)]}
    with make_proxy(make_home(policy=policy)) as running:
        yield running


def same(got: Got, direct: Got) -> None:
    assert got.head == direct.head
    assert got.body == direct.body


# ---------------------------------------------------------------------- challenges

Challenge = Callable[[Upstream], str]


def of(**changes: str | None) -> Challenge:
    return lambda upstream: upstream.challenge(None, **changes)


def asking(**changes: Any) -> Challenge:
    return lambda upstream: upstream.challenge(upstream.request_json(**changes))


BAD: dict[str, tuple[Challenge, str, str]] = {
    # what is wrong: the challenge; the reason in the ledger; words of the message
    "unclosed quote": (lambda upstream: upstream.challenge()[:-1], "protocol", "bad challenge"),
    "no parameters": (lambda upstream: "Payment", "protocol", "bad challenge"),
    "no id": (of(id=None), "protocol", "id"),
    "empty id": (of(id=""), "protocol", "id"),
    "id twice": (lambda upstream: upstream.challenge() + ', id="c2"', "protocol", "id"),
    "over 16 KB": (of(opaque="A" * 17_000), "protocol", "16384"),
    "request no base64": (of(request="!!!"), "protocol", "request"),
    "request no JSON": (of(request="e3"), "protocol", "request"),
    "request a list": (of(request=b64json([])), "protocol", "request"),
    "no method details": (asking(methodDetails=None), "protocol", "methodDetails"),
    "unknown method": (of(method="barter"), "protocol", "barter"),
    "unknown intent": (of(intent="subscription"), "protocol", "subscription"),
    "unknown protocol": (asking(details={"sessionProtocol": "v9"}), "protocol", "v9"),
    "credential in a cookie": (of(header="Cookie"), "protocol", "Cookie"),
    "of another body": (
        of(digest="sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:"),
        "protocol",
        "body",
    ),
    "expired": (of(expires="2020-01-01T00:00:00Z"), "expired", "clock"),
    "expires in a second": (lambda upstream: upstream.challenge(expires=from_now(1)), "expired", "clock"),
    "expires tomorrow": (
        lambda upstream: upstream.challenge(expires=from_now(86_400)),
        "expires-too-late",
        "one hour",
    ),
    "expires never heard of": (of(expires="soon"), "protocol", "expires"),
    "amount zero": (asking(amount="0"), "protocol", "amount"),
    "amount negative": (asking(amount="-1"), "protocol", "amount"),
    "amount a fraction": (asking(amount="0.5"), "protocol", "amount"),
    "amount a number": (asking(amount=10_000), "protocol", "amount"),
    "amount in words": (asking(amount="ten"), "protocol", "amount"),
    "amount missing": (asking(amount=None), "protocol", "amount"),
    "amount of 2^96": (asking(amount=str(2**96)), "protocol", "amount"),
    "amount of a thousand digits": (asking(amount="9" * 1000), "protocol", "amount"),
    "the largest amount": (asking(amount=str(2**96 - 1)), "over-max-price", "over max_price 0.05"),
    "chain in words": (asking(details={"chainId": "moderato"}), "protocol", "chainId"),
    "unsupported chain": (asking(details={"chainId": 1}), "chain-not-allowed", "eip155:1"),
    "payee nobody": (asking(recipient="0x" + "00" * 20), "protocol", "recipient"),
    "payee no address": (asking(recipient="me"), "protocol", "recipient"),
    "a step over the limit": (
        asking(details={"minVoucherDelta": str(2**90)}),
        "over-max-delta",
        "max_price",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_challenge_that_is_not_paid(upstream: Upstream, proxy: Proxy, what: str) -> None:
    challenge, reason, words = BAD[what]
    path = f"/{what.replace(' ', '-').replace('^', '')}"
    upstream.routes[path] = always(upstream.asks(challenge(upstream)))

    direct, got = curl(None, upstream.url + path), curl(proxy, upstream.url + path)

    same(got, direct)
    (line,) = until(lambda: proxy.home.ledger_of("decision", path=path), "a decision")
    assert (line["outcome"], line["reason"]) == ("refused", reason), line
    assert words in line["message"]
    assert upstream.authority in line["message"]
    assert line["message"] in proxy.logged(line["message"])
    assert len(line["message"]) < 600
    assert [one.credential for one in upstream.requests if one.path == path] == [None, None]
    assert proxy.home.ledger_of("sent", path=path) == []


def test_a_bad_challenge_does_not_hide_a_good_one(upstream: Upstream, proxy: Proxy) -> None:
    async def handler(request: Request, writer: Any) -> None:
        payload = await upstream.take(request)
        if payload is None:
            challenges = ", ".join([upstream.challenge(method="barter"), upstream.challenge()])
            writer.write(upstream.asks(f'Basic realm="x", {challenges}'))
        else:
            writer.write(answer(200, b"goods", upstream.receipt(payload)))

    upstream.routes["/choice"] = handler
    got = curl(proxy, f"{upstream.url}/choice")
    assert (got.status, got.body) == (200, b"goods")


# ---------------------------------------------------------------------- receipts

Receipt = Callable[[Upstream, dict[str, Any]], dict[str, str]]

RECEIPTS: dict[str, tuple[Receipt, str, str]] = {
    # what is wrong: the header; what becomes of the hold; what the log says
    "of another channel": (
        lambda upstream, payload: upstream.receipt(payload, channelId="0x" + "12" * 32),
        "undelivered",
        "sent a receipt for another channel than 0x",
    ),
    "no base64": (
        lambda upstream, payload: {"Payment-Receipt": "???"},
        "undelivered",
        "sent a receipt that cannot be read",
    ),
    "no success": (
        lambda upstream, payload: upstream.receipt(payload, status="failed"),
        "undelivered",
        "sent a receipt that cannot be read",
    ),
    "spent is absurd": (
        lambda upstream, payload: upstream.receipt(payload, spent=str(2**127)),
        "paid",
        "",
    ),
    "spent is a word": (
        lambda upstream, payload: upstream.receipt(payload, spent="much"),
        "undelivered",
        "sent a receipt that cannot be read",
    ),
    "missing": (lambda upstream, payload: {}, "undelivered", ""),
}


@pytest.mark.parametrize("what", RECEIPTS)
def test_a_receipt_that_proves_nothing(upstream: Upstream, proxy: Proxy, what: str) -> None:
    """The client has its answer; what cannot be known stays counted, and no word of the server's counts for more."""
    receipt, outcome, words = RECEIPTS[what]
    path = f"/receipt/{what.replace(' ', '-')}"
    upstream.routes[path] = upstream.sells(
        lambda request, payload: answer(200, b"goods", receipt(upstream, payload))
    )

    got = curl(proxy, upstream.url + path)

    assert (got.status, got.body) == (200, b"goods")
    assert got.payment_fields == []
    assert words in proxy.logged(words)
    (line,) = until(lambda: proxy.home.ledger_of("ended", path=path), "the end")
    assert (line["outcome"], line["amount"]) == (outcome, str(PRICE))
    channel = Books(upstream.net, proxy.home).decided()[0]
    vouchers = [int(one["payload"]["cumulativeAmount"]) for one in upstream.credentials]
    assert max(vouchers) == channel.authorised == channel.paid + channel.uncertain
    assert channel.authorised <= len(proxy.home.ledger_of("sent")) * PRICE


# ---------------------------------------------------------------------- chain and wallet


def test_no_rpc_and_then_no_money(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    home = make_home(funds=0)
    with make_proxy(home) as proxy:
        devnet.fault("eth_*", "drop", n=-1, path="/proxy")
        try:
            got = curl(proxy, f"{devnet.http}/req")
        finally:
            devnet.clear_faults()
        assert (got.status, got.header("www-authenticate") is not None) == (402, True)
        line = home.ledger_of("decision")[-1]
        assert line["reason"] == "chain-unavailable"
        assert devnet.rpc_url.partition("://")[2] in line["message"]

        got = curl(proxy, f"{devnet.http}/req")
        assert (got.status, got.header("www-authenticate") is not None) == (402, True)
        line = home.ledger_of("decision")[-1]
        assert line["reason"] == "unfunded"
        assert f"the wallet {home.account.address.lower()} has 0.00 pathUSD" in line["message"]
        assert "fund it, or lower policy.hosts[0].max_deposit" in line["message"]
        proxy.logged(line["message"])
        assert stats(devnet.seller, "/req")["withCredential"] == 0
        assert home.ledger_of("sent") == []
        assert Books(devnet, home).channels() == []

        # The way out is one.
        devnet.fund(home.account.address, 2_000_000)
        assert curl(proxy, f"{devnet.http}/req").status == 200


# ---------------------------------------------------------------------- what is wrong at the start


@dataclass(frozen=True)
class Start:
    """A way to start badly: what to do to the home, what to put in the environment, what the log then says."""

    says: tuple[str, ...]
    spoil: Callable[[Home], object] = lambda home: None
    environment: dict[str, str] = field(default_factory=dict)
    silent_on: str = "\0"  # what the log must not have
    version: str | None = None


def _replace(old: str, new: str, in_policy: str = "") -> Callable[[Home], object]:
    def spoil(home: Home) -> None:
        text = home.config.read_text()
        assert old in text
        text = text.replace(old, new, 1).replace('["policy"]', f'["policy"]\n{in_policy}')
        home.config.write_text(text)

    return spoil


PASSING: dict[str, Start] = {
    "no key": Start((KEY_VARIABLE, "is not set"), environment={KEY_VARIABLE: ""}),
    "a key that is none": Start(
        (KEY_VARIABLE, "64 hex digits"), environment={KEY_VARIABLE: "not-a-key"}, silent_on="not-a-key"
    ),
    "no such keystore": Start(
        ("/nowhere/key.json",),
        spoil=_replace(
            f'"private_key_env" = "{KEY_VARIABLE}"',
            'keystore = "/nowhere/key.json"\npassword_env = "E2E_WALLET_KEY"',
        ),
    ),
    "a store that others can read": Start(("chmod 700",), spoil=lambda home: home.store.mkdir(mode=0o755)),
    "a mitmproxy that nobody has tried": Start(
        ("mitmproxy 99.1.0 is not one that bursar was tested on", "install a tested version"),
        version="99.1.0",
    ),
}

ENDING: dict[str, Start] = {
    "no TOML": Start(("is not valid TOML", "line 1"), spoil=lambda home: home.config.write_text("[[[")),
    "no file": Start(("run `bursar init`",), spoil=lambda home: home.config.unlink()),
    "settings that are none": Start(
        (
            "2 wrong setting(s)",
            "policy.max_per_dya",
            "policy.hosts[0].max_price",
            'in quotes, such as "0.10"',
        ),
        spoil=_replace('"max_price" = "0.05"', '"max_price" = 0.05', 'max_per_dya = "1"'),
    ),
}


def _launch(make_home: MakeHome, make_proxy: MakeProxy, net: Devnet, start: Start) -> Proxy:
    home = make_home()
    start.spoil(home)
    proxy = make_proxy(home)
    if start.version is not None:
        wrapper = (
            f"import mitmproxy.version as v; v.VERSION = {start.version!r};"
            " from mitmproxy.tools.main import mitmdump; mitmdump()"
        )
        proxy.command = [sys.executable, "-c", wrapper, *proxy.command[1:]]
    proxy.environment = start.environment
    return proxy.launch()


@pytest.fixture(scope="module")
def badly_started(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy
) -> dict[str, tuple[Start, Proxy]]:
    """All at the same time: starting is what takes long."""
    return {
        name: (start, _launch(make_home, make_proxy, devnet, start))
        for name, start in (PASSING | ENDING).items()
    }


@pytest.mark.parametrize("name", PASSING)
def test_what_keeps_us_from_paying_does_not_keep_the_traffic(
    upstream: Upstream, badly_started: dict[str, tuple[Start, Proxy]], name: str
) -> None:
    start, proxy = badly_started[name]
    upstream.routes["/paid"] = always(upstream.asks())
    with proxy:
        before = len(upstream.requests)
        direct, got = curl(None, f"{upstream.url}/paid"), curl(proxy, f"{upstream.url}/paid")
        same(got, direct)
        assert [one.credential for one in upstream.requests[before:]] == [None, None]
        for text in (*start.says, "All traffic passes, nothing is paid"):
            assert text in proxy.log
        assert start.silent_on not in proxy.log
    assert proxy.home.ledger == []


@pytest.mark.parametrize("name", ENDING)
def test_a_config_that_makes_no_sense_starts_nothing(
    badly_started: dict[str, tuple[Start, Proxy]], name: str
) -> None:
    start, proxy = badly_started[name]
    assert proxy.process is not None
    assert proxy.process.wait(30) != 0
    assert str(proxy.home.config) in proxy.log
    for text in start.says:
        assert text in proxy.log
    assert "Traceback" not in proxy.log
