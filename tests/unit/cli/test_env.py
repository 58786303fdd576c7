from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from proxy_addon.cli.env import _fish, _sh, _systemd
from tests.unit.cli.conftest import Bursar, clean_environ

AWKWARD = {"A": "plain", "B": 'it\'s "quoted"', "C": "100% of\\it", "D": "$HOME `x`"}


def printed(script: str, **environ: str) -> dict[str, str]:
    """What a shell has after `script`."""
    done = subprocess.run(
        ["sh", "-c", f"{script}\nenv -0"], env=clean_environ(**environ), capture_output=True, check=True
    )
    return dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line)


def test_a_shell_takes_it(config: Path, run_bursar: Bursar) -> None:
    done = run_bursar("env", "--config", str(config))
    assert done.returncode == 0, done.stderr
    got = printed(done.stdout)
    assert got["HTTPS_PROXY"] == got["http_proxy"] == "http://127.0.0.1:8402"
    assert Path(got["SSL_CERT_FILE"]).is_file()
    assert "BURSAR" not in done.stdout
    taken_away = run_bursar("env", "--unset", "--config", str(config)).stdout
    assert not {"HTTPS_PROXY", "SSL_CERT_FILE", "NODE_OPTIONS"} & set(printed(f"{done.stdout}\n{taken_away}"))


def test_taken_twice_it_is_the_same(config: Path, run_bursar: Bursar) -> None:
    users = {"NODE_OPTIONS": "--no-warnings", "JAVA_TOOL_OPTIONS": "-Xmx1g"}
    once = run_bursar("env", "--config", str(config), env=users)
    environ = printed(once.stdout, **users)
    twice = run_bursar("env", "--config", str(config), env=environ)
    assert twice.stdout == once.stdout
    assert environ["NODE_OPTIONS"].startswith("--no-warnings --require=")
    assert environ["JAVA_TOOL_OPTIONS"].startswith("-Xmx1g -Dhttp.proxyHost=127.0.0.1")


def test_a_container_finds_all_of_its_paths(config: Path, run_bursar: Bursar) -> None:
    arguments = shlex.split(run_bursar("env", "--format", "docker", "--config", str(config)).stdout)
    volumes = [one.removeprefix("--volume=").split(":") for one in arguments if one.startswith("--volume=")]
    assert all(Path(host).is_file() and mode == "ro" for host, _, mode in volumes)
    variables = dict(
        one.removeprefix("--env=").split("=", 1) for one in arguments if one.startswith("--env=")
    )
    inside = {path for _, path, _ in volumes}
    assert variables["SSL_CERT_FILE"] in inside
    assert variables["NODE_OPTIONS"].removeprefix("--require=").strip('"') in inside
    assert sum(path in variables["JAVA_TOOL_OPTIONS"] for path in inside) == 1
    assert str(config.parent) not in json.dumps(variables)
    assert "--network=host" in arguments


def test_programs_and_services(config: Path, run_bursar: Bursar) -> None:
    as_json = json.loads(run_bursar("env", "--format", "json", "--config", str(config)).stdout)
    service = run_bursar("env", "--format", "systemd", "--config", str(config)).stdout.splitlines()
    assert service[0] == "[Service]"
    assert len(service) == 1 + len(as_json)
    assert 'Environment="https_proxy=http://127.0.0.1:8402"' in service


def test_awkward_values() -> None:
    assert {name: printed(_sh(AWKWARD))[name] for name in AWKWARD} == AWKWARD
    assert _systemd(AWKWARD).splitlines()[1:3] == [
        'Environment="B=it\'s \\"quoted\\""',
        'Environment="C=100%% of\\\\it"',
    ]
    assert _fish({"B": AWKWARD["B"], "C": AWKWARD["C"]}).splitlines() == [
        "set -gx B 'it\\'s \"quoted\"';",
        "set -gx C '100% of\\\\it';",
    ]


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_takes_it() -> None:
    script = f"{_fish(AWKWARD)}\nenv -0"
    done = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, check=True)
    assert (
        AWKWARD.items()
        <= dict(line.split("=", 1) for line in done.stdout.decode().split("\0") if line).items()
    )


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        ('"0.0.0.0"', "http://127.0.0.1:8402"),
        ('"::"', "http://[::1]:8402"),
        ('"192.0.2.7"', "http://192.0.2.7:8402"),
    ],
)
def test_an_address_that_can_be_connected_to(config: Path, run_bursar: Bursar, listen: str, url: str) -> None:
    text = config.read_text()
    assert 'listen_host = "127.0.0.1"' in text
    config.write_text(text.replace('listen_host = "127.0.0.1"', f"listen_host = {listen}"))
    got = json.loads(run_bursar("env", "--format", "json", "--config", str(config)).stdout)
    assert got["all_proxy"] == url


@pytest.mark.parametrize(
    "url", ["here", "127.0.0.1:8402", "http://u:pw@h", "socks5://h:1", "http://h:port", "http://[h:1"]
)
def test_half_an_address_is_no_proxy(config: Path, run_bursar: Bursar, url: str) -> None:
    refused = run_bursar("env", "--url", url, "--config", str(config))
    assert refused.returncode == 2
    assert "such as http://127.0.0.1:8402" in refused.stderr
    assert "pw@" not in refused.stderr
    assert refused.stdout == ""


def test_a_port_that_is_new_each_time_has_to_be_named(config: Path, run_bursar: Bursar) -> None:
    config.write_text(config.read_text().replace("listen_port = 8402", "listen_port = 0"))
    refused = run_bursar("env", "--config", str(config))
    assert refused.returncode == 3
    assert "--url http://127.0.0.1:PORT" in refused.stderr
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        told = run_bursar("env", "--url", url, "--config", str(config))
        assert f"export http_proxy={url}" in told.stdout
        assert told.stderr == ""
    silent = run_bursar("env", "--url", url, "--config", str(config))
    assert "start it with `bursar run`" in silent.stderr
