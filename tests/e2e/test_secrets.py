"""The key, credentials, vouchers and receipts are in no log, flow dump or ledger, however much mitmproxy tells."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.clients import curl, start
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, bursar, quiet_environment, rule
from tests.e2e.scripted import Request, Upstream, answer
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]


@dataclass
class Secrets:
    """What must never be found, by name."""

    texts: dict[str, str] = field(default_factory=dict)

    def add_key(self, key: str) -> None:
        digits = key.removeprefix("0x")
        raw = bytes.fromhex(digits)
        self.texts |= {
            "the key": digits,
            "the key in capitals": digits.upper(),
            "the key in base64": base64.b64encode(raw).decode().rstrip("="),
            "the key as a number": str(int(digits, 16)),
        }

    def add_credential(self, value: str, content: dict[str, Any]) -> None:
        number = len(self.texts)
        payload = content["payload"]
        self.texts[f"credential {number}"] = value.partition(" ")[2]
        for name in ("signature", "transaction"):
            if name in payload:
                self.texts[f"{name} {number}"] = payload[name].removeprefix("0x")

    def found_in(self, data: bytes) -> list[str]:
        text = data.decode("latin-1").lower()
        return [name for name, secret in self.texts.items() if secret.lower() in text]


def credentials(headers: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in ("authorization", "payment-authorization"):
        value = headers.get(name, "")
        if value.startswith("Payment "):
            encoded = value.partition(" ")[2]
            yield value, Request("", "", [(name, value)], b"").credential or {"encoded": encoded}


def traffic(net: Devnet, proxy: Proxy, upstream: Upstream, file: Path) -> None:
    """A bit of everything: openings, vouchers, repairs, a top-up, refusals, failures."""
    ask = f"{net.http}/req"
    for _ in range(3):
        assert curl(proxy, ask).status == 200
    assert curl(proxy, ask, "--data-binary", f"@{file}").status == 200
    net.admin("rotate")  # the challenge that we have is refused
    assert curl(proxy, ask).status == 200
    net.admin("rotate")
    assert curl(proxy, ask, "--data-binary", f"@{file}").status == 200
    assert curl(proxy, f"{net.http}/auth", "-H", "Authorization: Bearer secret").status == 200
    assert curl(proxy, f"{net.http}/price?amount=0.06").status == 402
    assert curl(proxy, f"{net.https}/price?deposit=0.02", "--http2").status == 200
    for _ in range(3):  # beyond that deposit
        assert curl(proxy, f"{net.https}/price?deposit=0.02", "--http2").status == 200
    assert curl(proxy, f"{upstream.url}/goods").status == 200
    for path in ("/goods", "/cut", "/garbage"):
        client = start("curl", proxy, upstream.url + path)
        client.process.communicate(timeout=60)
    net.admin("forget")  # the server knows no channel any more
    curl(proxy, ask)


@pytest.fixture(scope="module")
def upstream(devnet: Devnet) -> Iterator[Upstream]:
    async def garbage(request: Request, writer: Any) -> None:
        payload = await running.take(request)
        writer.write(running.asks() if payload is None else b"garbage\r\n\r\n")
        writer.close()

    async def cut(request: Request, writer: Any) -> None:
        payload = await running.take(request)
        whole = running.asks() if payload is None else answer(200, b"goods", running.receipt(payload))
        writer.write(whole if payload is None else whole[:-2])
        writer.close()

    with Upstream(devnet) as running:
        running.routes["/goods"] = running.sells(
            lambda request, payload: answer(200, b"goods", running.receipt(payload))
        )
        running.routes["/cut"] = cut
        running.routes["/garbage"] = garbage
        yield running


def test_nothing_secret_is_written_down(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, upstream: Upstream, tmp_path: Path
) -> None:
    devnet.admin("reset")
    home = make_home()
    dump, body = tmp_path / "flows.mitm", tmp_path / "body"
    body.write_bytes(b"x" * 100_000)
    with make_proxy(
        home,
        *("-w", str(dump), "--set", "flow_detail=4", "-v"),
        *("--set", "connection_strategy=lazy", "--set", "store_streamed_bodies=true"),
    ) as proxy:
        traffic(devnet, proxy, upstream, body)

    secrets = Secrets()
    secrets.add_key(home.account.private_key)
    sent = [pair for one in devnet.admin("log") for pair in credentials(one["headers"])]
    sent += [
        pair for one in upstream.requests for pair in credentials({k.lower(): v for k, v in one.headers})
    ]
    for value, content in sent:
        secrets.add_credential(value, content)
    for content in upstream.credentials:
        receipt = upstream.receipt(content["payload"])["Payment-Receipt"]
        secrets.texts[f"receipt {len(secrets.texts)}"] = receipt[:80]
    kinds = {content["payload"]["action"] for _, content in sent}
    assert kinds == {"open", "voucher", "topUp"}
    assert len(sent) > 15

    log = proxy.log.encode()
    assert b"GET " in log
    ledger = b"".join(file.read_bytes() for file in (home.store / "ledger").iterdir())
    for place, data in {"dump": dump.read_bytes(), "log": log, "ledger": ledger}.items():
        assert len(data) > 5_000, place
        assert secrets.found_in(data) == [], place
        for text in (b"payment-receipt", b"payment-authorization", b"Payment eyJ"):
            assert text.lower() not in data.lower(), (place, text)

    assert_private(home)


def assert_private(home: Home) -> None:
    """All of the store: 0600 in 0700."""
    paths = [home.store, *home.store.rglob("*")]
    assert len(paths) > 4
    for path in paths:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_the_finder_finds() -> None:
    secrets = Secrets()
    secrets.add_key("0x" + "ab" * 32)
    assert secrets.found_in(b"... 0x" + b"AB" * 32) == ["the key", "the key in capitals"]
    assert secrets.found_in(b"... " + b"ab" * 31) == []


# ---------------------------------------------------------------------- exceptions

SABOTAGE = Path(__file__).with_name("sabotage.py")


def ask(proxy: Proxy, url: str, **headers: str) -> None:
    """One GET, whatever comes of it."""
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=1)
    with contextlib.suppress(http.client.HTTPException, OSError), contextlib.closing(connection):
        connection.request("GET", url, headers={"Connection": "close"} | headers)
        connection.getresponse().read()


def test_no_exception_in_the_proxy_tells_a_secret(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, upstream: Upstream, tmp_path: Path
) -> None:
    """Each function of the replay that holds one fails once, with an exception that says it.

    For those that pay, there is `tests/unit/payer/test_secrets.py`.
    """
    devnet.admin("reset")
    generous = rule("127.0.0.1", max_opens_per_day=500, max_deposit="0.05", max_channels_per_scope=64)
    home = make_home(
        policy={"max_per_day": "50", "max_lifetime": "50", "hosts": [generous]}, funds=100_000_000
    )
    dump, state = tmp_path / "flows.mitm", tmp_path / "sabotage"
    proxy = make_proxy(home, "-s", str(SABOTAGE), "-v", "-w", str(dump), "--set", "flow_detail=4")
    proxy.environment = {"SABOTAGE": str(state), "PYTHONPATH": str(ROOT)}
    urls = [f"{devnet.http}/req", f"{upstream.url}/goods", f"{devnet.http}/sse?n=2"]
    with proxy:
        for url in urls:
            ask(proxy, url)
            ask(proxy, url)
        for name in (holders := json.loads(state.read_text())["holders"]):
            devnet.admin("rotate")  # so that there is a 402 first
            for url in urls:
                ask(proxy, url, **{"X-Sabotage": name})
                if name in json.loads(state.read_text())["fired"]:
                    break
        assert proxy.process is not None
        proxy.process.send_signal(signal.SIGTERM)
        proxy.process.wait(60)
        proxy.killed = True  # its log is full of errors, as it should be

    fired = json.loads(state.read_text())["fired"]
    assert len(fired) > 0.8 * len(holders) > 8, sorted(set(holders) - set(fired))
    secrets = {one for found in fired.values() for one in found}
    assert sum(one.startswith("eyJ") for one in secrets) > 3
    secrets |= {home.account.private_key.removeprefix("0x")}
    log = proxy.log
    assert log.count("RuntimeError") >= 0.8 * len(fired)
    ledger = b"".join(file.read_bytes() for file in (home.store / "ledger").iterdir()).decode("latin-1")
    for place, text in {"log": log, "dump": dump.read_bytes().decode("latin-1"), "ledger": ledger}.items():
        assert [secret for secret in secrets if secret in text] == [], place


# ---------------------------------------------------------------------- processes

LOOK_AROUND = """
import json, os, sys
from pathlib import Path

