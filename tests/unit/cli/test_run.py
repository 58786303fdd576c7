from __future__ import annotations

import json
import signal
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

from proxy_addon.cli.run import parse_address
from tests.unit.cli.conftest import KEY, KEY_ENV, ROOT, Bursar, clean_environ, command_line


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command_line("run", "-c", str(config), "--json", "--listen", "127.0.0.1:0", *arguments),
        env=clean_environ(PYTHONPATH=str(ROOT), **{KEY_ENV: KEY}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.fresh
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_line_then_a_clean_stop(number: signal.Signals, config: Path) -> None:
    process = start(config)
    assert process.stdout is not None
    ready = None
    while ready is None:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        ready = json.loads(line) if line.startswith("{") else None
    assert ready["ready"] is True
    assert ready["pid"] == process.pid
    assert Path(ready["ledger"]).parent == config.parent / "store" / "ledger"
    with socket.create_connection(("127.0.0.1", urlsplit(ready["url"]).port or 0), timeout=30):
        pass
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_an_address_in_use_is_said_in_one_line(config: Path, run_bursar: Bursar) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_bursar("run", "-c", str(config), "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr == (
        f"bursar: 127.0.0.1:{port} is in use, maybe by another bursar: stop that, or choose with --listen\n"
    )


def test_a_wallet_that_does_not_open_ends_it(config: Path, run_bursar: Bursar) -> None:
    done = run_bursar("run", "-c", str(config), "--listen", "127.0.0.1:0", env={KEY_ENV: ""})
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith(f"bursar: the environment variable {KEY_ENV} is not set")


def test_a_password_that_nobody_can_be_asked_for(config: Path, run_bursar: Bursar) -> None:
    text = config.read_text().replace(
        f'private_key_env = "{KEY_ENV}"', 'keystore = "/x/key.json"\npassword_env = "P"'
    )
    config.write_text(text)
    done = run_bursar("run", "-c", str(config), "--listen", "127.0.0.1:0")
    assert done.returncode == 3
    assert done.stderr.startswith("bursar: P is not set: it should hold the password of /x/key.json")


def test_options_after_the_dashes_are_mitmdumps(config: Path, run_bursar: Bursar) -> None:
    shown = run_bursar("run", "-c", str(config), "--listen", "127.0.0.1:0", "--", "--options")
    assert shown.returncode == 0, shown.stderr
    assert "bursar_config" in shown.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:8402", ("127.0.0.1", 8402)),
        ("[::1]:1", ("::1", 1)),
        (":9000", ("127.0.0.1", 9000)),
        ("9000", ("127.0.0.1", 9000)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "host", "host:", "host:65536", "host:-1", "host:٣"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(click.BadParameter):
        parse_address(text)
