"""The real proxy as users start it: a process of its own, with a home that holds its config, store and key."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from proxy_addon.config import Settings, load
from tests.forked import MITMDUMP
from tests.peers.devnet import Account, Devnet

ROOT = Path(__file__).resolve().parents[2]
ADDON = ROOT / "proxy_addon" / "addon.py"
KEY_VARIABLE = "E2E_WALLET_KEY"
CA_CERTIFICATE = "mitmproxy-ca-cert.pem"
DEADLINE_S = 30.0

_LISTENS = re.compile(r"listening at (?:\S*://)?127\.0\.0\.1:(\d+)")
_STARTED = ("bursar: pays as", "nothing is paid")
_OF_PROXIES = re.compile(r"(https?|all|no)_proxy\Z", re.IGNORECASE)

Table = dict[str, Any]


def quiet_environment(**more: str) -> dict[str, str]:
    """This process's environment without what would send clients to another proxy or make them trust another CA."""
    unwanted = {"SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PYTHONPATH", KEY_VARIABLE}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not (_OF_PROXIES.match(name) or name in unwanted or name.startswith("BURSAR"))
    }
    return {**kept, **more}


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


def rule(host: str, **changes: Any) -> Table:
    """One ``[[policy.hosts]]`` table."""
    usual: Table = {"host": host, "max_price": "0.05", "max_per_day": "4", "max_deposit": "1"}
    return {name: value for name, value in (usual | changes).items() if value is not None}


@dataclass(frozen=True)
class Home:
    """A directory as `bursar init` makes one, and the wallet that belongs to it."""

    directory: Path
    account: Account

    @classmethod
    def make(
        cls,
        directory: Path,
        net: Devnet,
        ca: Path,
        *,
        funds: int = 5_000_000,
        **settings: Any,
    ) -> Home:
        """With a fresh wallet of `funds` base units. `settings` replace the usual top-level tables of the config."""
        directory.mkdir(mode=0o700)
        shutil.copytree(ca, directory / "ca")
        (directory / "ca").chmod(0o700)
        home = cls(directory, net.new_account(funds))
        home.write(usual_settings(home, net) | settings)
        return home

    def write(self, settings: Table) -> None:
        self.config.write_text("\n".join(_toml(settings)))

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def ca(self) -> Path:
        """Where mitmproxy has its authority; clients trust `CA_CERTIFICATE` in it."""
        return self.directory / "ca"

    @property
    def settings(self) -> Settings:
        return load(self.config)

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """All lines of all processes, in order of time."""
        files = sorted((self.store / "ledger").glob("*.jsonl"))
        # What has no end yet is being written in this moment.
        whole = [file.read_text().rpartition("\n")[0] for file in files]
        lines = [json.loads(line) for text in whole for line in text.splitlines()]
        return sorted(lines, key=lambda line: line["t"])

    def ledger_of(self, kind: str, **wanted: object) -> list[dict[str, Any]]:
        """The ledger's lines of one kind."""
        return [
            line
            for line in self.ledger
            if line["kind"] == kind and all(line.get(name) == value for name, value in wanted.items())
        ]


def usual_settings(home: Home, net: Devnet) -> Table:
    return {
        "wallet": {"private_key_env": KEY_VARIABLE},
        "store": {"directory": str(home.store)},
        "proxy": {"upstream_ca": str(net.ca), "release_idle_s": 1},
        "policy": {
            "max_per_day": "5",
            "max_lifetime": "10",
            "hosts": [rule("127.0.0.1"), rule("localhost")],
        },
        "chains": {
            f"eip155:{net.chain_id}": {
                "rpc": [f"{net.rpc_url}/proxy"],  # a path of its own: faults can be limited to it
                "tokens": [{"address": net.token, "symbol": "pathUSD"}],
            }
        },
    }


def _toml(table: Mapping[str, Any], path: str = "") -> list[str]:
    def key(name: str) -> str:
        return f"{path}.{json.dumps(name)}" if path else json.dumps(name)

    lines = []
    nested = []
    for name, value in table.items():
        match value:
            case dict():
                nested += [f"[{key(name)}]", *_toml(value, key(name))]
            case [dict(), *_]:
                for one in value:
                    nested += [f"[[{key(name)}]]", *_toml(one, key(name))]
            case _:
                lines.append(f"{json.dumps(name)} = {json.dumps(value)}")
    return lines + nested


def mitmdump(home: Home, net: Devnet, *options: str) -> list[str]:
    """Plain mitmdump with the addon, as a README would have it."""
    return [str(MITMDUMP), "-s", str(ADDON), *arguments(home, net), *options]


def arguments(home: Home, net: Devnet) -> list[str]:
    return [
        *("--set", f"bursar_config={home.config}"),
        *("--set", f"confdir={home.ca}"),
        *("--set", f"ssl_verify_upstream_trusted_ca={net.ca}"),
        *("--listen-host", "127.0.0.1", "--listen-port", "0"),
    ]


def bursar(home: Home, *command: str) -> list[str]:
    """A command of ours, without an installation."""
    return [sys.executable, "-m", "proxy_addon.cli.main", *command, "--config", str(home.config)]


@dataclass
class Proxy:
    """A running proxy process. Its log is what the process wrote to both its outputs."""

    home: Home
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0
    killed: bool = False
    _log: Path = Path()

    def launch(self) -> Proxy:
        """Start it; see `ready`."""
        number = len(list(self.home.directory.glob("proxy-*.log")))
        self._log = self.home.directory / f"proxy-{number}.log"
        usual = {KEY_VARIABLE: self.home.account.private_key, "PYTHONUNBUFFERED": "1"}
        environment = quiet_environment(**(usual | self.environment))
        if "proxy_addon.cli.main" in self.command:
            environment["PYTHONPATH"] = str(ROOT)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.home.directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def ready(self) -> Proxy:
        """Wait until it listens and has said whether it pays."""

        def listening() -> int:
            log = self.log
            assert self.process is not None
            assert self.process.poll() is None, f"the proxy ended with {self.process.returncode}:\n{log}"
            found = _LISTENS.search(log)
            return int(found[1]) if found and any(text in log for text in _STARTED) else 0

        try:
            self.port = until(listening, "the proxy is ready")
        except BaseException:
            self.kill()
            raise
        return self

    def __enter__(self) -> Proxy:
        if self.process is None:
            self.launch()
        return self.ready()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if not self.killed:
                self.stop()
        else:
            self.kill()
            print(f"--- the proxy's log ---\n{self.log[-20_000:]}")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.is_file() else ""

    def client_environment(self) -> dict[str, str]:
        """What makes an unmodified client use this proxy and trust it."""
        certificate = str(self.home.ca / CA_CERTIFICATE)
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), self.url)
        trust = dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"), certificate)
        return quiet_environment(**proxies, **trust)

    def logged(self, text: str) -> str:
        """Wait until the log has `text`, and return it all."""
        until(lambda: text in self.log, f"{text!r} in the log\n{self.log}")
        return self.log

    def stop(self) -> None:
        """SIGTERM, and an orderly end."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the proxy did not stop:\n{self.log}") from None
        assert code == 0, f"the proxy ended with {code}:\n{self.log}"
        assert "Traceback" not in self.log, self.log
        assert "has crashed" not in self.log, self.log

    def kill(self) -> None:
        """kill -9: nothing in it runs any more."""
        self.killed = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()
