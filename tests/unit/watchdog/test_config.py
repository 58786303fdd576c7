"""What the config lets the watchdog do."""

from __future__ import annotations

from typing import Any

import pytest

from proxy_addon.config import ConfigError, parse
from proxy_addon.runtime import watchdog_rules
from proxy_addon.signer import Signer
from tests.unit.methods import samples

SIGNER = Signer(bytes.fromhex(samples.KEY[2:]))
RULE = {"max_price": "0.1", "max_per_day": "1", "max_deposit": "1"}
CHAIN = {
    "rpc": ["https://a.example/", "https://b.example/"],
    "tokens": [{"address": samples.TOKEN, "symbol": "USD"}],
}


def config(**watchdog: Any) -> dict[str, Any]:
    hosts = [
        {"host": "quick.example.com", "close_idle_s": 60, **RULE},
        {"host": "*.example.com", **RULE},
        {"host": "never.example.org", "close_idle_s": 0, **RULE},
    ]
    return {
        "policy": {"max_per_day": "1", "max_lifetime": "1", "hosts": hosts},
        "watchdog": watchdog,
        "chains": {"eip155:42431": CHAIN},
    }


def test_without_a_word_it_closes_what_was_idle_for_a_day_and_spends_nothing() -> None:
    rules = watchdog_rules(parse(config(), "test"), SIGNER)
    assert rules.close_idle_ms("https://api.example.com:443") == 86_400_000
    assert not rules.may_force
    assert rules.every_s == 60
    assert rules.max_fee(samples.channel()) == 50_000


@pytest.mark.parametrize(
    ("origin", "idle_s"),
    [
        ("https://quick.example.com:443", 60),
        ("https://other.example.com:443", 7200),
        ("https://never.example.org:443", 0),
        ("https://nobody.example.net:443", 7200),
    ],
)
def test_a_host_may_have_a_time_of_its_own(origin: str, idle_s: int) -> None:
    rules = watchdog_rules(parse(config(close_idle_s=7200), "test"), SIGNER)
    assert rules.close_idle_ms(origin) == idle_s * 1000


def test_force_needs_the_payers_own_key() -> None:
    settings = parse(config(force_close_after_s=60, max_fee="0.01"), "test")
    rules = watchdog_rules(settings, SIGNER)
    assert (rules.may_force, rules.force_after_ms, rules.max_fee(samples.channel())) == (True, 60_000, 10_000)
    vouchers_only = Signer.of_vouchers(bytes.fromhex(samples.OTHER_KEY[2:]), payer=samples.ADDRESS)
    assert not watchdog_rules(settings, vouchers_only).may_force


@pytest.mark.parametrize(
    ("watchdog", "says"),
    [
        ({"close_idle_s": -1}, r"watchdog\.close_idle_s: .*greater than or equal to 0"),
        ({"force_close_after_s": True}, r"watchdog\.force_close_after_s: .*valid integer"),
        ({"every_s": 0}, r"watchdog\.every_s: .*greater than or equal to 1"),
        ({"max_fee": 0.05}, r"watchdog\.max_fee: expected an amount in quotes"),
        ({"max_fee": "0.0000001"}, r"watchdog\.max_fee"),
        ({"speed": 1}, r"watchdog\.speed: Extra inputs"),
    ],
)
def test_what_is_wrong_is_named(watchdog: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(config(**watchdog), "test")


@pytest.mark.parametrize(
    ("chain", "says"),
    [
        ({"rpc_quorum": 3}, "rpc_quorum = 3 needs as many different endpoints in rpc, which names 2"),
        ({"rpc_quorum": 0}, r"rpc_quorum: .*greater than or equal to 1"),
        ({"rpc": ["https://a.example/"] * 2, "rpc_quorum": 2}, "which names 1"),
        ({"confirmations": -1}, r"confirmations: .*greater than or equal to 0"),
    ],
)
def test_endpoints_that_cannot_agree_are_refused(chain: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse({"chains": {"eip155:42431": {**CHAIN, **chain}}}, "test")
