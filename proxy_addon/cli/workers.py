"""`bursar run --workers N`: one process that listens, and N that serve. This is the first one.

It knows nothing of money. It asks for the password, binds the port, starts the workers (each is a `bursar run` of its
own on the same store), and hands each client's connection to one of them (`spreading` says to which). A worker that
dies is started again; one that dies again and again ends the whole. When this process dies, by whatever means, the
workers' sockets to it end, and they stop as at a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click

from proxy_addon.cli import spreading
from proxy_addon.cli.accepting import Acceptor, bind
from proxy_addon.cli.ca import ensure_ca
from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import home_of
from proxy_addon.cli.supervise import BOOT, START_LIMIT_S
from proxy_addon.cli.wallet import descriptors, missing_password
from proxy_addon.config import Settings
from proxy_addon.hardening import harden
from proxy_addon.mitm.handing import Welcome
from proxy_addon.secret_sources import read_descriptor

_ROOT: Final = Path(__file__).resolve().parents[2]

WINDOW_S: Final = 60.0
TOO_OFTEN: Final = 5
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 10.0
_STOP_MARGIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Workers:
    """The proxy is up: where, and which processes serve."""

    url: str
    pid: int
    ledger: str  # the directory: each worker has a file of its own in it
    workers: tuple[int, ...]


@dataclass(slots=True)
class Restarts:
    """When a worker that has died is started again."""

    _died_at: deque[float] = field(default_factory=deque)  # seconds

    def pause(self, now: float) -> float | None:
        """It has died. So many seconds until it is started again; None if it never should be."""
        self._died_at.append(now)
        while self._died_at[0] <= now - WINDOW_S:
            self._died_at.popleft()
        often = len(self._died_at)
        return None if often > TOO_OFTEN else min(_FIRST_PAUSE_S * 2 ** (often - 1), _LONGEST_PAUSE_S)


@dataclass(frozen=True)
class _Started:
    """A worker that is not up yet: it does nothing before its `Welcome`."""

    worker: int
    process: asyncio.subprocess.Process
    channel: socket.socket
    ready: asyncio.StreamReader
    transport: asyncio.ReadTransport

    def close(self) -> None:
        """It ends by itself."""
        self.transport.close()
        self.channel.close()


class Supervisor:
    """One per command. `run` is all of it."""

    def __init__(
        self,
        config: Path,
        settings: Settings,
        *,
        number: int,
        host: str,
        port: int,
        extra: Sequence[str],
        tell: Callable[[Workers], None],
        lifeline: int | None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._number = number
        self._host = host
        self._port = port
        self._extra = extra
        self._tell = tell
        self._lifeline = lifeline
        self._policy = settings.spend_policy()
        self._log_file = _log_file()  # asked for now: a hardened process may not look at itself
        self._passwords: dict[str, str] = {}
        self._texts: dict[int, str] = {}
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._failure: Failure | None = None

    async def run(self) -> int:
        """Until a signal, or the end of the lifeline. Returns the exit code; raises `Failure`."""
        self._prepare()
        sockets = bind(self._host, self._port)
        self._port = sockets[0].getsockname()[1]
        linger_ms = 1000 * (self._settings.proxy.release_idle_s + 2)
        self._acceptor = Acceptor(sockets, spreading.Spreader(linger_ms), self._width)
        self._watch()
        keepers: list[asyncio.Task[int | None]] = []
        try:
            code = await self._begin_all()
            if code is not None:
                return ExitCode.OK if self._stopping.is_set() else code
            if not self._stopping.is_set():
                self._announce()
            keepers = [asyncio.create_task(self._keep(worker)) for worker in self._processes]
            await self._stopping.wait()
        finally:
            self._halt()
            codes = await self._stop(keepers)
        if self._failure is not None:
            raise self._failure
        return ExitCode.FAILED if any(codes) else ExitCode.OK

    # -- before

    def _prepare(self) -> None:
        """All that is asked, read or made once. Raises `Failure`."""
        if self._settings.store.backend == "memory" and self._settings.mode != "shadow":
            raise Failure(
                'store.backend = "memory" is in one process: --workers needs a store that all share, such as "lmdb"',
                ExitCode.CONFIG,
            )
        self._passwords = missing_password(self._settings)
        if self._settings.mode != "shadow":
            for number in dict.fromkeys(descriptors(self._settings.wallet)):
                self._texts[number] = read_descriptor(number, "a secret of [wallet]")
                _keep_open(number)
        harden()
        ensure_ca(home_of(self._config).ca)
        for line in spreading.too_narrow(self._policy, self._number):
            self._say(self._settings.locate(line))

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if self._lifeline is not None:
            loop.add_reader(self._lifeline, self._parent_gone)

    def _announce(self) -> None:
        self._acceptor.listen()
        host, port = self._acceptor.addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        pids = tuple(self._processes[worker].pid for worker in range(self._number))
        ledger = str(self._settings.store.ledger)
        self._tell(Workers(f"http://{shown}:{port}", os.getpid(), ledger, pids))

    def _width(self, to: spreading.Destination) -> int | None:
        return spreading.widths(self._policy, self._number, to)

    # -- workers

    async def _begin_all(self) -> int | None:
        """All are there, and wait for a word; the first one finds out what is wrong, says it once, and makes what a
        new home lacks. An exit code if one of them ended instead."""
        started = [await self._start(worker) for worker in range(self._number)]
        code = await self._begin(started[0])
        if code is not None or self._stopping.is_set():
            for one in started[1:]:
                one.close()
            return code
        codes = await asyncio.gather(*(self._begin(one) for one in started[1:]))
        failed = [code for code in codes if code is not None]
        return (max(failed) if max(failed) >= 0 else ExitCode.FAILED) if failed else None

    async def _begin(self, started: _Started) -> int | None:
        """Let it begin, and wait until it serves. Its exit code if it ended instead, or was told to."""
        worker = started.worker
        with contextlib.suppress(OSError):  # it has ended already
            # So little fits into the socket, whoever reads it when.
            Welcome(self._acceptor.addresses, self._passwords, self._texts).send(started.channel)
        if self._stopping.is_set():  # told to stop while there was nobody yet to hand that on to
            started.process.terminate()
        try:
            async with asyncio.timeout(START_LIMIT_S):
                ready = await started.ready.read()
        except TimeoutError:
            self._say(f"worker {worker + 1} was not ready in {START_LIMIT_S:g} s, and is killed")
            started.process.kill()
            ready = b""
        finally:
            started.transport.close()
        if not ready:
            code = await started.process.wait()
            started.channel.close()
            del self._processes[worker]
            return code
        self._acceptor.join(worker, started.channel)
        return None

    async def _start(self, worker: int) -> _Started:
        ours, theirs = socket.socketpair()
        read, write = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-c", BOOT, str(_ROOT)),
                *("run", "--config", str(self._config), "--listen", f"{_bracketed(self._host)}:{self._port}"),
                *("--ready-fd", str(write), "--worker-fd", str(theirs.fileno()), "--", *self._extra),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=(write, theirs.fileno(), *self._texts),
                start_new_session=True,  # a terminal's Ctrl-C comes to us, and from us, once
            )
            self._processes[worker] = process
        except BaseException:
            ours.close()
            os.close(read)
            raise
        finally:
            theirs.close()
            os.close(write)
        ready = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(ready), os.fdopen(read, "rb", 0)
        )
        return _Started(worker, process, ours, ready, transport)

    async def _keep(self, worker: int) -> int | None:
        """Start it again whenever it dies. Returns its exit code once all are told to stop."""
        try:
            return await self._look_after(worker)
        except (
            Exception
        ) as error:  # no process or descriptor to be had: better an end than one worker less, unseen
            self._failure = Failure(f"worker {worker + 1} cannot be started again: {error}")
            self._halt()
            return ExitCode.FAILED

    async def _look_after(self, worker: int) -> int | None:
        restarts = Restarts()
        while True:
            code: int | None = await self._processes[worker].wait()
            self._acceptor.leave(worker)
            while code is not None:
                if self._stopping.is_set():
                    return code
                pause = restarts.pause(time.monotonic())
                if pause is None:
                    self._give_up(worker, code)
                    return code
                self._say(f"worker {worker + 1} {_ended(code)}; it is started again")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                if self._stopping.is_set():
                    return None  # there is none to wait for
                code = await self._begin(await self._start(worker))

    def _give_up(self, worker: int, code: int) -> None:
        where = self._log_file or "the lines above"
        known = code in {int(one) for one in ExitCode} and code != ExitCode.OK
        self._failure = Failure(
            f"worker {worker + 1} {_ended(code)}, and has died {TOO_OFTEN + 1} times within {WINDOW_S:g} s: all are"
            f" stopped. Why it died: see {where}",
            ExitCode(code) if known else ExitCode.FAILED,
        )
        self._halt()

    def _say(self, text: str) -> None:
        click.echo(f"bursar: {text}", err=True)

    # -- the end

    def _signalled(self) -> None:
        """The first one asks all to finish, the second one hurries them, as with a single process; so on."""
        if self._stopping.is_set():
            self._terminate()
        self._halt()

    def _parent_gone(self) -> None:
        assert self._lifeline is not None
        asyncio.get_running_loop().remove_reader(self._lifeline)
        self._halt()

    def _halt(self) -> None:
        """No client comes in any more; then all workers are told, once."""
        if not self._stopping.is_set():
            self._stopping.set()
            self._acceptor.close()
            self._terminate()

    def _terminate(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    async def _stop(self, keepers: list[asyncio.Task[int | None]]) -> list[int]:
        """Wait for all workers. Returns the exit codes that are none of an ordinary end."""
        codes: list[int | BaseException | None]
        try:
            async with asyncio.timeout(self._settings.proxy.drain_s + _STOP_MARGIN_S):
                if keepers:
                    codes = await asyncio.gather(*keepers, return_exceptions=True)
                else:
                    waits = (process.wait() for process in list(self._processes.values()))
                    codes = list(await asyncio.gather(*waits))
        except TimeoutError:
            self._say("workers that did not stop are killed; what they had under way stays counted")
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            return [ExitCode.FAILED]
        for code in codes:
            if isinstance(code, BaseException):
                raise code
        # A worker that was not up yet, and one that was hurried twice, end by the signal itself.
        return [code for code in codes if isinstance(code, int) and code and code != -signal.SIGTERM]


def supervise_workers(
    config: Path,
    settings: Settings,
    *,
    number: int,
    host: str,
    port: int,
    extra: Sequence[str],
    tell: Callable[[Workers], None],
    lifeline: int | None,
) -> int:
    """The whole of it. Returns the exit code; raises `Failure`."""
    supervisor = Supervisor(
        config, settings, number=number, host=host, port=port, extra=extra, tell=tell, lifeline=lifeline
    )
    return asyncio.run(supervisor.run())


def _ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def _keep_open(number: int) -> None:
    """So that no other file of ours gets this number: workers inherit it, and read their own copy there."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)


def _bracketed(host: str) -> str:
    """For ``--listen``, where nothing would mean loopback."""
    host = host or "0.0.0.0"  # noqa: S104 (as the config says)
    return f"[{host}]" if ":" in host else host


def _log_file() -> str:
    """Where this process's standard error goes, if that is a file that has a name."""
    with contextlib.suppress(OSError):
        name = os.readlink("/proc/self/fd/2")
        if name.startswith("/") and Path(name).is_file():
            return name
    return ""
