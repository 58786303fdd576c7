"""README and the guide for a new user, followed to the letter: every command of theirs, in one shell."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxy_addon.cli.template import NETWORKS
from tests.e2e.accounting import stats
from tests.e2e.proxies import ROOT, quiet_environment
from tests.peers.devnet import Devnet

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

SET_UP = ("make demo", 'export PATH="$PWD/.venv/bin:$PATH"', "pip install .")
"""What this test runs in has been set up already; the demo has tests of its own, and CI runs it in a fresh clone."""


def commands(page: str, after: str) -> list[str]:
    text = (ROOT / page).read_text().partition(after)[2].partition("\n## The config")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize(
    ("page", "after"),
    [
        pytest.param("docs/first-steps.md", "# First steps", id="guide"),
        pytest.param("README.md", "\n## Use it", id="readme", marks=pytest.mark.long),
    ],
)
def test_followed_to_the_letter(devnet: Devnet, tmp_path: Path, page: str, after: str) -> None:
    """Only the addresses are others: of the API, and of the test network, which is the one on this machine."""
    devnet.admin("reset")
    lines = commands(page, after)
    assert len(lines) > 10
    home = tmp_path / "user"
    home.mkdir(mode=0o700)
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "bursar").write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m proxy_addon.cli.main "$@"\n'
    )
    (tools / "bursar").chmod(0o755)
    config = home / ".bursar" / "config.toml"
    network = NETWORKS["moderato"]
    assert network.chain == f"eip155:{devnet.chain_id}"
    # Where the config is just made: the one thing that a user of the real network does not do.
    changes = (
        f"s|{network.rpc}|{devnet.rpc_url}/guide|",
        f"s|^listen_port = .*|listen_port = {free_port()}|",
    )
    here = f"sed -i '{'; '.join(changes)}' {config}"
    script = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || :' EXIT"]
    for line in lines:
        if line.partition("  #")[0].rstrip() in SET_UP:
            continue
        script.append(
            line.replace("https://api.example.com/quote", f"{devnet.http}/req").replace(
                "api.example.com", "127.0.0.1"
            )
        )
        if line.startswith("bursar init"):
            script.append(here)
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=home,
        env=quiet_environment(HOME=str(home), PATH=f"{tools}:{os.environ['PATH']}"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    told = f"{done.stdout}\n--- stderr ---\n{done.stderr}"
    assert done.returncode == 0, told
    assert "Traceback" not in told
    assert "1000.00 pathUSD on Tempo Moderato" in done.stdout
    assert "FAIL" not in done.stdout
    assert "would pay    open a channel" in done.stdout
    assert done.stdout.count('"ok":true') == 2
    assert "paid 0.01 pathUSD" in done.stderr, told
    counted = stats(devnet.seller, "/req")
    assert (counted["open"], counted["close"]) == (1, 1)
    spent = sum(int(book["spent"]) for book in devnet.channels() if book["payer"].lower() in told.lower())
    assert spent == 20_000


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
