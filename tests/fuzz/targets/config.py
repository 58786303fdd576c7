"""A config file's text.

- Nothing but `ConfigError` is raised, and its words can be shown: each line names a key.
- What is accepted can be used: it makes a policy, whose every amount is a number of base units of every token.
- Every number in what is accepted is within bounds.
"""

from __future__ import annotations

from proxy_addon import config
from store.amounts import UINT128_MAX, parse_units
from tests.fuzz import samples
from tests.fuzz.oracle import loggable
from tests.fuzz.target import Target


def one_input(data: bytes) -> None:
    try:
        settings = config.parse_text(data.decode("utf-8", "replace"), "config.toml")
    except config.ConfigError as error:
        for line in str(error).split("\n"):
            loggable(line)
        return
    numbers(settings.model_dump())
    policy = settings.spend_policy()
    places = {entry.decimals for chain in settings.chains.values() for entry in chain.tokens}
    for rule in policy.hosts:
        for amount in (
            *(rule.max_price, rule.max_per_day, rule.max_deposit, rule.deposit, rule.max_deposits_per_day),
            *(rule.authorise_ahead, rule.max_stream_step, rule.max_stream_per_second, rule.max_per_stream),
            rule.reserve or "0",
        ):
            for decimals in places:
                assert 0 <= parse_units(amount, decimals) <= UINT128_MAX
    for amount in (policy.max_per_day, policy.max_lifetime):
        for decimals in places:
            assert 0 <= parse_units(amount, decimals) <= UINT128_MAX
    for name, chain in settings.chains.items():
        for entry in chain.tokens:
            assert settings.token(name, entry.address).show(10**20).endswith(entry.symbol)


def numbers(value: object) -> None:
    match value:
        case dict():
            for item in value.values():
                numbers(item)
        case list() | tuple():
            for item in value:
                numbers(item)
        case int():
            assert 0 <= value < 2**31, value


def seeds() -> dict[str, bytes]:
    token, payee = samples.VECTORS["token"], samples.VECTORS["payee"]
    chains = f"""
[chains."eip155:4217"]
rpc = ["https://rpc.example.com", "http://127.0.0.1:8545/x"]
extra_escrows = ["{samples.VECTORS["v1_escrow"]}"]
timeout_s = 5
tokens = [{{ address = "{token}", symbol = "USDC", decimals = 6 }}]
"""
    hosts = f"""
[policy]
max_per_day = "10.00"
max_lifetime = "100"

[[policy.hosts]]
host = "*.example.com:8080"
max_price = "0.10"
max_per_day = "5"
max_deposit = "1.000_000"
deposit = "0.5"
max_opens_per_day = 2
max_channels_per_scope = 4
authorise_ahead = "0.5"
reserve = "0.05"
max_stream_step = "0.1"
max_stream_per_second = "0.2"
max_per_stream = "1"
payees = ["{payee}"]
tokens = ["{token}"]
chains = ["eip155:4217"]
allow_http = true
websocket_paths = ["/ws"]
"""
    rest = """
mode = "shadow"
[wallet]
keystore = "~/.bursar/key.json"
password_env = "PASSWORD"
[store]
backend = "lmdb"
directory = "~/.bursar/store"
[proxy]
listen_host = "::1"
listen_port = 8402
reason_header = false
release_idle_s = 3
max_body_mib = 16
"""
    return {
        "whole.toml": (rest + hosts + chains).encode(),
        "hosts.toml": (hosts + chains).encode(),
        "wallet.toml": b'[wallet]\nprivate_key_env = "KEY"\n',
        "home.toml": b'[store]\ndirectory = "~nobody-at-all/x"\n',
        "deep.toml": b"a = " + b"[" * 2000 + b"]" * 2000,
        "digits.toml": b"a = " + b"1" * 5000,
        "rich.toml": hosts.replace('"1.000_000"', f'"2{"0" * 20}"').encode()
        + chains.replace("decimals = 6", "decimals = 18").encode(),
        "odd_key.toml": b'[chains."eip155:1\\u0000\\u001b[31m"]\nrpc = 1\n',
        "long_key.toml": b'[chains."' + "\N{REPLACEMENT CHARACTER}".encode() * 120 + b'\\u0000"]\nrpc = 1\n',
        "nul.toml": b'[store]\ndirectory = "a\\u0000b"\n',
        "minutes.toml": b"[proxy]\nrelease_idle_s = 1" + b"0" * 60,
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"[policy]\n",
            b"[[policy.hosts]]\n",
            b'host = "',
            b'max_price = "',
            b'max_deposit = "',
            b"[proxy]\n",
        ),
        *(
            b"[wallet]\n",
            b'keystore = "',
            b"~",
            b"~root/",
            b"true",
            b'"0.10"',
            b"0x",
            b'[chains."eip155:1"]\n',
            b"\n",
        ),
        *(
            b"rpc = [",
            b"tokens = [",
            b"decimals = 18",
            b"listen_port = ",
            b"1979-05-27",
            b"1e400",
            b"nan",
            b"'''",
            b"#",
        ),
        *(
            b"340282366920938463463374607431768211455",
            b"\\u0000",
            b"max_opens_per_day = ",
            b"99999999999999999999",
        ),
        *(b"[]", b"{}", b'"*."', b'":99999"', b"_"),
    ),
)
