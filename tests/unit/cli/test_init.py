from __future__ import annotations

import contextlib
import json
import os
import pty
import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from proxy_addon.cli.main import bursar
from proxy_addon.cli.template import NETWORKS, Limits, WalletChoice, render
from proxy_addon.config import Settings, load, parse
from proxy_addon.core.policy import SpendPolicy
from proxy_addon.keystore import password_from_env, password_from_file, signer_from_keystore
from tests.unit.cli.conftest import KEY, KEY_ENV, ROOT, cheap_encryption, clean_environ, command_line
from tests.unit.methods import samples


def init(runner: CliRunner, home: Path, *arguments: str, env: dict[str, str | None] | None = None) -> Result:
    return runner.invoke(bursar, ["init", "--home", str(home), "--non-interactive", *arguments], env=env)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_home_is_private_and_whole(runner: CliRunner, tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    done = init(runner, home, "--host", "api.example.com", "--max-price", "0.05", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    settings = load(home / "config.toml")
    assert settings.wallet.keystore == home / "key.json"
    assert settings.wallet.password_file == home / "password"
    signer = signer_from_keystore(home / "key.json", password_from_file(home / "password"))
    assert told["address"] == signer.address
    assert told["chain"] == "eip155:4217"
    assert settings.policy.hosts[0].host == "api.example.com"
    assert settings.policy.hosts[0].max_price == "0.05"
    assert {name: mode(home / name) for name in (".", "config.toml", "key.json", "password", "ca")} == {
        ".": 0o700,
        "config.toml": 0o600,
        "key.json": 0o600,
        "password": 0o600,
        "ca": 0o700,
    }
    assert mode(home / "ca" / "mitmproxy-ca.pem") == 0o600
    assert (home / "ca" / "mitmproxy-ca-cert.pem").read_bytes().startswith(b"-----BEGIN CERTIFICATE-----")
    password = (home / "password").read_text().strip()
    assert password not in done.output


def test_nothing_is_overwritten(runner: CliRunner, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert init(runner, home, "--key-env", KEY_ENV, env={KEY_ENV: KEY}).exit_code == 0
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    again = init(runner, home)
    assert again.exit_code == 3
    assert "config.toml exists and is not overwritten" in again.stderr
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_key_without_a_config_is_kept_too(runner: CliRunner, tmp_path: Path) -> None:
    home = tmp_path / "home"
    env: dict[str, str | None] = {"BURSAR_PASSWORD": "correct horse"}
    with cheap_encryption():
        assert init(runner, home, env=env).exit_code == 0
    (home / "config.toml").unlink()
    key = (home / "key.json").read_bytes()
    refused = init(runner, home, env=env)
    assert refused.exit_code == 3
    assert "--existing-key goes on with it" in refused.stderr
    wrong = init(runner, home, "--existing-key", env={"BURSAR_PASSWORD": "battery"})
    assert wrong.exit_code == 3
    assert "the password is wrong" in wrong.stderr
    assert not (home / "config.toml").exists()
    adopted = init(runner, home, "--existing-key", "--json", env=env)
    assert adopted.exit_code == 0, adopted.output
    assert (home / "key.json").read_bytes() == key
    assert json.loads(adopted.stdout)["address"] == "0x" + json.loads(key)["address"].lower().removeprefix(
        "0x"
    )


def test_a_key_is_imported_under_the_password_in_the_environment(runner: CliRunner, tmp_path: Path) -> None:
    home, source = tmp_path / "home", tmp_path / "key.txt"
    source.write_text(samples.KEY + "\n")
    with cheap_encryption():
        done = init(runner, home, "--import-key", str(source), env={"BURSAR_PASSWORD": "correct horse"})
    assert done.exit_code == 0, done.output
    assert samples.ADDRESS in done.stdout
    assert not (home / "password").exists()
    assert load(home / "config.toml").wallet.password_env == "BURSAR_PASSWORD"
    password = password_from_env("P", {"P": "correct horse"})
    assert signer_from_keystore(home / "key.json", password).address == samples.ADDRESS
    assert samples.KEY.removeprefix("0x") not in "".join(
        path.read_text() for path in home.iterdir() if path.is_file()
    )


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--max-price", "ten"], 3, "policy.hosts[0].max_price"),
        (["--host", "https://api.example.com/"], 3, "policy.hosts[1].host"),
        (["--import-key", "/nonexistent"], 3, "cannot be read"),
        (["--import-key", "/dev/null"], 3, "64 hex digits"),
        (["--import-key", "x", "--key-env", "Y"], 2, "exclude each other"),
        (["--existing-key"], 3, "key.json"),
        (
            ["--key-env", "two words"],
            3,
            "wallet.private_key_env: expected the name of an environment variable",
        ),
        (["--key-env", KEY], 3, "never the secret itself"),
        (["--import-key", KEY], 3, "never the key itself"),
        (["--import-key", KEY.removeprefix("0x")], 3, "a shell keeps what was typed"),
    ],
)
def test_what_is_wrong_is_said_before_anything_exists(
    arguments: list[str], code: int, told: str, runner: CliRunner, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = init(runner, home, "--host", "api.example.com", *arguments)
    assert done.exit_code == code, done.output
    assert told in done.stderr
    assert KEY.removeprefix("0x") not in done.output
    assert not (home / "config.toml").exists()
    assert not home.exists() or not list(home.iterdir())


def test_limits_are_checked_before_there_is_a_host(runner: CliRunner, tmp_path: Path) -> None:
    done = init(runner, tmp_path / "home", "--max-price", "-1")
    assert done.exit_code == 3, done.output
    assert "policy.hosts[0].max_price: the value is '-1'" in done.stderr
    assert not (tmp_path / "home").exists()


def test_who_has_a_test_network_is_told_of_the_faucet(runner: CliRunner, tmp_path: Path) -> None:
    done = init(runner, tmp_path / "home", "--network", "moderato", "--key-env", "NOT_SET_HERE")
    assert done.exit_code == 0, done.output
    assert "`bursar faucet`" in done.stdout


def test_an_open_directory_is_refused(runner: CliRunner, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    done = init(runner, home)
    assert done.exit_code == 3
    assert f"chmod 700 {home}" in done.stderr
    assert not list(home.iterdir())


def test_the_key_in_the_environment_is_kept_nowhere(runner: CliRunner, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert init(runner, home, "--key-env", KEY_ENV, env={KEY_ENV: samples.KEY}).exit_code == 0
    assert load(home / "config.toml").wallet.private_key_env == KEY_ENV
    assert sorted(os.listdir(home)) == ["ca", "config.toml"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("hosts", [(), ("api.example.com", "*.example.org")])
def test_the_config_says_every_key(network: str, hosts: tuple[str, ...]) -> None:
    """Set, or in a comment that shows how: the file is the reference that a user has at hand."""
    wallet = WalletChoice(keystore=Path('/a "quoted" home/key.json'), password_env="P")
    text = render(
        NETWORKS[network],
        wallet,
        Path("/home/x/store"),
        hosts,
        Limits(),
        total_per_day="5.00",
        lifetime="100.00",
    )
    settings = parse(tomllib.loads(text), "test")
    assert settings.wallet.keystore == wallet.keystore
    assert isinstance(settings.spend_policy(), SpendPolicy)
    assert [host.host for host in settings.policy.hosts] == list(hosts)
    assert list(settings.chains) == [NETWORKS[network].chain]
    keys = {name for table in _tables(Settings) for name in table}
    missing = {key for key in keys if not any(_sets(line, key) for line in text.splitlines())}
    assert missing == set()


def _tables(model: type[Settings]) -> list[set[str]]:
    schema = model.model_json_schema()
    tables = [schema, *schema["$defs"].values()]
    leaves = {"hosts", "chains", "wallet", "store", "proxy", "egress", "policy", "watchdog", "mode"}
    leaves |= {"clients", "breaker", "limits"}
    inner = {"hosts", "clients", "voucher_key"}
    return [set(table["properties"]) - (leaves if table is schema else inner) for table in tables]


def _sets(line: str, key: str) -> bool:
    return line.removeprefix("# ").startswith(f"{key} = ") or line.startswith(f'{key} = "')


def on_a_terminal(arguments: list[str], answers: list[tuple[bytes, bytes]]) -> str:
    """The command on a terminal of its own: each question is waited for, and then answered."""
    ours, its = pty.openpty()
    with subprocess.Popen(
        command_line(*arguments),
        env=clean_environ(PYTHONPATH=str(ROOT), TERM="dumb"),
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    ) as process:
        os.close(its)
        told = b""
        for question, answer in answers:
            while question not in told:
                told += os.read(ours, 4096)
            told = told.rpartition(question)[2]
            os.write(ours, answer + b"\n")
        with contextlib.suppress(OSError):  # Linux says so at the end of a terminal
            while chunk := os.read(ours, 4096):
                told += chunk
        os.close(ours)
        assert process.wait(60) == 0, told.decode()
    return told.decode()


def test_on_a_terminal_each_question_says_what_its_answer_decides(tmp_path: Path) -> None:
    home = tmp_path / "home"
    told = on_a_terminal(
        ["init", "--home", str(home), "--max-per-day", "0.70"],
        [
            (b"Network (tempo, moderato) [tempo]: ", b"moderato"),
            (b"Hosts (empty: none for now): ", b"api.example.com, *.example.org"),
            (b"Per request [0.10]: ", b"lots"),
            (b"Per request [0.10]: ", b"0.03"),
            (b"random one, kept beside it): ", b"one"),
            (b"The same again: ", b"another"),
            (b"random one, kept beside it): ", b""),
        ],
    )
    assert "Tempo Moderato" in told
    settings = load(home / "config.toml")
    assert [(one.host, one.max_price, one.max_per_day) for one in settings.policy.hosts] == [
        ("api.example.com", "0.03", "0.70"),
        ("*.example.org", "0.03", "0.70"),
    ]
    assert list(settings.chains) == ["eip155:42431"]
