"""The config file that `bursar init` writes: commented, complete, and refusing whatever was not asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True)
class Network:
    """A chain that we know how to reach, with the tokens that are money there."""

    name: str
    title: str
    chain: str  # CAIP-2
    rpc: str
    tokens: tuple[tuple[str, str, int], ...]  # address, symbol, decimals
    funding: str


_PATH_USD: Final = ("0x20c0000000000000000000000000000000000000", "pathUSD", 6)

NETWORKS: Final = {
    "tempo": Network(
        name="tempo",
        title="Tempo",
        chain="eip155:4217",
        rpc="https://rpc.tempo.xyz",
        tokens=(("0x20c000000000000000000000b9537d11c60e8b50", "USDC.e", 6), _PATH_USD),
        funding="Real money: fund it with what you are ready to lose.",
    ),
    "moderato": Network(
        name="moderato",
        title="Tempo Moderato (a test network)",
        chain="eip155:42431",
        rpc="https://rpc.moderato.tempo.xyz",
        tokens=(_PATH_USD,),
        funding="Test money is free: see Tempo's faucet.",
    ),
}


@dataclass(frozen=True, slots=True)
class WalletChoice:
    """Where the key is. Either `keystore` and one of the passwords, or `key_env`."""

    keystore: Path | None = None
    password_env: str | None = None
    password_file: Path | None = None
    key_env: str | None = None


@dataclass(frozen=True)
class Limits:
    """Of each host; decimal strings in whole tokens."""

    max_price: str = "0.10"
    max_per_day: str = "1.00"
    max_deposit: str = "2.00"


def render(
    network: Network,
    wallet: WalletChoice,
    store: Path,
    hosts: tuple[str, ...],
    limits: Limits,
    *,
    total_per_day: str,
    lifetime: str,
) -> str:
    """The text of config.toml."""
    hosts_text = "\n".join(_host(host, limits) for host in hosts) or _NO_HOST
    return "\n".join(
        (
            _HEAD,
            _wallet(wallet),
            _STORE.format(store=_quote(str(store))),
            _PROXY,
            _POLICY.format(per_day=_quote(total_per_day), lifetime=_quote(lifetime)),
            hosts_text,
            _chain(network),
        )
    )


def _quote(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of its."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _wallet(wallet: WalletChoice) -> str:
    lines = ["[wallet]"]
    if wallet.key_env is not None:
        lines += [
            "# The key, in hex, is in this environment variable. A key file is safer:",
            '# keystore = "…/key.json", with password_env or password_file.',
            f"private_key_env = {_quote(wallet.key_env)}",
        ]
    else:
        lines += [
            "# An encrypted key file, as Ethereum wallets write it (0600, in a directory that is 0700).",
            f"keystore = {_quote(str(wallet.keystore))}",
            "# Where its password comes from: an environment variable, or a file (0600).",
        ]
        if wallet.password_file is not None:
            lines += [
                f"password_file = {_quote(str(wallet.password_file))}",
                '# password_env = "BURSAR_PASSWORD"',
            ]
        else:
            lines += [
                f"password_env = {_quote(wallet.password_env or 'BURSAR_PASSWORD')}",
                '# password_file = "…/password"',
            ]
        lines += [
            "# Instead of a key file: the environment variable that holds the key in hex.",
            '# private_key_env = "BURSAR_PRIVATE_KEY"',
        ]
    return "\n".join((*lines, ""))


def _host(host: str, limits: Limits) -> str:
    return _HOST.format(
        host=_quote(host),
        max_price=_quote(limits.max_price),
        max_per_day=_quote(limits.max_per_day),
        max_deposit=_quote(limits.max_deposit),
    )


def _chain(network: Network) -> str:
    lines = [
        "# The chains that money may move on, and how to reach them.",
        f"[chains.{_quote(network.chain)}] # {network.title}",
        f"rpc = [{_quote(network.rpc)}]",
        "# Escrow contracts that may be paid into beside the canonical one. Leave this empty.",
        "extra_escrows = []",
        "# Longest wait for an answer, in seconds.",
        "timeout_s = 10",
        "",
        "# The tokens that may be spent there.",
    ]
    for address, symbol, decimals in network.tokens:
        lines += [
            f"[[chains.{_quote(network.chain)}.tokens]]",
            f"address = {_quote(address)}",
            f"symbol = {_quote(symbol)}",
            f"decimals = {decimals}",
            "",
        ]
    return "\n".join(lines)


_HEAD: Final = """\
# bursar's config, written by `bursar init`. It is read when the proxy starts.
# Amounts are decimal strings in whole tokens ("0.10"); they are converted to base units per token.
# A host that is not listed below is paid nothing.

# "pay", or "shadow": decide and log what would have been paid, but pay nothing and sign nothing.
mode = "pay"
"""

_STORE: Final = """\
[store]
# "lmdb", "memory" (nothing survives the process; for shadow mode), or "package.module:Class".
backend = "lmdb"
# Channels, counters and the ledger. Everything that finds a deposit again is in here: back it up.
directory = {store}
"""

_PROXY: Final = """\
[proxy]
# Where `bursar run` listens.
listen_host = "127.0.0.1"
listen_port = 8402
# Tell the client why a 402 was not paid, in a Bursar-Reason header. The log always says.
reason_header = false
# Largest request body that can be sent again after a 402, in MiB; beyond it the 402 passes.
max_body_mib = 256
# A CA certificate (PEM) to trust for upstreams beside the public ones.
# upstream_ca = "…/internal-ca.pem"
# Give a channel back to other processes after so many idle seconds.
release_idle_s = 3
"""

_POLICY: Final = """\
[policy]
# In total, per token: a day (UTC), and ever. A limit that is reached refuses; it never pays a little more.
max_per_day = {per_day}
max_lifetime = {lifetime}

# One table for each host that may be paid. The first that matches counts.
"""

_HOST: Final = """\
[[policy.hosts]]
# A name, or "*.example.com" for everything below it; with a port if it is not the scheme's own.
host = {host}
# The most one request may cost, all retries together.
max_price = {max_price}
# The most for this host on one day (UTC).
max_per_day = {max_per_day}
# The most that one channel may hold. What the server suggests is taken up to here.
max_deposit = {max_deposit}
# What to deposit when the server suggests nothing; max_deposit, unless it is set.
# deposit = "1.00"
# Openings a day (UTC), and what they may deposit: what a server that spoils channels can cost.
max_opens_per_day = 3
# max_deposits_per_day = "5.00"
# Channels of one payment scope at the same time.
max_channels_per_scope = 4
# Authorise this much ahead when many requests are in flight; "0" signs for nothing in advance.
authorise_ahead = "0"
# A metered stream asks for money while it flows. The most that one voucher may add (default: max_price), that
# a stream may take in a second, and in all (default: max_per_day for both).
# max_stream_step = "0.10"
# max_stream_per_second = "0.50"
# max_per_stream = "1.00"
# Only these payees, tokens and chains; empty lists allow any payee, and all tokens and chains below.
payees = []
tokens = []
chains = []
# Pay over plain http. Loopback needs no permission; everything else should not have it.
allow_http = false
# WebSockets that are paid for in-band, by their paths; their server gets a GET of the same address first.
websocket_paths = []
"""

_NO_HOST: Final = "\n".join(
    f"# {line}" if line and not line.startswith("#") else line
    for line in _HOST.format(
        host='"api.example.com"', max_price='"0.10"', max_per_day='"1.00"', max_deposit='"2.00"'
    ).split("\n")
)
