from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from eth_account import Account

from proxy_addon.cli.main import bursar

ROOT = Path(__file__).resolve().parents[3]
KEY = "0x" + "11" * 32
KEY_ENV = "TEST_BURSAR_KEY"

Bursar = Callable[..., "subprocess.CompletedProcess[str]"]


def clean_environ(**more: str) -> dict[str, str]:
    """What a user's shell has, without proxies and authorities that this machine happens to have set."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "JAVA_HOME")
    return {name: os.environ[name] for name in kept if name in os.environ} | more


def command_line(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "proxy_addon.cli.main", *arguments]


@pytest.fixture(autouse=True)
def _no_user_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BURSAR_HOME", "BURSAR_CONFIG", "BURSAR_PASSWORD", "BURSAR_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose key is in an environment variable, so that no test waits for a key derivation."""
    directory = tmp_path_factory.mktemp("bursar") / "home"
    done = CliRunner().invoke(
        bursar,
        [
            "init",
            "--home",
            str(directory),
            "--key-env",
            KEY_ENV,
            "--network",
            "moderato",
            "--non-interactive",
        ],
        env={KEY_ENV: KEY},
    )
    assert done.exit_code == 0, done.output
    return directory


@contextlib.contextmanager
def cheap_encryption() -> Iterator[None]:
    """What this process encrypts has few rounds, where a test is about something else."""
    real = Account.encrypt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Account, "encrypt", lambda self, key, password: real(key, password, kdf="pbkdf2", iterations=10)
        )
        yield


@pytest.fixture
def config(home: Path, tmp_path: Path) -> Path:
    """A config of that home's, with a store of the test's own."""
    text = (home / "config.toml").read_text()
    path = tmp_path / "config.toml"
    path.write_text(text.replace(str(home / "store"), str(tmp_path / "store")))
    tmp_path.chmod(0o700)
    (tmp_path / "ca").symlink_to(home / "ca")
    return path


@pytest.fixture
def run_bursar() -> Bursar:
    """The real command, as a process."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(*arguments),
            env=clean_environ(**({"PYTHONPATH": str(ROOT), KEY_ENV: KEY} | (env or {}))),
            capture_output=True,
            text=True,
            timeout=100,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run
