"""`bursar channels top-up`, on the demo's simulated chain and paid API."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from tests.unit.cli.conftest import KEY, KEY_ENV
from tests.unit.cli.test_channels import fill
from tests.unit.cli.test_paid import GET, World, directory, world

__all__ = ["directory", "world"]


async def pay(world: World) -> dict[str, Any]:
    """One paid request; its channel, given back."""
    code, _, told = await world.run(
        "exec", "-c", str(world.config), "--", sys.executable, "-c", GET, world.page, "1"
    )
    assert code == 0, told
    return await channel(world)


async def channel(world: World) -> dict[str, Any]:
    code, out, told = await world.run("channels", "list", "-c", str(world.config), "--json")
    assert code == 0, told
    (found,) = json.loads(out)
    assert found["ownership"] == "idle"  # given back, by whoever had it
    return dict(found)


def limits(world: World, **changes: str) -> None:
    text = world.config.read_text()
    for name, value in changes.items():
        lines = [line for line in text.splitlines() if not line.startswith(f"{name} =")]
        lines.insert(lines.index('max_price = "0.02"'), f'{name} = "{value}"')
        text = "\n".join(lines)
    world.config.write_text(text)


async def test_the_deposit_grows_by_what_was_asked(world: World) -> None:
    before = await pay(world)
    deposit = int(before["deposit"])
    limits(world, max_deposit="1")
    code, out, told = await world.run(
        "channels", "top-up", "-c", str(world.config), before["channel"][:10], "0.05", "--json"
    )
    assert code == 0, told
    added = json.loads(out)
    assert (added["added"], added["deposit"]) == ("50000", str(deposit + 50_000))
    after = await channel(world)
    assert (after["deposit"], after["authorised"]) == (str(deposit + 50_000), before["authorised"])
    assert after["transactions"] == [*before["transactions"], added["tx"]]
    code, out, _ = await world.run("channels", "top-up", "-c", str(world.config), before["channel"], "0.01")
    assert code == 0
    assert out.startswith(f"topped up {before['channel']} of 127.0.0.1:")

    # Another one of the same day, over what may be deposited in a day.
    limits(world, max_deposits_per_day="0.32")
    code, _, told = await world.run("channels", "top-up", "-c", str(world.config), before["channel"], "0.30")
    assert code == 5
    assert "max_deposits_per_day = 0.32" in told
    code, out, told = await world.run("channels", "close", "-c", str(world.config), "--all", "--json")
    assert code == 0, told
    (closed,) = json.loads(out)
    assert int(closed["deposit"]) == deposit + 60_000
    assert (await world.run("ledger", "-c", str(world.config), "--sum"))[0] == 0
    code, _, told = await world.run("channels", "top-up", "-c", str(world.config), before["channel"], "0.01")
    assert code == 1
    assert "is closed: nothing is added to its deposit" in told


async def test_over_max_deposit_is_refused_and_moves_nothing(world: World) -> None:
    before = await pay(world)
    code, _, told = await world.run("channels", "top-up", "-c", str(world.config), before["channel"], "0.26")
    assert code == 5
    assert "over max_deposit 0.25 pathUSD (policy.hosts[0])" in told
    after = await channel(world)
    assert after == before | {"updated_at": after["updated_at"]}


async def test_a_server_that_is_gone_is_no_limit(world: World) -> None:
    before = await pay(world)
    assert world.api._server is not None
    world.api._server.close()
    code, _, told = await world.run("channels", "top-up", "-c", str(world.config), before["channel"], "0.01")
    assert code == 1
    assert "did not answer" in told
    assert (await channel(world))["deposit"] == before["deposit"]


@pytest.mark.parametrize(
    ("amount", "told"),
    [("much", "expected an amount such as"), ("0", "more than 0"), ("0.0000001", "6 decimals")],
)
def test_an_amount_must_make_sense(amount: str, told: str, config: Path, runner: CliRunner) -> None:
    asyncio.run(fill(config.parent / "store"))
    arguments = ["channels", "top-up", "-c", str(config), "0x1111", amount]
    done = runner.invoke(bursar, arguments, env={KEY_ENV: KEY})
    assert done.exit_code == 2
    assert told in done.stderr
