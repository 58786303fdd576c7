"""What others can read is refused by `bursar run`, by name, with the command that mends it."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.conftest import KEY, Bursar

CONFIG = """
[store]
directory = "{home}/store"
[proxy]
listen_port = 0
{proxy}
[wallet]
{wallet}
"""


def private(path: Path, text: str = "") -> Path:
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def made(home: Path, *, wallet: str = 'private_key_env = "TEST_BURSAR_KEY"', proxy: str = "") -> None:
    private(home / "config.toml", CONFIG.format(home=home, wallet=wallet, proxy=proxy))


def passwords(home: Path) -> Path:
    made(home, proxy=f'auth_file = "{home}/clients"')
    return private(home / "clients", "agent:x\n")


def key_file(home: Path) -> Path:
    made(home, wallet=f'keystore = "{home}/key.json"\npassword_file = "{home}/password"')
    private(home / "password", "p\n")
    return private(home / "key.json", "{}")


def bare_key(home: Path) -> Path:
    made(home, wallet=f'private_key_from = "file:{home}/key"')
    return private(home / "key", KEY)


def store(home: Path) -> Path:
    made(home)
    (home / "store").mkdir(mode=0o700)
    return home / "store"


@pytest.mark.parametrize(
    ("text", "line"),
    [("agent:s3cret\n", 1), ("# who\n\nagent\n", 3), (":$2y$05$x\n", 1), ("a:$apr1$x$s3cret\n", 1)],
)
def test_a_password_that_is_not_hashed_is_refused_unseen(
    text: str, line: int, tmp_path: Path, run_bursar: Bursar
) -> None:
    tmp_path.chmod(0o700)
    passwords(tmp_path).write_text(text)
    done = run_bursar("run", "-c", str(tmp_path / "config.toml"))
    assert done.returncode == 3, done.stderr
    assert f"line {line} of {tmp_path}/clients" in done.stderr
    assert f"htpasswd -B {tmp_path}/clients USER" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout


@pytest.mark.parametrize("mode", [0o640, 0o604])
@pytest.mark.parametrize("make", [passwords, key_file, bare_key, store])
def test_it_ends_and_says_how_to_mend_it(
    make: Callable[[Path], Path], mode: int, tmp_path: Path, run_bursar: Bursar
) -> None:
    tmp_path.chmod(0o700)
    path = make(tmp_path)
    is_directory = path.is_dir()
    path.chmod(mode | (0o100 if is_directory else 0))
    done = run_bursar("run", "-c", str(tmp_path / "config.toml"))
    assert done.returncode in (3, 4), done.stderr
    assert f"chmod {'700' if is_directory else '600'} {path}" in done.stderr
    assert KEY.removeprefix("0x") not in done.stderr + done.stdout
    assert stat.S_IMODE(path.stat().st_mode) & mode  # it mends nothing by itself
