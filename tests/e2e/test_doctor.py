"""`bursar doctor` on a home that works, and on homes where one thing is wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy_addon.cli.checks import _clock
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, bursar, quiet_environment
from tests.e2e.world import MakeHome
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

CHECKS = {"versions", "hosts", "files", "certificate", "port", "store", "key", "clock", "balance"}


def doctor(home: Home, *options: str, **environ: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        bursar(home, "doctor", "--json", *options),
        env=quiet_environment(
            **({"PYTHONPATH": str(ROOT), KEY_VARIABLE: home.account.private_key} | environ)
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.startswith("["), done.stderr
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout), done.stdout + done.stderr


def test_a_home_that_works(make_home: MakeHome) -> None:
    home = make_home()
    code, found, text = doctor(home)
    assert code == 0, text
    assert {one["check"] for one in found} >= CHECKS
    # On Python 3.11 it says why a newer one is better.
    assert {one["check"] for one in found if one["grade"] != "ok"} <= {"versions"}
    assert any(one["found"] == "5.00 pathUSD on eip155:42431" for one in found), found
    assert home.account.private_key.removeprefix("0x") not in text
    shown = subprocess.run(
        bursar(home, "doctor"),
        env=quiet_environment(PYTHONPATH=str(ROOT), **{KEY_VARIABLE: home.account.private_key}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "ok   balance" in shown.stdout


@dataclass(frozen=True)
class Wrong:
    spoil: Callable[[Home, Devnet], None]
    check: str
    grade: str
    says: str  # in the way out
    environ: dict[str, str] | None = None


def _edit(old: str, new: str) -> Callable[[Home, Devnet], None]:
    def edit(home: Home, net: Devnet) -> None:
        text = home.config.read_text()
        assert old in text
        home.config.write_text(text.replace(old, new))

    return edit


def _chmod(home: Home, net: Devnet) -> None:
    (home.ca / "mitmproxy-ca.pem").chmod(0o644)


def _spend(home: Home, net: Devnet) -> None:
    text = home.config.read_text()
    home.config.write_text(text.replace('"max_deposit" = "1"', '"max_deposit" = "9"'))


def _gone(home: Home, net: Devnet) -> None:
    text = home.config.read_text()
    home.config.write_text(text.replace(net.rpc_url, "http://127.0.0.1:1"))


def _rubbish(home: Home, net: Devnet) -> None:
    home.store.mkdir(mode=0o700)
    (home.store / "data.mdb").touch(mode=0o600)
    (home.store / "data.mdb").write_bytes(b"rubbish" * 4096)


def _taken(home: Home, net: Devnet) -> None:
    port = net.http.rpartition(":")[2]
    text = home.config.read_text()
    home.config.write_text(
        text.replace('"release_idle_s" = 1', f'"release_idle_s" = 1\n"listen_port" = {port}')
    )


WRONG = {
    "a file that others can read": Wrong(_chmod, "files", "fail", "chmod 600 "),
    "an endpoint that is not there": Wrong(_gone, "chain eip155:42431", "fail", "rpc"),
    "another chain": Wrong(_edit("eip155:42431", "eip155:4217"), "chain eip155:4217", "fail", "rpc"),
    "no such token": Wrong(
        _edit("0x20c0000000000000000000000000000000000000", "0x" + "11" * 20), "balance", "fail", "tokens"
    ),
    "no money": Wrong(_spend, "balance", "warn", "send pathUSD to 0x"),
    "no key": Wrong(_edit(KEY_VARIABLE, "NOT_SET_AT_ALL"), "key", "fail", "[wallet]"),
    "no host": Wrong(_edit('"max_price" = "0.05"', '"max_price" = "0"'), "hosts", "warn", "policy.hosts[0]"),
    "a chain that is not there": Wrong(
        _edit('"max_price" = "0.05"', '"max_price" = "0.05"\n"chains" = ["eip155:1"]'),
        "hosts",
        "warn",
        'add [chains."eip155:1"]',
    ),
    "a store that is none": Wrong(_rubbish, "store", "fail", "nothing is signed"),
    "a port in use": Wrong(_taken, "port", "warn", "listen_port"),
    "shadow mode": Wrong(_edit('["wallet"]', 'mode = "shadow"\n["wallet"]'), "mode", "warn", 'mode = "pay"'),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_its_way_out(make_home: MakeHome, devnet: Devnet, name: str) -> None:
    wrong = WRONG[name]
    home = make_home()
    wrong.spoil(home, devnet)
    code, found, text = doctor(home)
    bad = [one for one in found if one["grade"] == wrong.grade and one["check"] == wrong.check]
    assert any(wrong.says in one["mend"] for one in bad), text
    assert code == (3 if any(one["grade"] == "fail" for one in found) else 0)
    assert {one["check"] for one in found if one["grade"] == "fail"} <= {wrong.check}, text


@pytest.mark.parametrize(
    ("skew", "grade"), [(0, "ok"), (-29, "ok"), (119, "ok"), (-31, "fail"), (121, "warn")]
)
def test_the_clock(skew: float, grade: str) -> None:
    assert _clock(skew, "rpc.example.com").grade == grade


def test_looking_makes_nothing(make_home: MakeHome) -> None:
    home = make_home()
    before = sorted(Path(home.directory).rglob("*"))
    doctor(home)
    assert sorted(Path(home.directory).rglob("*")) == before
