from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from proxy_addon.config import load
from proxy_addon.keystore import keystore_address, signer_from_keystore
from store.backends import open_backend
from store.channels import ChannelStore
from tests.unit.cli.conftest import Bursar, cheap_encryption
from tests.unit.methods import samples


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a key file whose password is "old"."""
    directory = tmp_path_factory.mktemp("made") / "home"
    arguments = ["init", "--home", str(directory), "--non-interactive"]
    with cheap_encryption():
        done = CliRunner().invoke(bursar, arguments, env={"BURSAR_PASSWORD": "old"})
    assert done.exit_code == 0, done.output
    return directory


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "home"
    shutil.copytree(made, directory)
    config = directory / "config.toml"
    config.write_text(config.read_text().replace(str(made), str(directory)))
    return directory


def opens(path: Path, word: str) -> str:
    return signer_from_keystore(path, lambda: word).address


def test_the_address(home: Path, run_bursar: Bursar) -> None:
    told = run_bursar("key", "address", "-c", str(home / "config.toml"), env={"BURSAR_PASSWORD": "old"})
    assert told.stdout.strip() == keystore_address(home / "key.json")


def test_a_new_password(home: Path, run_bursar: Bursar) -> None:
    before = keystore_address(home / "key.json")
    done = run_bursar(
        *("key", "password", "--new-password-env", "NEW", "-c", str(home / "config.toml")),
        env={"BURSAR_PASSWORD": "old", "NEW": "new"},
    )
    assert done.returncode == 0, done.stderr
    after = (home / "key.json").read_bytes()
    assert opens(home / "key.json", "new") == before
    assert (home / "key.json").stat().st_mode & 0o777 == 0o600
    assert {path.name for path in home.iterdir()} == {"key.json", "config.toml", "ca"}
    refused = run_bursar(
        *("key", "password", "--new-password-env", "NEW", "-c", str(home / "config.toml")),
        env={"BURSAR_PASSWORD": "old", "NEW": "newer"},
    )
    assert refused.returncode == 3
    assert "the password is wrong" in refused.stderr
    assert (home / "key.json").read_bytes() == after


def test_a_new_key(home: Path, run_bursar: Bursar) -> None:
    config, path = home / "config.toml", home / "key.json"
    old = keystore_address(path)
    assert old is not None
    arguments = ("key", "rotate", "--new-password-env", "NEW", "-c", str(config))
    done = run_bursar(*arguments, env={"NEW": "new"})
    assert done.returncode == 0, done.stderr
    assert opens(path, "new") == done.stdout.strip() != old
    assert opens(home / f"key-{old}.json", "old") == old


def test_not_while_a_channel_of_the_old_key_may_hold_a_deposit(home: Path, run_bursar: Bursar) -> None:
    config, path = home / "config.toml", home / "key.json"
    old = keystore_address(path)
    assert old is not None
    channel = samples.channel(scope=samples.scope(payer=old), authorised=0)

    async def put() -> None:
        store = ChannelStore(await open_backend("lmdb", load(config).store.directory))
        await store.propose(channel, (), max_channels=9)
        await store.close()

    asyncio.run(put())
    before = json.loads(path.read_text())
    refused = run_bursar("key", "rotate", "--new-password-env", "NEW", "-c", str(config), env={"NEW": "new"})
    assert refused.returncode == 5
    assert "bursar channels close --all" in refused.stderr
    assert json.loads(path.read_text()) == before


def test_a_key_that_is_kept_elsewhere(tmp_path: Path, run_bursar: Bursar) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[wallet]\nprivate_key_env = "X"\n')
    refused = run_bursar("key", "rotate", "-c", str(config))
    assert refused.returncode == 3
    assert "has to be changed there" in refused.stderr


def test_without_a_terminal_nothing_is_asked(home: Path, run_bursar: Bursar) -> None:
    refused = run_bursar("key", "password", "-c", str(home / "config.toml"), env={"BURSAR_PASSWORD": "old"})
    assert refused.returncode == 1
    assert "--new-password-env" in refused.stderr


def test_an_empty_password_changes_nothing(home: Path, run_bursar: Bursar) -> None:
    before = (home / "key.json").read_bytes()
    for variable in ("NEW", "NOT_SET"):
        done = run_bursar(
            *("key", "password", "--new-password-env", variable, "-c", str(home / "config.toml")),
            env={"BURSAR_PASSWORD": "old", "NEW": ""},
        )
        assert done.returncode == 3
    assert (home / "key.json").read_bytes() == before
    assert not (home / "password").exists()
