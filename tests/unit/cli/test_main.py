from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from proxy_addon.cli import main
from proxy_addon.cli.failure import failure_of
from proxy_addon.config import ConfigError
from proxy_addon.core.errors import ChainUnavailable, LocalRefusal
from proxy_addon.keystore import KeystoreError
from store.channels import LimitExceeded
from store.contract import StoreUnavailable, UnknownVersion
from store.records import CounterMove
from tests.unit.cli.conftest import ROOT, clean_environ

pytestmark = pytest.mark.fresh

SLOW = ("mitmproxy", "eth_account", "httpx", "pydantic", "lmdb", "cryptography")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["channels", "--help"], ["exec", "--help"], ["run", "-h"], []]
)
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from proxy_addon.cli.main import bursar\n"
        f"bursar({arguments!r}, prog_name='bursar', standalone_mode=False)\n"
        f"print('imported:', [name for name in {SLOW!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environ(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if arguments:
        assert done.stdout.splitlines()[-1] == "imported: []", done.stderr


def test_every_command_has_help_with_an_example(runner: CliRunner) -> None:
    for name in main._COMMANDS:
        done = runner.invoke(main.bursar, [name, "--help"])
        assert done.exit_code == 0
        assert "Example" in done.stdout
        assert f"bursar {name}" in done.stdout
    assert all(name in runner.invoke(main.bursar, ["--help"]).stdout for name in main._COMMANDS)


def test_version(runner: CliRunner) -> None:
    done = runner.invoke(main.bursar, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("bursar ")


def test_an_unknown_command_is_wrong_usage(runner: CliRunner) -> None:
    done = runner.invoke(main.bursar, ["pay"])
    assert done.exit_code == 2
    assert "no command 'pay'; there are init, faucet, doctor" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 3),
        (KeystoreError("x"), 3),
        (StoreUnavailable("x"), 4),
        (UnknownVersion("x"), 4),
        (LimitExceeded(CounterMove("k", 1, 0), 0), 5),
        (LocalRefusal("no", "x"), 5),
        (ChainUnavailable("x"), 1),
        (OSError(28, "No space left on device", "/f"), 1),
        (click.UsageError("x"), 1),  # click shows its own; it never gets here
        (ZeroDivisionError("x"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert failure_of(error).exit_code == code


def test_an_error_is_one_line_unless_debugging(runner: CliRunner, tmp_path: Path) -> None:
    missing = ["ledger", "-c", str(tmp_path / "none.toml")]
    done = runner.invoke(main.bursar, missing)
    assert done.exit_code == 3
    assert len(done.stderr.splitlines()) == 1
    debugged = runner.invoke(main.bursar, missing, env={"BURSAR_DEBUG": "1"})
    assert isinstance(debugged.exception, ConfigError)


def test_a_server_that_is_not_there(runner: CliRunner, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[store]\ndirectory = "{tmp_path}/store"\n')
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    done = runner.invoke(main.bursar, ["inspect", "-c", str(config), f"http://localhost:{port}/quote"])
    assert done.exit_code == 1
    assert "localhost did not answer GET" in done.stderr
    assert "can this machine reach it without a proxy?" in done.stderr