def text(path):
    try:
        return path.read_bytes().decode("latin-1")
    except OSError:
        return ""

def descriptor(name):
    try:
        return os.readlink(f"/proc/self/fd/{name}")
    except OSError:
        return None  # the listing's own

processes = [one for one in Path("/proc").iterdir() if one.name.isdecimal()]
json.dump({
    "environ": dict(os.environ),
    "descriptors": [one for one in map(descriptor, os.listdir("/proc/self/fd")) if one],
    "commands": [text(one / "cmdline") for one in processes],
    "cores": [text(one / "limits") for one in processes
              if "--lifeline" + "-fd" in text(one / "cmdline") and sys.argv[1] in text(one / "cmdline")],
}, sys.stdout)
"""


def test_a_command_gets_nothing_of_the_wallet(devnet: Devnet, make_home: MakeHome) -> None:
    """Not in its environment, not as an open file, and no command line shows it."""
    home = make_home()
    key = home.account.private_key
    more = {KEY_VARIABLE: key, "BURSAR_PASSWORD": key, "BURSAR_PRIVATE_KEY": key, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*bursar(home, "exec"), "--", sys.executable, "-c", LOOK_AROUND, str(home.config)],
        env=quiet_environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    digits = key.removeprefix("0x")
    assert seen["environ"]["https_proxy"].startswith("http://127.0.0.1:")
    assert [name for name, value in seen["environ"].items() if digits in value] == []
    assert not {KEY_VARIABLE, "BURSAR_PASSWORD", "BURSAR_PRIVATE_KEY"} & set(seen["environ"])
    assert len(seen["descriptors"]) == 3, seen["descriptors"]
    assert len(seen["commands"]) > 2
    assert [one for one in seen["commands"] if digits in one] == []
    (limits,) = seen["cores"]
    assert re.search(r"(?m)^Max core file size\s+0\s+0\s", limits)
    assert digits not in done.stderr
