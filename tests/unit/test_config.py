"""The config: the example is whole and loads, and whatever is wrong is named with its key."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from proxy_addon import config_tables
from proxy_addon.config import ConfigError, Settings, load, parse
from proxy_addon.core.policy import ClientRule, Origin, Rates
from store.amounts import Token

EXAMPLE = Path(__file__).parents[2] / "config.example.toml"
ADDRESS = "0x" + "20c0" + "0" * 36


def example() -> dict[str, Any]:
    return tomllib.loads(EXAMPLE.read_text())


def changed(path: str, value: object) -> dict[str, Any]:
    """The example with one value set: ``policy.hosts.0.max_price``."""
    data = copy.deepcopy(example())
    *parents, last = path.split("/")
    at: Any = data
    for name in parents:
        at = at[int(name)] if isinstance(at, list) else at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return data


# -- the example


def test_the_example_loads_as_it_is() -> None:
    settings = load(EXAMPLE)
    assert settings.mode == "pay"
    assert settings.policy.hosts[0].host == "api.example.com"
    assert settings.store.ledger == Path("~/.bursar/store/ledger").expanduser()
    assert settings.spend_policy().rule_for(Origin("https", "api.example.com", 443)) is not None


@pytest.mark.parametrize(("mode", "taken"), [(0o600, True), (0o664, True), (0o602, False), (0o666, False)])
def test_a_config_that_everybody_may_write_is_refused(mode: int, taken: bool, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(EXAMPLE.read_text())
    path.chmod(mode)
    if taken:
        assert load(path).mode == "pay"
        return
    with pytest.raises(
        ConfigError, match=rf"can be changed by every user \(mode {mode:o}\): chmod 600 {path}$"
    ):
        load(path)


def _keys(model: type[BaseModel]) -> Iterator[str]:
    yield from model.model_fields


def _tables() -> list[type[BaseModel]]:
    found = [one for one in vars(config_tables).values() if isinstance(one, type)]
    return [Settings, *(one for one in found if issubclass(one, config_tables.Table))]


@pytest.mark.parametrize("table", _tables(), ids=lambda one: one.__name__)
def test_every_key_is_in_the_example_with_a_comment(table: type[BaseModel]) -> None:
    text = EXAMPLE.read_text()
    for key in _keys(table):
        assignment = re.search(rf"(?m)^(?:# )?{key} = ", text)
        heading = re.search(rf"(?m)^(?:# )?\[+(?:\S+\.)?{key}(?:\.\S+)?\]+$", text)
        assert assignment or heading, f"{table.__name__}.{key} is not in config.example.toml"


def test_every_assignment_of_the_example_has_a_comment_above() -> None:
    lines = EXAMPLE.read_text().splitlines()
    explained = False
    for line in lines:
        if line.startswith("#"):
            explained = True
        elif not line:
            explained = False
        elif line.startswith(("rpc", "payees", "tokens", "chains", "symbol", "decimals", "address", "[")):
            continue  # explained by the comment over their group
        else:
            assert explained or line.startswith("listen_port"), line


def test_the_defaults_pay_nobody() -> None:
    settings = parse({}, "nothing")
    assert settings.policy.hosts == ()
    assert (settings.policy.max_per_day, settings.policy.max_lifetime) == ("0", "0")
    assert settings.proxy.listen_host == "127.0.0.1"
    assert settings.proxy.reason_header is False
    assert not settings.chains


# -- files


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(
        ConfigError, match=rf"^no config at {missing}; run `bursar init`, or name another file$"
    ):
        load(missing)
    with pytest.raises(ConfigError, match=r"cannot read the config .*Is a directory"):
        load(tmp_path)
    bad = tmp_path / "bad.toml"
    bad.write_text("mode = pay")
    with pytest.raises(
        ConfigError, match=r"bad\.toml is not valid TOML: Invalid value \(at line 1, column 8\)"
    ):
        load(bad)
    bad.write_bytes(b'mode = "\xff"')
    with pytest.raises(ConfigError, match=r"cannot read the config .*utf-8"):
        load(bad)
    bad.write_text('mode = "pay"\nmode = "pay"\n')
    with pytest.raises(ConfigError, match="not valid TOML: Cannot overwrite a value"):
        load(bad)


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.toml").write_text('[store]\ndirectory = "~/here"\n[wallet]\nkeystore = "~/key.json"\n')
    settings = load(Path("~/c.toml"))
    assert settings.store.directory == tmp_path / "here"
    assert settings.wallet.keystore == tmp_path / "key.json"


# -- wrong values, each named with its key

CHAIN = "chains/eip155:4217"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("mode", "free", r"mode: Input should be 'pay' or 'shadow'"),
        ("surprise", 1, r"surprise: Extra inputs are not permitted$"),
        ("wallets", {}, r"wallets: Extra inputs are not permitted; did you mean wallet\?$"),
        ("proxy/listen_prt", 1, r"proxy\.listen_prt: Extra inputs.*; did you mean listen_port\?$"),
        ("proxy/max_price", "1", r"proxy\.max_price: Extra inputs.*; it belongs in \[policy\.hosts\]$"),
        (f"{CHAIN}/rcp", "1", r"chains\.eip155:4217\.rcp: Extra inputs.*; did you mean rpc\?$"),
        ("chains/tempo", {"rpc": ["http://a"]}, r'chains\.tempo: expected a chain such as "eip155:4217"$'),
        ("policy/hosts/0/payees", ADDRESS, r'policy\.hosts\[0\]\.payees: expected a list, such as \["…"\]$'),
        ("policy/hosts", {"host": "a"}, r"policy\.hosts: expected \[\[policy\.hosts\]\]$"),
        ("wallet/password_env", "two words", r"wallet\.password_env: expected the name of an environment"),
        ("wallet", 3, r"wallet: Input should be a valid dictionary"),
        ("wallet/colour", "red", r"wallet\.colour: Extra inputs"),
        ("wallet/private_key_env", "X", r"wallet: names both keystore and private_key_env; keep one"),
        ("wallet/keystore", 3, r"wallet\.keystore: "),
        ("wallet/password_env", 3, r"wallet\.password_env: Input should be a valid string"),
        ("wallet/password_file", 3, r"wallet\.password_file: "),
        ("store/backend", 3, r"store\.backend: Input should be a valid string"),
        ("store/directory", [], r"store\.directory: "),
        ("proxy/listen_host", 1, r"proxy\.listen_host: Input should be a valid string"),
        ("proxy/listen_port", 65536, r"proxy\.listen_port: Input should be less than or equal to 65535"),
        ("proxy/listen_port", -1, r"proxy\.listen_port: Input should be greater than or equal to 0"),
        ("proxy/listen_port", "8402", r"proxy\.listen_port: Input should be a valid integer"),
        ("proxy/listen_port", True, r"proxy\.listen_port: Input should be a valid integer"),
        ("proxy/reason_header", "no", r"proxy\.reason_header: Input should be a valid boolean"),
        ("proxy/reason_header", 1, r"proxy\.reason_header: Input should be a valid boolean"),
        ("proxy/max_body_mib", -1, r"proxy\.max_body_mib: "),
        ("proxy/max_body_mib", 2.0, r"proxy\.max_body_mib: Input should be a valid integer"),
        (
            "policy/max_per_day",
            5,
            r'policy\.max_per_day: expected an amount in quotes, such as "0\.10", not 5',
        ),
        ("policy/max_per_day", 0.1, r"policy\.max_per_day: expected an amount in quotes"),
        ("policy/max_lifetime", "-1", r"policy\.max_lifetime: .*'-1': expected an amount such as '0\.10'"),
        ("policy/max_lifetime", "1e9", r"policy\.max_lifetime: .*no sign, no exponent"),
        ("policy/hosts", {"host": "x"}, r"policy\.hosts: "),
        ("policy/hosts/0/host", "", r'policy\.hosts\[0\]\.host: expected a host such as "api\.example\.com"'),
        ("policy/hosts/0/host", "https://a.example", r"policy\.hosts\[0\]\.host: expected a host"),
        ("policy/hosts/0/host", "a.example/path", r"policy\.hosts\[0\]\.host: expected a host"),
        ("policy/hosts/0/host", "*", r"policy\.hosts\[0\]\.host: expected a host"),
        ("policy/hosts/0/host", "a.*.example", r"policy\.hosts\[0\]\.host: expected a host"),
        ("policy/hosts/0/host", "a.example\n", r"policy\.hosts\[0\]\.host: expected a host"),
        ("policy/hosts/0/host", "bücher.example", r"policy\.hosts\[0\]\.host: expected a host"),
        ("policy/hosts/0/host", "::1", r"policy\.hosts\[0\]\.host: expected a host"),
        ("policy/hosts/0/host", "a.example:0", r"policy\.hosts\[0\]\.host: port 0 does not exist"),
        ("policy/hosts/0/host", "a.example:65536", r"port 65536 does not exist; expected 1 to 65535"),
        ("policy/hosts/0/host", None, r"policy\.hosts\[0\]\.host: Field required"),
        ("policy/hosts/0/max_price", None, r"policy\.hosts\[0\]\.max_price: Field required"),
        ("policy/hosts/0/max_price", "ten", r"policy\.hosts\[0\]\.max_price: .*'ten'"),
        ("policy/hosts/0/max_price", "", r"policy\.hosts\[0\]\.max_price: "),
        ("policy/hosts/0/max_price", "0,10", r"policy\.hosts\[0\]\.max_price: "),
        (
            "policy/hosts/0/max_price",
            "0.0000001",
            r"policy\.hosts\[0\]\.max_price is '0\.0000001'.*only 6 decimals",
        ),
        ("policy/hosts/0/max_per_day", "0.0000001", r"policy\.hosts\[0\]\.max_per_day is .*only 6 decimals"),
        ("policy/hosts/0/max_deposit", 2, r"policy\.hosts\[0\]\.max_deposit: expected an amount in quotes"),
        ("policy/hosts/0/deposit", "0.0000001", r"policy\.hosts\[0\]\.deposit is .*only 6 decimals"),
        ("policy/hosts/0/max_deposits_per_day", "x", r"policy\.hosts\[0\]\.max_deposits_per_day: "),
        ("policy/hosts/0/authorise_ahead", False, r"policy\.hosts\[0\]\.authorise_ahead: expected an amount"),
        ("policy/hosts/0/max_opens_per_day", -1, r"policy\.hosts\[0\]\.max_opens_per_day: "),
        ("policy/hosts/0/max_opens_per_day", True, r"policy\.hosts\[0\]\.max_opens_per_day: .*valid integer"),
        ("policy/hosts/0/max_channels_per_scope", 0, r"policy\.hosts\[0\]\.max_channels_per_scope: "),
        (
            "policy/hosts/0/payees",
            ["0x12"],
            r"policy\.hosts\[0\]\.payees\[0\]: expected an address such as 0x",
        ),
        (
            "policy/hosts/0/tokens",
            [ADDRESS, "pathUSD"],
            r"policy\.hosts\[0\]\.tokens\[1\]: expected an address",
        ),
        (
            "policy/hosts/0/chains",
            ["4217"],
            r'policy\.hosts\[0\]\.chains\[0\]: expected a chain such as "eip155',
        ),
        (
            "policy/hosts/0/allow_http",
            "yes",
            r"policy\.hosts\[0\]\.allow_http: Input should be a valid boolean",
        ),
        (
            "policy/hosts/0/websocket_paths",
            ["/ws", "ws"],
            r'policy\.hosts\[0\]\.websocket_paths\[1\]: expected a path without a query, such as "/ws"',
        ),
        ("policy/hosts/0/websocket_paths", ["/ws?n=1"], r"websocket_paths\[0\]: expected a path without"),
        ("policy/hosts/0/allow_https", True, r"policy\.hosts\[0\]\.allow_https: Extra inputs"),
        ("policy/hosts/0/pin_payee", 1, r"policy\.hosts\[0\]\.pin_payee: Input should be a valid boolean"),
        (
            "policy/hosts/0/breaker_failures",
            0,
            r"policy\.hosts\[0\]\.breaker_failures: .*greater than or equal",
        ),
        (
            "policy/hosts/0/breaker_max_undelivered",
            "0.0000001",
            r"policy\.hosts\[0\]\.breaker_max_undelivered is .*only 6 decimals",
        ),
        ("policy/max_deposits_total", "0.0000001", r"policy\.max_deposits_total is .*only 6 decimals"),
        ("policy/max_deposits_total", 5, r"policy\.max_deposits_total: expected an amount in quotes"),
        ("policy/max_per_day_per_client", "x", r"policy\.max_per_day_per_client: .*'x'"),
        (
            "policy/max_per_day_per_client",
            "0.0000001",
            r"policy\.max_per_day_per_client is .*only 6 decimals",
        ),
        (
            "policy/clients/0/max_per_day",
            "0.0000001",
            r"policy\.clients\[0\]\.max_per_day is .*only 6 decimals",
        ),
        ("policy/clients/0/max_per_day", None, r"policy\.clients\[0\]\.max_per_day: Field required"),
        ("policy/clients/0/name", "", r"policy\.clients\[0\]\.name: "),
        (
            "policy/clients",
            [{"name": "a", "max_per_day": "1"}] * 2,
            r"policy: clients names 'a' twice; keep one",
        ),
        ("breaker/failures", 0, r"breaker\.failures: .*greater than or equal to 1"),
        ("breaker/max_undelivered", "0.0000001", r"breaker\.max_undelivered is .*only 6 decimals"),
        ("breaker/retry_after_s", 0, r"breaker\.retry_after_s: .*greater than or equal to 1"),
        ("limits/attempts_per_minute", 0, r"limits\.attempts_per_minute: .*greater than or equal to 1"),
        (
            "limits/in_flight_per_origin",
            "9",
            r"limits\.in_flight_per_origin: Input should be a valid integer",
        ),
        ("limits/in_flight", 0, r"limits\.in_flight: .*greater than or equal to 1"),
        ("chains/tempo", {"rpc": ["http://x"]}, r"chains\.tempo.*: expected a chain such as"),
        (f"{CHAIN}/rpc", [], r"chains\.eip155:4217\.rpc: "),
        (f"{CHAIN}/rpc", ["ftp://x"], r"chains\.eip155:4217\.rpc\[0\]: expected an endpoint such as"),
        (f"{CHAIN}/rpc", ["http://x:99999/key"], r"\.rpc\[0\]: expected an endpoint(?!.*key)"),
        (f"{CHAIN}/rpc", None, r"chains\.eip155:4217\.rpc: Field required"),
        (f"{CHAIN}/extra_escrows", ["x"], r"chains\.eip155:4217\.extra_escrows\[0\]: expected an address"),
        (f"{CHAIN}/timeout_s", 0, r"chains\.eip155:4217\.timeout_s: "),
        (f"{CHAIN}/timeout_s", 121, r"chains\.eip155:4217\.timeout_s: "),
        (
            f"{CHAIN}/tokens/0/address",
            "0x" + "g" * 40,
            r"chains\.eip155:4217\.tokens\[0\]\.address: expected",
        ),
        (f"{CHAIN}/tokens/0/symbol", "", r"chains\.eip155:4217\.tokens\[0\]\.symbol: "),
        (f"{CHAIN}/tokens/0/decimals", 19, r"chains\.eip155:4217\.tokens\[0\]\.decimals: "),
        (f"{CHAIN}/tokens/0/decimals", 1, r"policy\.hosts\[0\]\.max_price is '0\.10'|only 1 decimals"),
    ],
)
def test_a_wrong_value_is_named_with_its_key(path: str, value: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(changed(path, value), "my.toml")
    text = str(caught.value)
    assert text.startswith("my.toml has 1 wrong setting(s):\n  ")
    assert re.search(says, text), text
    assert "Value error" not in text


def test_all_that_is_wrong_is_said_at_once() -> None:
    data = changed("mode", "free")
    data["proxy"]["listen_port"] = "x"
    with pytest.raises(ConfigError, match=r"has 2 wrong setting\(s\):\n  mode: .*\n  proxy\.listen_port: "):
        parse(data, "my.toml")


def test_no_secret_of_the_file_is_repeated() -> None:
    """A key pasted into the wrong place must not come out in a log."""
    secret = "0x" + "5ec12e7" * 9
    with pytest.raises(ConfigError) as caught:
        parse({"wallet": {"private_key": secret}}, "my.toml")
    assert secret not in str(caught.value)
    assert "wallet.private_key" in str(caught.value)


PASTED = "c0ffee" + "5ec12e7" * 8 + "01"


@pytest.mark.parametrize("prefix", ["", "0x"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("private_key_env", "{}"),
        ("password_env", "{}"),
        ("private_key_from", "{}"),
        ("private_key_from", "env:{}"),
        ("password_from", "file:{}"),
        ("keystore", "{}"),
        ("password_file", "{}"),
        ("payer", "{}"),
    ],
)
def test_a_key_where_its_place_is_asked_for_is_refused_unseen(key: str, value: str, prefix: str) -> None:
    assert len(PASTED) == 64
    with pytest.raises(ConfigError) as caught:
        parse({"wallet": {key: value.format(prefix + PASTED)}}, "my.toml")
    assert f"wallet.{key}: expected" in str(caught.value)
    assert PASTED not in str(caught.value)


def test_what_is_wrong_with_several_keys_together_has_a_line(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(EXAMPLE.read_text().replace('max_price = "0.10"', 'max_price = "0.0000001"'))
    line = path.read_text().split("max_price = ")[0].count("\n") + 1
    with pytest.raises(
        ConfigError, match=rf"\n  policy\.hosts\[0\]\.max_price \(line {line}\) is '0\.0000001': "
    ):
        load(path)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(EXAMPLE.read_text(), encoding="utf-8-sig")
    assert load(path).mode == "pay"


# -- what comes out


def test_addresses_and_hosts_are_normalised() -> None:
    data = changed("policy/hosts/0/host", "API.Example.com:8443")
    data["policy"]["hosts"][0]["payees"] = ["0x" + "AB" * 20]
    rule = parse(data, "my.toml").spend_policy().hosts[0]
    assert rule.pattern == "api.example.com:8443"
    assert rule.payees == {"0x" + "ab" * 20}
    assert rule.matches(Origin("https", "api.example.com", 8443))


@pytest.mark.parametrize(
    "host", ["[::1]", "[::1]:8080", "*.example.com:81", "my_host", "10.0.0.1:65535", "a"]
)
def test_hosts_of_every_kind(host: str) -> None:
    assert parse(changed("policy/hosts/0/host", host), "my.toml").policy.hosts[0].host == host


def test_the_policy_is_what_the_file_says() -> None:
    settings = load(EXAMPLE)
    policy = settings.spend_policy()
    (rule,) = policy.hosts
    assert (rule.name, rule.pattern) == ("policy.hosts[0]", "api.example.com")
    assert (rule.max_price, rule.max_per_day, rule.max_deposit) == ("0.10", "1.00", "2.00")
    assert (rule.deposit, rule.max_deposits_per_day, rule.authorise_ahead) == ("1.00", "5.00", "0")
    assert (rule.max_opens_per_day, rule.max_channels_per_scope, rule.allow_http) == (3, 4, False)
    assert (policy.max_per_day, policy.max_lifetime, policy.shadow) == ("5.00", "100.00", False)
    chain = policy.chains["eip155:4217"]
    assert chain.tokens == {ADDRESS: Token(ADDRESS, "pathUSD", 6)}
    assert chain.extra_escrows == frozenset()


def test_what_is_left_out_follows_from_the_deposit() -> None:
    host = {
        "host": "a",
        "max_price": "1",
        "max_per_day": "9",
        "max_deposit": "2_000.5",
        "max_opens_per_day": 4,
    }
    (rule,) = parse({"policy": {"hosts": [host]}}, "my.toml").spend_policy().hosts
    assert rule.deposit == "2_000.5"
    assert rule.max_deposits_per_day == "8002.0"
    assert (rule.max_channels_per_scope, rule.authorise_ahead, rule.allow_http) == (4, "0", False)


def test_signing_ahead_is_what_the_file_says() -> None:
    data = changed("policy/hosts/0/authorise_ahead", "0.05")
    assert parse(data, "my.toml").spend_policy().hosts[0].authorise_ahead == "0.05"


def test_zero_deposits_a_day_are_zero() -> None:
    data = changed("policy/hosts/0/max_deposits_per_day", "0")
    assert parse(data, "my.toml").spend_policy().hosts[0].max_deposits_per_day == "0"


def test_clients_limits_and_breaker_are_in_the_policy() -> None:
    data = changed("policy/max_per_day_per_client", "2.50")
    data["breaker"] = {"failures": 7, "max_undelivered": "0.30", "retry_after_s": 9}
    data["limits"] = {"attempts_per_minute": 1, "in_flight_per_origin": 2, "in_flight": 3}
    usual = data["policy"]["hosts"][0]
    own = {
        "breaker_failures": 2,
        "breaker_max_undelivered": "0",
        "breaker_retry_after_s": 1,
        "pin_payee": True,
    }
    data["policy"]["hosts"] = [usual, {**usual, "host": "b.example", **own}]
    policy = parse(data, "my.toml").spend_policy()
    assert policy.max_deposits_total == "10.00"
    assert policy.clients == {"alice": ClientRule("policy.clients[0].max_per_day", "1.00")}
    assert policy.other_clients == ClientRule("policy.max_per_day_per_client", "2.50")
    assert policy.rates == Rates(attempts_per_minute=1, in_flight_per_origin=2, in_flight=3)
    found = [
        (one.breaker_failures, one.breaker_max_undelivered, one.breaker_retry_after_s, one.pin_payee)
        for one in policy.hosts
    ]
    assert found == [(7, "0.30", 9, False), (2, "0", 1, True)]


def test_without_them_nothing_is_in_the_way_but_the_breaker() -> None:
    host = {"host": "a", "max_price": "1", "max_per_day": "9", "max_deposit": "2"}
    policy = parse({"policy": {"hosts": [host]}}, "my.toml").spend_policy()
    assert (policy.max_deposits_total, policy.clients, policy.other_clients) == (None, {}, None)
    assert policy.rates == Rates()
    (rule,) = policy.hosts
    assert (rule.breaker_failures, rule.breaker_max_undelivered, rule.breaker_retry_after_s) == (5, None, 60)
    assert rule.pin_payee is False


def test_shadow_mode_is_in_the_policy() -> None:
    assert parse(changed("mode", "shadow"), "my.toml").spend_policy().shadow


def test_how_a_token_is_shown() -> None:
    settings = load(EXAMPLE)
    assert settings.token("eip155:4217", ADDRESS).show(12_340) == "0.01234 pathUSD"
    other = "0x" + "1" * 40
    for chain in ("eip155:4217", "eip155:1"):
        assert settings.token(chain, other).show(12_340) == f"12340 base units of {other}"


def test_settings_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.mode = "shadow"
