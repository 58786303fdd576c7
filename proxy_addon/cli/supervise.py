"""Two processes side by side: the proxy, and the command that it serves.

The command stays in our process group, so that a terminal's keys reach it as if it ran alone. The proxy has a
session of its own: Ctrl-C ends the command, and the proxy still books its answers. Signals sent to us alone go
to the command. When we die, by whatever means, the proxy's lifeline ends and so does the proxy.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy_addon.cli.failure import ExitCode, Failure

START_LIMIT_S: Final = 60.0
STOP_LIMIT_S: Final = 30.0
"""How long the proxy may take to finish what is in flight; a crash-safe ledger makes killing it no loss."""

_WATCHED: Final = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
)
BOOT: Final = "import sys; sys.path.append(sys.argv.pop(1)); from proxy_addon.cli.main import main; main()"
"""A `bursar` of our own, in a new interpreter: its first argument is where the code is."""


@dataclass(slots=True)
class ProxyProcess:
    """A running `bursar run` of our own."""

    process: subprocess.Popen[bytes]
    lifeline: int
    log: Path | None
    url: str = ""
    ledger: Path | None = None

    def stop(self) -> int:
        """End it, and wait until its ledger is complete. Returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self.lifeline >= 0:
            os.close(self.lifeline)
            self.lifeline = -1
        return code

    def last_words(self) -> str:
        """The last line of its log that says something."""
        if self.log is None:
            return ""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return lines[-1].removeprefix("bursar: ") if lines else ""


def start_proxy(
    config: Path, environ: Mapping[str, str], log: Path | None, *, inherit: tuple[int, ...] = ()
) -> ProxyProcess:
    """A proxy on a port of its own, listening when this returns. Raises `Failure` with its last words.

    It inherits the descriptors in `inherit`; here they are closed, so that no other child does.
    """
    ready_read, ready_write = os.pipe()
    life_read, life_write = os.pipe()
    root = str(Path(__file__).resolve().parents[2])
    # -P: a `store` or `click.py` in the current directory is the user's, not ours.
    arguments = [sys.executable, "-P", "-c", BOOT, root, "run", "--config", str(config)]
    arguments += ["--listen", "127.0.0.1:0", "--ready-fd", str(ready_write), "--lifeline-fd", str(life_read)]
    output = (
        subprocess.DEVNULL if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    )
    try:
        process = subprocess.Popen(  # noqa: S603 (our own interpreter and arguments)
            arguments,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(ready_write, life_read, *inherit),
            start_new_session=True,
        )
    except OSError as error:
        if inherit and error.errno == errno.EBADF:
            why = f"the config reads a secret from fd:{inherit[0]}, which is not open"
            raise Failure(why, ExitCode.CONFIG) from None
        raise
    finally:
        for number in (ready_write, life_read, *inherit):
            with contextlib.suppress(OSError):
                os.close(number)
        if output >= 0:
            os.close(output)
    proxy = ProxyProcess(process, life_write, log)
    try:
        ready = _read_ready(ready_read)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        os.close(ready_read)
    if not ready:
        code = proxy.stop()
        words = proxy.last_words() or f"it ended with code {code}"
        known = code in {int(one) for one in ExitCode} and code != ExitCode.OK
        raise Failure(f"the proxy did not start: {words}", ExitCode(code) if known else ExitCode.FAILED)
    message = json.loads(ready)
    proxy.url = message["url"]
    proxy.ledger = None if message["ledger"] is None else Path(message["ledger"])
    return proxy


def _read_ready(descriptor: int) -> bytes:
    """What the proxy says once it listens; empty if it ended before, or took too long."""
    deadline = time.monotonic() + START_LIMIT_S
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            return b""
        part = os.read(descriptor, 65536)
        if not part:
            break
        data += part
    return data


def run_command(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run it to its end, handing on signals. Returns its wait status. Raises `OSError` if it cannot be started."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    try:
        pid = os.posix_spawnp(
            arguments[0],
            list(arguments),
            dict(environ),
            setsigmask=before,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them; a program expects the default
        )
        while True:
            number = _next_signal()
            if number == signal.SIGCHLD:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    return status
            elif number:
                os.kill(pid, number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next_signal() -> int:
    """The next signal for us alone, or SIGCHLD; 0 for one that the terminal sent to the command as well."""
    if hasattr(signal, "sigwaitinfo"):
        info = signal.sigwaitinfo(_WATCHED)
        from_kernel = info.si_code > 0 and info.si_signo != signal.SIGCHLD
        return 0 if from_kernel else info.si_signo
    number = signal.sigwait(_WATCHED)
    if number in (signal.SIGINT, signal.SIGQUIT) and _in_foreground():
        return 0
    return number


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def end_as(status: int) -> int:
    """The exit code of a wait status; a command that a signal ended ends us by the same signal."""
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    number = os.WTERMSIG(status)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    sys.stdout.flush()
    sys.stderr.flush()
    os.kill(os.getpid(), number)
    return 128 + number
