"""Who may be paid, and how much: every rule as a table, every refusal with its exact words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.core import policy as policy_module
from proxy_addon.core.policy import (
    Caps,
    ChainRule,
    ClientCap,
    ClientRule,
    HostRule,
    Origin,
    Refusal,
    SpendPolicy,
    Trip,
    is_loopback,
)
from proxy_addon.core.terms import Terms
from store import budgets
from store.amounts import Token
from store.records import CounterMove

CHAIN, OTHER_CHAIN = "eip155:4217", "eip155:1"
USD = Token("0x" + "1" * 40, "USD", 6)
EUR = Token("0x" + "2" * 40, "EUR", 2)
PAYEE, ESCROW, MINE = "0x" + "a" * 40, "0x" + "e" * 40, "0x" + "f" * 40
SITE = Origin("https", "api.example.com", 443)
ESCROWS = {CHAIN: ESCROW}


def rule(pattern: str = "api.example.com", **fields: Any) -> HostRule:
    base = HostRule(
        name="policy.hosts[0]",
        pattern=pattern,
        max_price="0.10",
        max_per_day="1.00",
        max_deposit="2.00",
        deposit="1.50",
        max_opens_per_day=3,
        max_deposits_per_day="5",
        max_channels_per_scope=4,
        authorise_ahead="0.05",
    )
    return replace(base, **fields)


def terms(**fields: Any) -> Terms:
    base = Terms(
        family="tempo-session",
        version="v2",
        chain=CHAIN,
        escrow=ESCROW,
        token=USD.address,
        payee=PAYEE,
        discriminator="",
        price=10_000,
        amount_limit=2**96 - 1,
    )
    return replace(base, **fields)


def policy(*rules: HostRule, chains: Any = None, **fields: Any) -> SpendPolicy:
    known = {CHAIN: ChainRule(CHAIN, {USD.address: USD, EUR.address: EUR})}
    return SpendPolicy(
        hosts=rules or (rule(),),
        chains=known if chains is None else chains,
        max_per_day=fields.pop("max_per_day", "5.00"),
        max_lifetime=fields.pop("max_lifetime", "100"),
        **fields,
    )


# -- which rule is whose


@pytest.mark.parametrize(
    ("pattern", "origin", "matches"),
    [
        ("api.example.com", Origin("https", "api.example.com", 443), True),
        ("api.example.com", Origin("http", "api.example.com", 80), True),
        ("api.example.com", Origin("https", "api.example.com", 8443), False),
        ("api.example.com", Origin("http", "api.example.com", 443), False),
        ("api.example.com", Origin("wss", "api.example.com", 443), False),
        ("api.example.com", Origin("https", "example.com", 443), False),
        ("api.example.com", Origin("https", "x.api.example.com", 443), False),
        ("api.example.com", Origin("https", "api.example.com.", 443), False),
        ("api.example.com", Origin("https", "api-example.com", 443), False),
        ("api.example.com:8443", Origin("https", "api.example.com", 8443), True),
        ("api.example.com:8443", Origin("http", "api.example.com", 8443), True),
        ("api.example.com:8443", Origin("https", "api.example.com", 443), False),
        ("api.example.com:443", Origin("https", "api.example.com", 443), True),
        ("*.example.com", Origin("https", "api.example.com", 443), True),
        ("*.example.com", Origin("https", "a.b.example.com", 443), True),
        ("*.example.com", Origin("https", "example.com", 443), False),
        ("*.example.com", Origin("https", ".example.com", 443), False),
        ("*.example.com", Origin("https", "badexample.com", 443), False),
        ("*.example.com", Origin("https", "example.com.evil.net", 443), False),
        ("*.example.com", Origin("https", "api.example.com", 8443), False),
        ("*.example.com:8443", Origin("https", "api.example.com", 8443), True),
        ("*.example.com:8443", Origin("https", "api.example.com", 443), False),
        ("*", Origin("https", "api.example.com", 443), False),
        ("localhost", Origin("http", "localhost", 4000), True),
        ("localhost", Origin("https", "localhost", 443), True),
        ("localhost:4000", Origin("http", "localhost", 4000), True),
        ("localhost:4000", Origin("http", "localhost", 4001), False),
        ("127.0.0.1", Origin("http", "127.0.0.1", 5555), True),
        ("127.0.0.1", Origin("http", "127.0.0.2", 5555), False),
        ("127.0.0.1:80", Origin("http", "127.0.0.1", 81), False),
        ("10.0.0.1", Origin("http", "10.0.0.1", 8080), False),
        ("10.0.0.1:8080", Origin("http", "10.0.0.1", 8080), True),
        ("[::1]", Origin("http", "::1", 5555), True),
        ("[::1]:80", Origin("http", "::1", 80), True),
        ("[::1]:80", Origin("http", "::1", 5555), False),
        ("[2001:db8::1]", Origin("https", "2001:db8::1", 443), True),
        ("[2001:db8::1]", Origin("https", "2001:db8::1", 8443), False),
        ("[2001:db8::1]:8443", Origin("https", "2001:db8::1", 8443), True),
        ("[2001:db8::1]:8443", Origin("https", "2001:db8::2", 8443), False),
        ("2001:db8::8443", Origin("https", "2001:db8::8443", 443), True),
    ],
)
def test_which_origins_a_pattern_is_for(pattern: str, origin: Origin, matches: bool) -> None:
    assert rule(pattern).matches(origin) is matches


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.255.254", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("localhost.example.com", False),
        ("127.0.0.1.example.com", False),
        ("[::1]", False),
        ("2130706433", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    assert Origin("http", host, 80).loopback is loopback


@pytest.mark.parametrize(
    ("origin", "text", "shown"),
    [
        (Origin("https", "a.example", 443), "https://a.example:443", "a.example"),
        (Origin("https", "a.example", 8443), "https://a.example:8443", "a.example:8443"),
        (Origin("http", "a.example", 80), "http://a.example:80", "a.example"),
        (Origin("http", "::1", 80), "http://[::1]:80", "[::1]"),
        (Origin("http", "::1", 8080), "http://[::1]:8080", "[::1]:8080"),
        (Origin("wss", "a.example", 443), "wss://a.example:443", "a.example:443"),
    ],
)
def test_how_an_origin_is_written(origin: Origin, text: str, shown: str) -> None:
    assert str(origin) == text
    assert origin.shown == shown


def test_the_first_rule_that_matches_counts_and_is_remembered() -> None:
    wide, exact = rule("*.example.com", name="policy.hosts[0]"), rule(name="policy.hosts[1]")
    both = policy(wide, exact)
    assert both.rule_for(SITE) is wide
    assert policy(exact, wide).rule_for(SITE) is exact
    assert both.rule_for(SITE) is wide
    stranger = Origin("https", "other.net", 443)
    assert both.rule_for(stranger) is None
    assert both.rule_for(stranger) is None
    assert policy(wide, exact) == both  # what it remembers is no part of it


def test_walking_through_names_fills_no_memory() -> None:
    one = policy(rule("*.example.com"))
    for number in range(25_000):
        one.rule_for(Origin("https", f"n{number}.example.com", 443))
    assert len(one._rules) <= 10_002
    assert one.rule_for(SITE) is one.hosts[0]


# -- refusals: the thing, the limit, the way out

ADDRESS = {
    "escrow": f"api.example.com names the escrow {MINE}; only {ESCROW} is known on {CHAIN}"
    f' (others: [chains."{CHAIN}"].extra_escrows)',
    "token": f"api.example.com wants token {MINE}, not in",
}


@pytest.mark.parametrize(
    ("rules", "origin", "asked", "reason", "message"),
    [
        (
            {},
            Origin("https", "evil.net", 8443),
            {},
            "host-not-allowed",
            "evil.net:8443 is in no [[policy.hosts]] table; add one to pay it",
        ),
        (
            {},
            Origin("http", "api.example.com", 80),
            {},
            "insecure",
            "api.example.com asks for money over plain http; use https, or set policy.hosts[0].allow_http = true",
        ),
        (
            {},
            SITE,
            {"chain": OTHER_CHAIN},
            "chain-not-allowed",
            'api.example.com wants to be paid on eip155:1, not in [chains."eip155:1"]',
        ),
        (
            {"chains": frozenset({OTHER_CHAIN})},
            SITE,
            {},
            "chain-not-allowed",
            "api.example.com wants to be paid on eip155:4217, not in policy.hosts[0].chains",
        ),
        (
            {},
            SITE,
            {"token": MINE},
            "token-not-allowed",
            f'{ADDRESS["token"]} [[chains."eip155:4217".tokens]]',
        ),
        (
            {"tokens": frozenset({EUR.address})},
            SITE,
            {},
            "token-not-allowed",
            f"api.example.com wants token {USD.address}, not in policy.hosts[0].tokens",
        ),
        ({}, SITE, {"escrow": MINE}, "escrow-not-allowed", ADDRESS["escrow"]),
        (
            {"payees": frozenset({MINE})},
            SITE,
            {},
            "payee-not-allowed",
            f"api.example.com names the payee {PAYEE}, not in policy.hosts[0].payees",
        ),
        (
            {},
            SITE,
            {"price": 100_001},
            "over-max-price",
            "api.example.com asks 0.100001 USD, over max_price 0.10 USD (policy.hosts[0]); raise it to pay this",
        ),
        (
            {},
            SITE,
            {"min_delta": 25_001},
            "over-max-delta",
            "api.example.com takes vouchers in steps of 0.025001 USD, over its price and over a quarter of max_price"
            " 0.10 USD (policy.hosts[0]); raise it to pay this",
        ),
        (
            {"max_deposit": "0.009999"},
            SITE,
            {},
            "over-max-deposit",
            "api.example.com asks 0.01 USD, over max_deposit 0.009999 USD (policy.hosts[0])",
        ),
        (
            {"max_price": "0"},
            SITE,
            {"price": 0},
            "over-max-delta",
            "api.example.com takes vouchers in steps of 0.000001 USD, over its price and over a quarter of max_price"
            " 0.00 USD (policy.hosts[0]); raise it to pay this",
        ),
    ],
)
def test_every_refusal_and_its_words(
    rules: dict[str, Any], origin: Origin, asked: dict[str, Any], reason: str, message: str
) -> None:
    assert policy(rule(**rules)).judge(origin, terms(**asked), ESCROWS) == Refusal(reason, message)


@pytest.mark.parametrize(
    ("rules", "pinned", "refused"),
    [
        ({"pin_payee": True}, None, False),
        ({"pin_payee": True}, PAYEE, False),
        ({"pin_payee": True}, MINE, True),
        ({"pin_payee": False}, MINE, False),
        ({"pin_payee": True, "payees": frozenset({PAYEE, MINE})}, MINE, True),
    ],
)
def test_a_pinned_payee(rules: dict[str, Any], pinned: str | None, refused: bool) -> None:
    verdict = policy(rule(**rules)).judge(SITE, terms(), ESCROWS, pinned)
    assert isinstance(verdict, Refusal) is refused
    if isinstance(verdict, Refusal):
        assert verdict == Refusal(
            "payee-changed",
            "api.example.com names the payee 0xaaaa…aaaa, but was first paid as 0xffff…ffff"
            " (policy.hosts[0].pin_payee);"
            " if it has moved for good: bursar pins forget api.example.com",
        )
    else:
        assert verdict.pin_payee is rules["pin_payee"]


@pytest.mark.parametrize(
    ("fields", "undelivered"),
    [
        ({}, 500_000),  # five times max_price: no single request opens a breaker
        ({"max_per_day": "10"}, 2_500_000),
        ({"max_per_day": "10", "breaker_failures": 30}, 3_000_000),
        ({"breaker_max_undelivered": "0.000001"}, 1),
        ({"breaker_max_undelivered": "0"}, 0),
    ],
)
def test_what_may_be_undelivered(fields: dict[str, Any], undelivered: int) -> None:
    found = caps(**fields).trip
    assert found.undelivered == undelivered
    assert found.failures == fields.get("breaker_failures", 5)
    assert found.retry_after_ms == 60_000


@pytest.mark.parametrize(("total", "units"), [(None, 100_000_000), ("3", 3_000_000), ("0", 0)])
def test_what_may_be_locked(total: str | None, units: int) -> None:
    found = policy(max_deposits_total=total).judge(SITE, terms(), ESCROWS)
    assert isinstance(found, Caps)
    assert found.escrow_total == units


def test_what_a_client_may_spend() -> None:
    alice = ClientRule("policy.clients[0].max_per_day", "1.00")
    other = ClientRule("policy.max_per_day_per_client", "0.25")
    assert policy().client_cap("alice", USD) is None
    named = policy(clients={"alice": alice})
    assert named.client_cap("alice", USD) == ClientCap("alice", USD.address, 1_000_000, alice.name)
    assert named.client_cap("alice", EUR) == ClientCap("alice", EUR.address, 100, alice.name)
    assert named.client_cap("bob", USD) is None
    both = policy(clients={"alice": alice}, other_clients=other)
    assert both.client_cap("bob", USD) == ClientCap("bob", USD.address, 250_000, other.name)
    assert both.client_cap("bob", USD) is both.client_cap("bob", USD)
    assert both.client_cap("Alice", USD) == ClientCap("Alice", USD.address, 250_000, other.name)


def test_walking_through_clients_fills_no_memory() -> None:
    one = policy(other_clients=ClientRule("x", "1"))
    for number in range(25_000):
        one.client_cap(f"c{number}", USD)
    assert len(one._client_caps) <= 10_001


def test_no_hosts_pay_nobody() -> None:
    nobody = SpendPolicy(hosts=(), chains={}, max_per_day="0", max_lifetime="0")
    verdict = nobody.judge(SITE, terms(), ESCROWS)
    assert isinstance(verdict, Refusal)
    assert verdict.reason == "host-not-allowed"


def test_no_canonical_escrow_is_no_escrow() -> None:
    for named in (ESCROW, "", "None"):
        verdict = policy().judge(SITE, terms(escrow=named), {})
        assert isinstance(verdict, Refusal)
        assert verdict.reason == "escrow-not-allowed"
        assert "only none is known" in verdict.message


@pytest.mark.parametrize(
    ("rules", "origin", "asked", "escrows"),
    [
        ({}, SITE, {}, ESCROWS),
        ({}, SITE, {}, {"*": ESCROW}),
        ({}, SITE, {}, {"*": MINE, CHAIN: ESCROW}),
        ({}, SITE, {"escrow": MINE}, ESCROWS),  # by the chain's extra_escrows
        ({"allow_http": True}, Origin("http", "api.example.com", 80), {}, ESCROWS),
        ({"pattern": "127.0.0.1"}, Origin("http", "127.0.0.1", 4000), {}, ESCROWS),
        ({"payees": frozenset({PAYEE, MINE})}, SITE, {}, ESCROWS),
        ({"tokens": frozenset({USD.address})}, SITE, {}, ESCROWS),
        ({"chains": frozenset({CHAIN})}, SITE, {}, ESCROWS),
        ({}, SITE, {"price": 100_000}, ESCROWS),  # to the unit
        ({}, SITE, {"min_delta": 25_000}, ESCROWS),
        ({}, SITE, {"price": 60_000, "min_delta": 60_000}, ESCROWS),
        ({"max_deposit": "0.01"}, SITE, {}, ESCROWS),
        ({}, SITE, {"price": 0}, ESCROWS),
    ],
)
def test_what_is_allowed(rules: dict[str, Any], origin: Origin, asked: dict[str, Any], escrows: Any) -> None:
    chains = {CHAIN: ChainRule(CHAIN, {USD.address: USD}, frozenset({MINE}))}
    assert isinstance(policy(rule(**rules), chains=chains).judge(origin, terms(**asked), escrows), Caps)


# -- caps


def caps(**fields: Any) -> Caps:
    found = policy(rule(**fields)).judge(SITE, terms(), ESCROWS)
    assert isinstance(found, Caps)
    return found


def test_caps_are_base_units_of_the_token_that_is_asked_for() -> None:
    one = policy().judge(SITE, terms(), ESCROWS)
    assert one == Caps(
        token=USD,
        host="api.example.com:443",
        rule="policy.hosts[0]",
        per_request=100_000,
        host_day=1_000_000,
        total_day=5_000_000,
        lifetime=100_000_000,
        max_deposit=2_000_000,
        deposit=1_500_000,
        opens_per_day=3,
        deposits_per_day=5_000_000,
        channels_per_scope=4,
        authorise_ahead=50_000,
        reserve=10_000,  # a hundredth of the day
        escrow_total=100_000_000,
        trip=Trip(failures=5, undelivered=500_000, retry_after_ms=60_000),
    )
    two = policy().judge(SITE, terms(token=EUR.address, price=1), ESCROWS)
    assert isinstance(two, Caps)
    assert (two.per_request, two.host_day, two.lifetime, two.reserve) == (10, 100, 10_000, 1)
    three = policy(rule(reserve="0.03")).judge(SITE, terms(), ESCROWS)
    assert isinstance(three, Caps)
    assert three.reserve == 30_000


def test_an_amount_finer_than_the_token_is_refused_and_named() -> None:
    with pytest.raises(ValueError, match=r"policy\.hosts\[0\] is '0\.001': this token has only 2 decimals"):
        policy(rule(authorise_ahead="0.001")).judge(SITE, terms(token=EUR.address, price=1), ESCROWS)


def test_the_budget_host_is_that_of_the_scope() -> None:
    found = policy(rule("[::1]:8080")).judge(Origin("http", "::1", 8080), terms(), ESCROWS)
    assert isinstance(found, Caps)
    assert found.host == "[::1]:8080"


def test_a_raise_moves_three_counters_each_with_its_limit() -> None:
    token, host = USD.address, "api.example.com:443"
    moves = caps().raise_moves(7, "2026-01-31")
    assert moves == (
        CounterMove(f"host-day/{token}/2026-01-31/{host}", 7, 1_000_000, "policy.hosts[0].max_per_day"),
        CounterMove(f"total-day/{token}/2026-01-31", 7, 5_000_000, "policy.max_per_day"),
        CounterMove(f"lifetime/{token}", 7, 100_000_000, "policy.max_lifetime"),
    )
    assert all(budgets.is_raise(move.key) for move in moves)
    assert caps().open_moves(500, 7, "2026-01-31") == (
        *moves,
        CounterMove(f"opens/2026-01-31/{host}", 1, 3, "policy.hosts[0].max_opens_per_day"),
        CounterMove(
            f"deposits/{token}/2026-01-31/{host}", 500, 5_000_000, "policy.hosts[0].max_deposits_per_day"
        ),
        CounterMove(f"escrow/{token}", 500, 100_000_000, "policy.max_deposits_total"),
    )


def test_reversed_moves_give_back_on_the_same_counters() -> None:
    moves = caps().open_moves(500, 7, "2026-01-31")
    back = budgets.reversed_moves(moves)
    assert [(one.key, one.amount, one.limit) for one in back] == [
        (one.key, -one.amount, None) for one in moves
    ]
    assert not any(budgets.is_raise(one.key) for one in back[3:])


def test_a_refund_moves_the_lifetime_and_says_so() -> None:
    lifetime, refunded = budgets.refund_moves(USD.address, 9)
    assert (lifetime.key, lifetime.amount) == (f"lifetime/{USD.address}", -9)
    assert (refunded.key, refunded.amount) == (f"refunded/{USD.address}", 9)
    assert not budgets.is_raise(refunded.key)


@pytest.mark.parametrize(
    ("asked", "deposit"),
    [
        ({}, 1_500_000),
        ({"suggested_deposit": 1_000_000}, 1_000_000),
        ({"suggested_deposit": 10**30}, 2_000_000),
        ({"suggested_deposit": 0}, 10_000),
        ({"suggested_deposit": 0, "price": 0}, 1),
        ({"suggested_deposit": 5, "min_delta": 20_000}, 20_000),
        ({"amount_limit": 1_200_000}, 1_200_000),
        ({"suggested_deposit": 1_900_000, "amount_limit": 1_200_000}, 1_200_000),
    ],
)
def test_what_is_deposited(asked: dict[str, Any], deposit: int) -> None:
    assert caps().deposit_for(terms(**asked)) == deposit


def test_our_own_size_is_never_over_our_own_limit() -> None:
    assert caps(deposit="3").deposit_for(terms()) == 2_000_000


def test_the_policy_reads_no_clock_and_no_counter() -> None:
    names = set(vars(policy_module))
    assert not names & {"time", "datetime", "asyncio", "os", "random", "secrets", "socket"}


@pytest.mark.parametrize(
    "origin",
    [
        SITE,
        Origin("http", "127.0.0.1", 8080),
        Origin("https", "::1", 443),
        Origin("https", "2001:db8::2", 8443),
    ],
)
def test_an_origin_is_read_back_from_its_text(origin: Origin) -> None:
    assert Origin.parse(str(origin)) == origin


@pytest.mark.parametrize(
    "text", ["", "https://api.example.com", "https://api.example.com:", "api.example.com:x"]
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        Origin.parse(text)


@pytest.mark.parametrize(
    ("host", "matches"),
    [("a.example.com", True), ("ab.example.com", True), (".example.com", False), ("example.com", False)],
)
def test_the_shortest_name_under_a_wildcard(host: str, matches: bool) -> None:
    assert rule("*.example.com").matches(Origin("https", host, 443)) is matches


def test_what_was_worked_out_is_remembered_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same object for a client that comes again; a client that walks through names fills no memory."""
    monkeypatch.setattr(policy_module, "_MOST_REMEMBERED", 10)
    limits = policy(other_clients=ClientRule(name="policy.other_clients", max_per_day="1.00"))
    first = limits.client_cap("first", USD)
    assert first is not None
    assert limits.client_cap("second", USD) is not None
    assert limits.client_cap("first", USD) is first
    for number in range(100):
        limits.client_cap(f"client{number}", USD)
        limits.rule_for(replace(SITE, host=f"h{number}.example.com"))
        assert len(limits._client_caps) <= 11
        assert len(limits._rules) <= 11
    assert limits.client_cap("first", USD) == first
