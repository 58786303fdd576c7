from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from store.backends import open_backend
from store.channels import ChannelStore
from store.records import CounterMove
from tests.properties.bank import CAPS, proposed, scope_of

ORIGINS = ("https://api.example.com:443", "https://api.example.com:8443", "http://127.0.0.1:3000")


async def fill(store: Path) -> None:
    """Three origins, each held to a payee of its own."""
    channels = ChannelStore(await open_backend("lmdb", store))
    moves: tuple[CounterMove, ...] = CAPS.raise_moves(5, "2026-03-01")
    for number, origin in enumerate(ORIGINS):
        scope = replace(scope_of(origin), payee=f"0x{number:040x}")
        channel = replace(proposed(f"0x{number}", scope, authorised=5), updated_at=1_772_000_000_000)
        await channels.propose(channel, moves, max_channels=1, pin=True)
    await channels.close()


@pytest.fixture
def pinned(config: Path) -> Path:
    asyncio.run(fill(config.parent / "store"))
    return config


def as_json(runner: CliRunner, config: Path) -> Any:
    done = runner.invoke(bursar, ["pins", "list", "-c", str(config), "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_list(runner: CliRunner, pinned: Path) -> None:
    assert as_json(runner, pinned)[1] == {
        "origin": ORIGINS[0],
        "payee": "0x" + "0" * 40,
        "since": "2026-02-25T06:13:20.000Z",
    }
    lines = runner.invoke(bursar, ["pins", "list", "-c", str(pinned)]).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ORIGIN", ORIGINS[2], *ORIGINS[:2]]


def test_nothing_to_list(runner: CliRunner, config: Path) -> None:
    done = runner.invoke(bursar, ["pins", "list", "-c", str(config)])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no pins" in done.stderr
    assert not (config.parent / "store").exists()


@pytest.mark.parametrize(
    ("host", "gone"),
    [
        ("api.example.com", ORIGINS[0]),
        ("API.example.com:443", ORIGINS[0]),
        ("api.example.com:8443", ORIGINS[1]),
        ("https://api.example.com:8443", ORIGINS[1]),
        ("127.0.0.1:3000", ORIGINS[2]),
    ],
)
def test_forget(runner: CliRunner, pinned: Path, host: str, gone: str) -> None:
    done = runner.invoke(bursar, ["pins", "forget", host, "-c", str(pinned)])
    assert done.exit_code == 0, done.output
    payee = f"0x{ORIGINS.index(gone):040x}"
    assert (
        done.stdout
        == f"{gone} is no longer held to {payee}; it will be to the next payee that it is paid as\n"
    )
    assert {one["origin"] for one in as_json(runner, pinned)} == {*ORIGINS} - {gone}


@pytest.mark.parametrize("host", ["example.com", "127.0.0.1", "api.example.com:80", ""])
def test_what_is_not_pinned_cannot_be_forgotten(runner: CliRunner, pinned: Path, host: str) -> None:
    done = runner.invoke(bursar, ["pins", "forget", host, "-c", str(pinned)])
    assert done.exit_code == 1
    assert f"{host} is held to no payee; `bursar pins list` has all that are" in done.stderr
    assert len(as_json(runner, pinned)) == 3
