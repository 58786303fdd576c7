"""Runs `swarm.py`, and holds it to what clients may expect."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.proxies import Proxy, quiet_environment


def swarm(proxies: Sequence[Proxy], url: str, clients: int, rounds: int = 1) -> float:
    """Every client gets its 200 each time, and nothing that tells of a payment. Returns how long it took.

    The URL has a query.
    """
    script = Path(__file__).with_name("swarm.py")
    ports = ",".join(str(proxy.port) for proxy in proxies)
    command = [sys.executable, str(script), ports, url, str(clients), str(rounds)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, check=False, env=quiet_environment()
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["answers"] == {"200": clients * rounds}, told
    assert (told["leaks"], told["odd"]) == ({}, {})
    return float(told["seconds"])
