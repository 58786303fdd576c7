"""Commands around real payments, on the demo's simulated chain and paid API."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy_addon.demo.chain import PATH_USD, SimulatedChain
from proxy_addon.demo.paid_api import PaidApi
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.signer import Signer
from tests.unit.cli.conftest import KEY, KEY_ENV, ROOT, clean_environ, command_line

GET = "import sys, urllib.request as r\nfor _ in range(int(sys.argv[2])): r.urlopen(sys.argv[1]).read()"

CONFIG = """
[wallet]
private_key_env = "{key_env}"
[store]
directory = "{directory}/store"
[policy]
max_per_day = "1.00"
max_lifetime = "1.00"
[[policy.hosts]]
host = "127.0.0.1:{port}"
max_price = "{max_price}"
max_per_day = "0.50"
max_deposit = "0.25"
[chains."eip155:{chain_id}"]
rpc = ["{rpc}"]
[[chains."eip155:{chain_id}".tokens]]
address = "{token}"
symbol = "pathUSD"
decimals = 6
"""


@dataclass(frozen=True)
class World:
    """A paid API, and a wallet that has money on its chain."""

    api: PaidApi
    config: Path
    text: str

    @property
    def page(self) -> str:
        return f"{self.api.url}/quote"

    def allow(self, max_price: str) -> None:
        self.config.write_text(self.text.replace("{max_price}", max_price))

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command_line(*arguments),
            env=clean_environ(PYTHONPATH=str(ROOT), **{KEY_ENV: KEY}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(), 100)
        return process.returncode or 0, out.decode(), err.decode()


@pytest.fixture
def directory(home: Path, tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    (tmp_path / "ca").symlink_to(home / "ca")  # of the session's home: making one takes a moment
    return tmp_path


@pytest.fixture
async def world(directory: Path) -> AsyncIterator[World]:
    chain = SimulatedChain()
    chain.fund(Signer.from_hex(KEY).address, 5_000_000)
    async with RpcServer(chain) as rpc, PaidApi(chain) as api:
        chain.fund(api.payee.address, 5_000_000)
        text = CONFIG.format(
            key_env=KEY_ENV,
            directory=directory,
            port=api.port,
            chain_id=chain.chain_id,
            rpc=rpc.url,
            token=PATH_USD,
            max_price="{max_price}",
        )
        made = World(api, directory / "config.toml", text)
        made.allow("0.02")
        yield made


async def test_exec_says_what_it_paid(world: World) -> None:
    code, _, told = await world.run(
        "exec", "-c", str(world.config), "--", sys.executable, "-c", GET, world.page, "3"
    )
    assert code == 0, told
    paid, opened = told.splitlines()
    assert paid == "bursar: paid 0.03 pathUSD for 3 requests on 1 channel"
    assert opened.startswith("bursar: opened 1 channel, deposited 0.")
    code, summed, told = await world.run("ledger", "-c", str(world.config), "--sum")
    assert (code, told) == (0, "")
    assert "The store agrees, to the base unit." in summed


async def test_exec_says_why_it_did_not_pay(world: World) -> None:
    world.allow("0.001")
    code, _, told = await world.run(
        "exec", "-c", str(world.config), "--", sys.executable, "-c", GET, world.page, "1"
    )
    assert code == 1  # urllib's own, for the 402 that it was given
    last = told.splitlines()[-1]
    assert last.startswith("bursar: not paid: 127.0.0.1:")
    assert "over max_price 0.001" in last


async def test_close_takes_a_channel_over_from_a_running_proxy(world: World) -> None:
    script = "import subprocess, sys, time\n" + GET + "\nprint('paid', flush=True)\nsys.stdin.read()"
    process = await asyncio.create_subprocess_exec(
        *command_line("exec", "-c", str(world.config), "--json", "--"),
        *(sys.executable, "-c", script, world.page, "1"),
        env=clean_environ(PYTHONPATH=str(ROOT), **{KEY_ENV: KEY}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert await asyncio.wait_for(process.stdout.readline(), 100) == b"paid\n"
    code, out, told = await world.run("channels", "close", "-c", str(world.config), "--all", "--json")
    assert code == 0, told
    (closed,) = json.loads(out)
    assert (closed["status"], closed["captured"]) == ("closed", "10000")
    assert int(closed["captured"]) + int(closed["refunded"]) == int(closed["deposit"])
    _, err = await process.communicate(b"")
    assert json.loads(err)["tokens"][0]["paid"] == "10000"
    code, out, _ = await world.run("channels", "list", "-c", str(world.config), "--all", "--json")
    (listed,) = json.loads(out)
    assert (listed["status"], listed["paid"], listed["ownership"]) == ("closed", "10000", "")
    assert (await world.run("ledger", "-c", str(world.config), "--sum"))[0] == 0
