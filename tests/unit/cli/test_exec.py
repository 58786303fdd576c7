"""`bursar exec` as a process: exit codes, signals, the environment, what is told in the end."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.cli.conftest import KEY, KEY_ENV, ROOT, Bursar, clean_environ, command_line


def start(config: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command_line("exec", "-c", str(config), "--", *arguments),
        env=clean_environ(PYTHONPATH=str(ROOT), **{KEY_ENV: KEY}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_output_exit_code_and_environment_pass_through(config: Path, run_bursar: Bursar) -> None:
    script = "import json, os, sys; json.dump(dict(os.environ), sys.stdout); sys.exit(7)"
    env = {
        "no_proxy": "internal.example",
        "HTTPS_PROXY": "http://corp:secret@127.0.0.1:1",
        "BURSAR_PASSWORD": "x",
    }
    done = run_bursar("exec", "-c", str(config), "--", sys.executable, "-c", script, env=env)
    assert done.returncode == 7, done.stderr
    seen = json.loads(done.stdout)
    url = seen["http_proxy"]
    assert url.startswith("http://127.0.0.1:")
    assert {seen[name] for name in ("HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY")} == {url}
    assert seen["no_proxy"] == seen["NO_PROXY"] == "internal.example"
    assert KEY_ENV not in seen
    assert "BURSAR_PASSWORD" not in seen
    assert done.stderr.splitlines() == [
        "bursar: HTTPS_PROXY not used: the proxy connects directly",
        "bursar: nothing was paid",
    ]


def test_options_of_the_command_are_its_own(config: Path, run_bursar: Bursar) -> None:
    script = "import sys; print(sys.argv[1:])"
    arguments = (sys.executable, "-c", script, "--json", "-q", "--", "--config")
    done = run_bursar("exec", "--quiet", "-c", str(config), *arguments)
    assert done.stdout == "['--json', '-q', '--', '--config']\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("name", "code"), [("/nonexistent/tool", 127), ("/", 126)])
def test_a_command_that_does_not_start(name: str, code: int, config: Path, run_bursar: Bursar) -> None:
    done = run_bursar("exec", "-c", str(config), "--", name)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1].startswith(f"bursar: {name}: ")


def test_the_summary_as_json(config: Path, run_bursar: Bursar) -> None:
    done = run_bursar("exec", "-c", str(config), "--json", "--", "true")
    assert json.loads(done.stderr) == {
        "tokens": [],
        "channels": [],
        "opened": [],
        "closed": [],
        "refused": [],
        "shadowed": 0,
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_for_us_is_one_for_the_command(number: signal.Signals, config: Path) -> None:
    script = (
        "import signal, sys, time\n"
        f"signal.signal({int(number)}, lambda *a: sys.exit(42))\n"
        "print('here', flush=True)\n"
        "time.sleep(60)"
    )
    process = start(config, sys.executable, "-c", script)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 42, told


def test_a_terminals_interrupt_reaches_the_command_once(config: Path) -> None:
    """Ctrl-C is for the whole foreground: were it handed on as well, the command would get it twice."""
    script = (
        "import signal, sys, time\n"
        "got = []\n"
        "signal.signal(signal.SIGINT, lambda *a: got.append(1))\n"
        "print('here', flush=True)\n"
        "end = time.monotonic() + 60\n"
        "while not got and time.monotonic() < end: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "sys.exit(40 + len(got))"
    )
    arguments = command_line("exec", "-q", "-c", str(config), "--", sys.executable, "-c", script)
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(arguments[0], list(arguments), clean_environ(PYTHONPATH=str(ROOT), **{KEY_ENV: KEY}))
    seen = b""
    while b"here" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 41


def test_a_command_that_a_signal_ended_ends_us_alike(config: Path, run_bursar: Bursar) -> None:
    done = run_bursar("exec", "-c", str(config), "--", "sh", "-c", "kill -TERM $$")
    assert done.returncode == -signal.SIGTERM
    assert "nothing was paid" in done.stderr


@pytest.mark.fresh  # it looks at command lines and at all children
def test_the_proxy_ends_with_us_even_when_we_are_killed(config: Path) -> None:
    process = start(config, "sh", "-c", "echo $PPID; ps -o pid= --ppid $PPID; echo; sleep 60")
    assert process.stdout is not None
    children: list[int] = []
    while line := process.stdout.readline().strip():
        children.append(int(line))
    parent, *others = children
    assert parent == process.pid
    proxies = [pid for pid in others if "--lifeline-fd" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(proxies) == 1
    process.kill()
    process.wait()
    try:
        assert gone(proxies[0])
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the command that we left behind


def test_a_proxy_that_does_not_start_says_why(config: Path, run_bursar: Bursar) -> None:
    done = run_bursar("exec", "-c", str(config), "--", "echo", "never", env={KEY_ENV: "0x12"})
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("bursar: the proxy did not start: ")
    assert "64 hex digits" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_config_no_proxy(tmp_path: Path, run_bursar: Bursar) -> None:
    done = run_bursar("exec", "-c", str(tmp_path / "none.toml"), "--", "true")
    assert done.returncode == 3
    assert done.stderr.startswith(f"bursar: no config at {tmp_path / 'none.toml'}; run `bursar init`")
