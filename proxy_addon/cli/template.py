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
        funding="Test money is free: `bursar faucet` asks for it.",
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
            _EGRESS,
            _POLICY.format(per_day=_quote(total_per_day), lifetime=_quote(lifetime)),
            hosts_text,
            _BREAKER,
            _WATCHDOG,
            _chain(network),
        )
    )


def _quote(text: str) -> str:
    """A TOML basic string; JSON's escapes are a subset of its."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_OTHER_KEYS: Final = (
    "# Or a secret from elsewhere, read once: fd:3, command:pass show bursar, keyring:bursar/me, env:NAME, file:PATH.",
    '# password_from = "keyring:bursar/me"',
    '# private_key_from = "fd:3"',
    "# Another key for vouchers: a proxy that holds only that one, and knows the payer by address, can spend what is",
    "# deposited, and nothing else.",
    '# payer = "0x…"',
    "# [wallet.voucher_key]",
    '# keystore = "…/voucher-key.json"',
)


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
    return "\n".join((*lines, *_OTHER_KEYS, ""))


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
        "# Endpoints, tried in order.",
        f"rpc = [{_quote(network.rpc)}]",
        "# So many of them must say the same of an opening, a top-up or the end of a channel before it counts. With 1,",
        "# the first that answers is believed.",
        "rpc_quorum = 1",
        "# So many blocks must lie on top of what is believed. Tempo's blocks are final as soon as they are there.",
        "confirmations = 0",
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
# What notices that an older copy of the store was put back; seal.json beside the key, unless it is set.
# seal = "…/seal.json"
# A process's ledger goes on in a new file when one has so many MiB.
ledger_max_mib = 64
"""

_PROXY: Final = """\
[proxy]
# Where `bursar run` listens.
listen_host = "127.0.0.1"
listen_port = 8402
# Users and passwords (htpasswd -B, 0600) for clients of `bursar run`. Without it, it listens on loopback only.
# auth_file = "…/clients"
# Tell the client why a 402 was not paid, in a Bursar-Reason header. The log always says.
reason_header = false
# Largest request body that can be sent again after a 402, in MiB; beyond it the 402 passes.
max_body_mib = 256
# A CA certificate (PEM) to trust for upstreams beside the public ones.
# upstream_ca = "…/internal-ca.pem"
# Give a channel back to other processes after so many idle seconds.
release_idle_s = 3
# When it is told to stop: so long, in seconds, answers that are under way may take to end. A second signal ends it
# at once.
drain_s = 10
# A client that lost an answer and asks again (same method, URL and body) is paid for again, and what was lost stays
# counted until it is known. true: not for a method that changes something, before it is known.
strict_retries = false
"""

_EGRESS: Final = """\
[egress]
# What is not on the public internet (loopback, private and link-local addresses, …) is refused: to what is paid,
# and to all requests of clients on other machines. Addresses, networks and names that may be reached all the
# same, with a port or without: "127.0.0.1:3000", "10.0.0.0/8", "*.corp.example". A host in [[policy.hosts]] that
# is written as an address, or as localhost, needs no entry.
allow = []
# The ports that clients on other machines may use; "8000-8999" is a range.
ports = [80, 443]
# Hold clients on this machine to both as well: where they run what others wrote, such as a browser.
check_local_clients = false
"""

_POLICY: Final = """\
[policy]
# In total, per token: a day (UTC), and ever. A limit that is reached refuses; it never pays a little more.
max_per_day = {per_day}
max_lifetime = {lifetime}
# The most that may be locked in escrow at one time, over all channels (default: max_lifetime).
# max_deposits_total = "10.00"
# A day (UTC), for each client that has no table of its own; names come with the proxy's passwords (auth_file).
# max_per_day_per_client = "2.00"

# A client's own limit a day (UTC), in addition to the others.
# [[policy.clients]]
# name = "alice"
# max_per_day = "1.00"

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
# When requests come one after another, put so much more on record with a commit, so that the next ones need not wait
# for the disk. It counts as spent, but is signed for nobody before it is used (default: a hundredth of max_per_day).
# reserve = "0.01"
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
# Hold each origin to the payee that it is first paid as; another is refused until `bursar pins forget HOST`.
pin_payee = false
# This host's own [breaker], see below.
# breaker_failures = 3
# breaker_max_undelivered = "0.10"
# breaker_retry_after_s = 300
# Close this host's idle channels after another time than [watchdog].close_idle_s.
# close_idle_s = 3600
"""

_BREAKER: Final = """\
[breaker]
# Stops paying an origin that takes money and delivers nothing: after so many paid requests in a row that brought
# nothing (402, 5xx, cut, no answer), or so much on one day (default: a quarter of the host's max_per_day, and no
# less than failures × max_price).
failures = 5
# max_undelivered = "0.25"
# Then one payment is tried after so many seconds.
retry_after_s = 60

[limits]
# Payments a minute that needed a decision (after a 402, an opening, a repair), of one client at one origin.
attempts_per_minute = 600
# Requests that hold money at one time, at one origin and in all; beyond it the 402 passes.
in_flight_per_origin = 1024
in_flight = 4096
"""

_WATCHDOG: Final = """\
[watchdog]
# What the running proxy does by itself to bring deposits home.
# Close a channel with the server's help once nothing was paid with it for so long; 0: never.
close_idle_s = 86400
# Where a server has not helped for so long, close on the chain without it, which costs this wallet the network fees
# of two transactions. 0: never spend money on that without being asked.
force_close_after_s = 0
# The most that one of these transactions may cost, in whole tokens; a dearer one waits.
max_fee = "0.05"
# How often it looks at the channels, and at the chain, in seconds.
every_s = 60
"""

_NO_HOST: Final = "\n".join(
    f"# {line}" if line and not line.startswith("#") else line
    for line in _HOST.format(
        host='"api.example.com"', max_price='"0.10"', max_per_day='"1.00"', max_deposit='"2.00"'
    ).split("\n")
)
