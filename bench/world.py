"""One benchmark run's surroundings: upstream, client, certificate authority, scratch folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from bench import proxies
from bench.homes import Charged, Home, check_books
from bench.processes import Failed, Process

FUNDS: Final = 10**15  # base units
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class World:
    folder: Path
    ca: Path
    upstream: Process
    load: Process
    quick: bool = False
    homes: list[Home] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    # -- the upstream

    @property
    def base(self) -> str:
        """The seller's address; the wallets' policies allow it."""
        return f"http://127.0.0.1:{self.upstream.ready['port']}"

    @property
    def unlisted(self) -> str:
        """The same server at an address that no policy names."""
        return f"http://127.0.0.1:{self.upstream.ready['unlisted_port']}"

    def manage(self, action: str, **parameters: object) -> dict[str, Any]:
        with _OPENER.open(f"{self.base}/-/{action}?{urlencode(parameters)}", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def stats(self) -> dict[str, Any]:
        return self.manage("stats")

    def account(self, home: Home) -> dict[str, int]:
        """What the upstream knows of one wallet."""
        nobody = {"spent": 0, "units": 0, "channels": 0, "vouchers": 0}
        found: dict[str, int] = self.stats()["by_payer"].get(home.address, nobody)
        return found

    # -- wallets and proxies

    def scratch(self, name: str) -> Path:
        return self.folder / f"{name}-{next(self._numbers)}"

    def home(self, **options: Any) -> Home:
        """A fresh home with a wallet of its own, which is funded; `account` is one that is elsewhere."""
        ready = self.upstream.ready
        home = Home.make(
            self.scratch("home"),
            self.ca,
            **{
                "host": f"127.0.0.1:{ready['port']}",
                "rpc": ready["rpc"],
                "chain_id": ready["chain_id"],
                **options,
            },
        )
        self.homes.append(home)
        if "account" not in options:
            self.manage("fund", address=home.address, amount=FUNDS)
        return home

    def plain(self) -> proxies.Proxy:
        return proxies.plain(self.folder, self.ca)

    def script(self, home: Home) -> proxies.Proxy:
        return proxies.script(self.folder, home)

    def ours(self, home: Home, *options: str) -> proxies.Proxy:
        return proxies.ours(self.folder, home, *options)

    # -- what is measured

    def run(self, proxy_port: int, url: str, **task: Any) -> dict[str, Any]:
        """One task of the client; see `bench.load`. Raises `Failed` unless every answer is a 200."""
        expected = task.pop("status", "200")
        found = self.load.ask({"port": proxy_port, "url": url, **task})
        odd = {status for part in ("answers", "warmed") for status in found[part]} - {expected}
        if odd:
            raise Failed(f"{url}: expected {expected}, got {found['answers']} after {found['warmed']}")
        found["count"] = sum(found["answers"].values())
        return found

    def agree(self, home: Home, *, left: bool = False) -> None:
        """See `check_books`. Raises `Failed`."""
        account = self.account(home)
        check_books(home, Charged(account["spent"], account["units"]), left=left)


@contextlib.contextmanager
def world(*, quick: bool = False, keep: bool = False) -> Iterator[World]:
    from mitmproxy.certs import CertStore

    folder = Path(tempfile.mkdtemp(prefix="bursar-bench-"))
    try:
        (folder / "ca").mkdir(mode=0o700)
        CertStore.from_store(folder / "ca", "mitmproxy", 2048)
        with (
            Process.module("bench.upstream", log=folder / "upstream.log") as upstream,
            Process.module("bench.load", log=folder / "load.log") as load,
        ):
            yield World(folder, folder / "ca", upstream, load, quick)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
