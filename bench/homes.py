"""Homes as `bursar init` makes them, for the benchmarks: a config, a store, a wallet; and whether the books agree."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import lmdb
from eth_account import Account

from bench.processes import ROOT, Failed, environment

KEY_VARIABLE: Final = "BENCH_WALLET_KEY"
TOKEN: Final = "0x20c0000000000000000000000000000000000000"

# Everything has its default, but for the limits, which a benchmark must not reach.
_CONFIG: Final = """\
[wallet]
private_key_env = "{variable}"

[store]
directory = "{directory}/store"

[policy]
max_per_day = "1000000000"
max_lifetime = "1000000000"

[[policy.hosts]]
host = "{host}"
max_price = "1"
max_per_day = "1000000000"
max_deposit = "1000"
max_opens_per_day = {channels}
max_channels_per_scope = {channels}
max_deposits_per_day = "100000000"
{host_lines}

[limits]
attempts_per_minute = 1000000
in_flight_per_origin = 4096

[chains."eip155:{chain_id}"]
rpc = ["{rpc}"]

[[chains."eip155:{chain_id}".tokens]]
address = "{token}"
symbol = "pathUSD"
decimals = 6
"""


@dataclass(frozen=True)
class Home:
    directory: Path
    address: str
    key: str = field(repr=False)

    @classmethod
    def make(
        cls,
        directory: Path,
        ca: Path,
        *,
        host: str,
        rpc: str,
        chain_id: int,
        channels: int = 4,
        host_lines: str = "",
        account: tuple[str, str] | None = None,
    ) -> Home:
        """`account`: address and key of a wallet; without it, a fresh one."""
        directory.mkdir(mode=0o700)
        shutil.copytree(ca, directory / "ca")
        (directory / "ca").chmod(0o700)
        if account is None:
            made = Account.from_key(secrets.token_bytes(32))
            account = (str(made.address), str(made.key.to_0x_hex()))
        home = cls(directory, account[0].lower(), account[1])
        home.config.write_text(
            _CONFIG.format(
                variable=KEY_VARIABLE,
                directory=directory,
                host=host,
                channels=channels,
                host_lines=host_lines,
                chain_id=chain_id,
                rpc=rpc,
                token=TOKEN,
            )
        )
        return home

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def ca(self) -> Path:
        return self.directory / "ca"

    def bursar(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One of our commands."""
        return subprocess.run(
            [sys.executable, "-m", "proxy_addon.cli.main", *arguments, "--config", str(self.config)],
            cwd=ROOT,
            env=environment(**{KEY_VARIABLE: self.key}),
            capture_output=True,
            text=True,
            check=False,
        )

    def commits(self) -> int:
        """Write transactions of the store so far, of all processes."""
        env = lmdb.open(str(self.directory / "store"), readonly=True, create=False, max_readers=126)
        try:
            return int(env.info()["last_txnid"])
        finally:
            env.close()


@dataclass(frozen=True)
class Charged:
    """What a seller charged one wallet, in base units and requests."""

    amount: int
    requests: int


def check_books(home: Home, charged: Charged, *, left: bool = False) -> None:
    """Do ledger, store and seller say the same, to the base unit? The proxy must have ended. Raises `Failed`.

    With `left`, clients went away from answers: what was charged is what is known to be paid, and at most what may be.
    """
    done = home.bursar("ledger", "--sum", "--json")
    if done.returncode != 0:
        raise Failed(f"the books do not agree: {done.stderr.strip() or done.stdout.strip()}")
    tokens: list[dict[str, Any]] = json.loads(done.stdout)["tokens"]
    sums = tokens[0] if tokens else {}
    said = {
        "paid": int(sums.get("paid", 0)),
        "requests": int(sums.get("paid_requests", 0)),
        "uncertain": int(sums.get("uncertain", 0)),
        "unfinished": int(sums.get("unfinished", 0)),
    }
    if left:
        most = said["paid"] + _uncertain(home)
        if not said["paid"] <= charged.amount <= most:
            raise Failed(
                f"the books do not agree: {said['paid']} to {most} were paid, the seller has {charged.amount}"
            )
        return
    wanted = {"paid": charged.amount, "requests": charged.requests, "uncertain": 0, "unfinished": 0}
    if said != wanted:
        raise Failed(f"the books do not agree: the ledger has {said}, the seller {wanted}")


def _uncertain(home: Home) -> int:
    """By the channels' records, which have what became of a stream that was cut; a sum over lines does not."""
    done = home.bursar("channels", "list", "--all", "--json")
    if done.returncode != 0:
        raise Failed(f"the channels cannot be read: {done.stderr.strip()}")
    return sum(int(one["uncertain"]) for one in json.loads(done.stdout))
