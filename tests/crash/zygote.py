"""A process that has imported everything, and opened nothing: it forks the payers that are killed.

``python -m tests.crash.zygote FD``. A job comes with the socket that its child speaks over; what is told back is
which process it became, and how that ended. Nothing in here has threads, an event loop, or a store that is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import pickle
import select
import signal
import socket
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
MOST = 1 << 20


class Zygote:
    """The side that orders: ``async with Zygote() as zygote: child = await zygote.fork(job)``."""

    def __init__(self) -> None:
        self._control: socket.socket
        self._process: asyncio.subprocess.Process
        self._numbers = itertools.count()
        self._forked: dict[int, asyncio.Future[Child]] = {}
        self._alive: dict[int, Child] = {}

    async def __aenter__(self) -> Zygote:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.crash.zygote", str(theirs.fileno())),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        self._control.setblocking(False)
        asyncio.get_running_loop().add_reader(self._control, self._told)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        await self._process.wait()

    async def fork(self, job: object) -> Child:
        """A child with this job; see `life.live` for what it does."""
        ours, theirs = socket.socketpair()
        number = next(self._numbers)
        forked = self._forked[number] = asyncio.get_running_loop().create_future()
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        socket.send_fds(self._control, [pickle.dumps((number, job))], [theirs.fileno()])
        theirs.close()
        child: Child = await forked
        child.reader, child.writer = reader, writer
        return child

    def _told(self) -> None:
        try:
            data = self._control.recv(MOST)
        except ConnectionError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._control)
            gone = ConnectionError("the fork server has ended")
            waits: list[asyncio.Future[Any]] = [*self._forked.values()]
            waits += [child.ended for child in self._alive.values()]
            for waiting in waits:
                if not waiting.done():
                    waiting.set_exception(gone)
            return
        match pickle.loads(data):
            case ("forked", number, pid):
                child = self._alive[pid] = Child(pid)
                self._forked.pop(number).set_result(child)
            case ("ended", pid, status):
                self._alive.pop(pid).ended.set_result(os.waitstatus_to_exitcode(status))


class Child:
    """One child. `ended` has its exit code, negative for a signal's number."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def ask_where(self) -> None:
        """It tells what each of its tasks waits for."""
        self._signal(signal.SIGUSR1)

    def _signal(self, number: int) -> None:
        if not self.ended.done():  # its number is still its own, or was a moment ago
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


# -- the other side


def serve(control: socket.socket) -> None:
    from tests.crash import life

    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    life.warm_up()
    gc.collect()
    gc.freeze()  # what is here stays shared with the children
    while True:
        waited: list[Any] = [control, woken]
        ready, _, _ = select.select(waited, [], [])
        if woken in ready:
            os.read(woken, 4096)
            while (ended := _reap()) is not None:
                control.send(pickle.dumps(("ended", *ended)))
        if control in ready:
            data, fds, _, _ = socket.recv_fds(control, MOST, 1)
            if not data:
                return
            number, job = pickle.loads(data)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                control.close()
                os.close(woken)
                os.close(wake)
                _live(life, fds[0], job)
            os.close(fds[0])
            control.send(pickle.dumps(("forked", number, pid)))


def _reap() -> tuple[int, int] | None:
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def _live(life: Any, fd: int, job: object) -> None:
    code = 2
    gc.disable()  # a collection touches every page
    try:
        asyncio.run(life.live(fd, job))
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who orders hears of it, and closes
    serve(socket.socket(fileno=int(sys.argv[1])))
