"""Python processes for tests that start in a hundredth of the time: forked by one that has imported everything.

For the tests of some rooms (see `conftest`), what starts a Python program (a test, asyncio, the product) gets a true
child all the same: a process with a number, a session, an environment, descriptors, limits and signals of its own,
that runs the same entry point, is killed by ``kill -9`` and waited for by ``waitpid``. The process that forks it has
imported modules, and has opened nothing: no store, no socket but the one it is ordered over, no thread, no event loop.

What is not as in a new process: the imports are done, so what they do was done there; hash seeds are shared; `ps`,
``/proc/PID/cmdline`` and ``/proc/PID/environ`` show the forking process's own. A test that is about any of these,
about memory or about starting is marked ``fresh``. Where this cannot work, everything is started anew: not on Linux,
for programs that are not Python's, with options or variables that act when the interpreter starts, when coverage
measures the processes that tests start. ``BURSAR_TESTS_FORK=0`` starts all of them anew.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import os
import pickle
import pkgutil
import resource
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
MITMDUMP: Final = Path(sys.executable).with_name("mitmdump")
POSSIBLE: Final = (
    sys.platform == "linux"
    and os.environ.get("BURSAR_TESTS_FORK") != "0"
    and not any(name.startswith("COVERAGE_PROCESS") for name in os.environ)
)

_LARGEST: Final = 150_000
"""An order in one message, in bytes."""
_MOST_SERVERS: Final = 2
_BOOT: Final = "import sys; sys.path.insert(0, sys.argv.pop(1)); from tests.forked import main; main()"
_PR_SET_CHILD_SUBREAPER: Final = 36
_LIMITS: Final = tuple(
    sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
)
# What acts when the interpreter, the C library or a module of ours starts.
_EARLY: Final = ("PYTHON", "LC_", "LANG", "LD_", "GLIBC_", "MALLOC_", "OPENSSL_")
_EARLY_NAMES: Final = frozenset({"HOME"})
_HOME: Final = os.environ.get("HOME")
_FOLLOWED: Final = frozenset({"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"})  # by us


class _Now:
    wanted = False


def switch(wanted: bool) -> None:
    """From now on Python programs that this process starts are forked, and so are those that they start; or not."""
    _Now.wanted = wanted and POSSIBLE
    if _Now.wanted and (usual := server_for(os.environ)):
        usual.wait()  # here, where no event loop is held up by it


@contextlib.contextmanager
def fresh() -> Iterator[None]:
    """What is started inside is a new process in any case."""
    before, _Now.wanted = _Now.wanted, False
    try:
        yield
    finally:
        _Now.wanted = before


@dataclass(frozen=True)
class Program:
    """What a Python command line says."""

    kind: str  # "-c", "-m" or "script"
    what: str
    arguments: list[str]
    unbuffered: bool
    safe_path: bool  # -P


def program_of(command: list[str]) -> Program | None:
    """None if it is not one that can be forked."""
    if command[0] == str(MITMDUMP):
        return Program("script", command[0], command[1:], False, False)
    if command[0] != sys.executable:
        return None
    rest = command[1:]
    options = set()
    while rest and rest[0] in ("-u", "-P"):
        options.add(rest.pop(0))
    as_said = ("-u" in options, "-P" in options)
    match rest:
        case ["-c" | "-m" as kind, what, *arguments]:
            return Program(kind, what, arguments, *as_said)
        case [what, *arguments] if not what.startswith("-"):
            return Program("script", what, arguments, *as_said)
        case _:
            return None


@dataclass(frozen=True)
class Order:
    """One process."""

    program: Program
    environment: dict[str, str]
    cwd: str
    umask: int
    limits: list[tuple[int, tuple[int, int]]]
    mask: list[int]  # blocked signals
    ignored: list[int]  # signals
    numbers: list[int]  # of its descriptors, in the order of those that come along
    new_session: bool
    group: int
    nested: bool


# -- who orders


class Server:
    """The process that forks, seen from the one that it works for; which is made the parent of what it forks."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._ready = False
        self._gone = False

    def wait(self) -> None:
        """Until it has imported everything."""
        with self._lock:
            if not self._ready:
                self._ready, self._gone = True, not self._control.recv(64)
        if self._gone:
            warnings.warn("the process that forks has ended: all programs are started anew", stacklevel=2)

    def fork(self, order: Order, descriptors: list[int]) -> int | None:
        """The child's number; None if it has to be started in another way."""
        data = pickle.dumps(order)
        self.wait()
        if self._gone or len(data) > _LARGEST:
            return None
        with self._lock:
            # The child's first parent ends at once; where orphans go is said for that moment.
            self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
            try:
                socket.send_fds(self._control, [data], descriptors)
                answer = self._control.recv(64)
            except OSError:
                return None
            finally:
                self._libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        if not answer:
            return None
        pid = int(answer)
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        assert parent == os.getpid(), f"{pid} is a child of {parent}: run the tests with BURSAR_TESTS_FORK=0"
        return pid


_servers: dict[frozenset[tuple[str, str]], Server] = {}
_starting = threading.Lock()


def server_for(environment: Mapping[str, str]) -> Server | None:
    """A fork server of this process's with that environment, as far as it acts early; started when it is needed."""
    early = _early(environment)
    with _starting:
        found = _servers.get(early)
        # A home of a test's own comes once: it is not worth a server.
        if found is None and len(_servers) < _MOST_SERVERS and environment.get("HOME") == _HOME:
            found = _servers[early] = _start(dict(early) | {"PATH": os.environ.get("PATH", os.defpath)})
        return found


def _start(environment: dict[str, str]) -> Server:
    """It ends with us."""
    ours, theirs = _pair()
    with fresh():
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, str(ROOT), str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
        )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return Server(ours)


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST)
    return ours, theirs


def _early(environment: Mapping[str, str]) -> frozenset[tuple[str, str]]:
    return frozenset(
        (name, text)
        for name, text in environment.items()
        if (name.startswith(_EARLY) or name in _EARLY_NAMES) and name not in _FOLLOWED
    )


_execute_child: Final[Any] = subprocess.Popen._execute_child  # type: ignore[attr-defined]


def _fork_child(
    popen: Any,
    args: Any,
    executable: Any,
    preexec_fn: Any,
    close_fds: bool,
    pass_fds: Any,
    cwd: Any,
    env: Mapping[str, str] | None,
    startupinfo: Any,
    creationflags: int,
    shell: bool,
    *rest: Any,
) -> bool:
    """In the place of fork and exec, where `forked` asks for it. False: they have to do it."""
    standard, (_restore, gid, gids, uid, umask, new_session, group) = rest[:6], rest[6:]
    if (executable, preexec_fn, gid, gids, uid) != (None,) * 5 or shell or not close_fds or umask >= 0:
        return False
    if not isinstance(args, list | tuple) or not all(isinstance(one, str) for one in args):
        return False
    program = program_of(list(args))
    folder = os.getcwd() if cwd is None else os.fspath(cwd)
    if program is None or not os.path.isdir(folder):
        return False
    if "--workers" in program.arguments and "--worker-fd" not in program.arguments:
        return False  # once, on Python 3.11, asyncio did not know a worker that was forked for its supervisor
    environment = dict(os.environ if env is None else env)
    read, _, _, written, _, errors = standard  # our ends of the pipes are left out
    inherited = [own if one == -1 else one for own, one in enumerate((read, written, errors))]
    descriptors = [*inherited, *pass_fds]
    order = Order(
        program=program,
        environment=environment,
        cwd=os.path.abspath(folder),
        umask=_umask(),
        limits=[(one, resource.getrlimit(one)) for one in _LIMITS],
        mask=[int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        ignored=[
            int(one)
            for one in signal.valid_signals()
            if one not in (signal.SIGPIPE, signal.SIGXFSZ) and signal.getsignal(one) is signal.SIG_IGN
        ],
        numbers=[0, 1, 2, *pass_fds],
        new_session=new_session,
        group=group,
        nested=_starts_others(program),
    )
    found = server_for(environment)
    pid = None if found is None else found.fork(order, descriptors)
    if pid is None:
        return False
    popen.pid = pid
    popen._child_created = True
    popen._close_pipe_fds(*standard)
    return True


def _execute(popen: Any, *details: Any) -> None:
    if not (_Now.wanted and _fork_child(popen, *details)):
        _execute_child(popen, *details)


if POSSIBLE:
    subprocess.Popen._execute_child = _execute  # type: ignore[attr-defined]


def _starts_others(program: Program) -> bool:
    """`bursar exec` and the demo."""
    if program.kind == "-m" and program.what == "proxy_addon.demo.run":
        return True
    return bool({"exec", "demo"} & set(program.arguments))


def _umask() -> int:
    """Without setting it, which other threads would see."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    raise AssertionError("Linux 4.7 and newer say it")


# -- who forks


def serve(control: socket.socket) -> Order:
    """Returns in children only: with what they are to do, all else being as in a new process."""
    control.send(b"ready")
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 2 * _LARGEST, 64)
        if not data:
            os._exit(0)
        assert len(os.listdir("/proc/self/task")) == 1, "an import has started a thread"
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            pid = os.fork()
            if pid:
                os.write(writing, b"%d" % pid)
                os._exit(0)
            while os.getppid() == between:  # it ends at once
                time.sleep(0.0002)
            os.close(reading)
            os.close(writing)
            control.close()
            order: Order = pickle.loads(data)
            _become(order, descriptors)
            return order
        for one in (*descriptors, writing):
            os.close(one)
        os.waitpid(between, 0)  # from here on who ordered it is its parent
        control.send(os.read(reading, 64))
        os.close(reading)


def _become(order: Order, descriptors: list[int]) -> None:
    above = max(order.numbers) + 1
    high = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, above) for one in descriptors]
    for one in descriptors:
        os.close(one)
    for one, number in zip(high, order.numbers, strict=True):
        os.dup2(one, number)
        os.close(one)
    if order.new_session:
        os.setsid()
    elif order.group >= 0:
        os.setpgid(0, order.group)
    os.chdir(order.cwd)
    os.umask(order.umask)
    for limit, both in order.limits:
        if resource.getrlimit(limit) != both:
            resource.setrlimit(limit, both)
    os.environ.clear()
    os.environ.update(order.environment)
    time.tzset()
    tempfile.tempdir = None
    for number in signal.valid_signals():
        if number in (signal.SIGKILL, signal.SIGSTOP):
            continue
        if number in order.ignored or number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)
        elif number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        else:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, order.mask)


def _streams(unbuffered: bool) -> None:
    """As the interpreter makes them."""
    for name, number, mode in (("stdin", 0, "rb"), ("stdout", 1, "wb"), ("stderr", 2, "wb")):
        old = getattr(sys, name)
        raw = unbuffered and name != "stdin"
        file = io.TextIOWrapper(
            open(number, mode, buffering=0 if raw else -1, closefd=False),  # noqa: SIM115
            encoding=old.encoding,
            errors=old.errors,
            newline=None if name == "stdin" else "\n",
            line_buffering=not raw and (name == "stderr" or os.isatty(number)),
            write_through=unbuffered,
        )
        file.mode = mode[0]  # type: ignore[misc]
        setattr(sys, name, file)
        setattr(sys, f"__{name}__", file)


def run(order: Order, path: list[str]) -> None:
    """The program, as the interpreter would."""
    program = order.program
    environment = order.environment
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    _streams(program.unbuffered or bool(environment.get("PYTHONUNBUFFERED")))
    main = types.ModuleType("__main__")
    main.__builtins__ = sys.modules["builtins"]  # type: ignore[attr-defined]
    sys.modules["__main__"] = main
    more = [os.path.abspath(one) for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [*more, *(one for one in path if one not in more)]
    match program.kind:
        case "-c":
            sys.argv = ["-c", *program.arguments]
            if not program.safe_path:
                sys.path.insert(0, "")
            exec(compile(program.what, "<string>", "exec"), main.__dict__)
        case "-m":
            sys.argv = ["-m", *program.arguments]
            if not program.safe_path:
                sys.path.insert(0, os.getcwd())
            sys.modules.pop(program.what, None)
            runpy.run_module(program.what, run_name="__main__", alter_sys=True)
        case _:
            sys.argv = [program.what, *program.arguments]
            if not program.safe_path:
                sys.path.insert(0, str(Path(program.what).resolve().parent))
            runpy.run_path(program.what, run_name="__main__")


def _nest(environment: Mapping[str, str]) -> Order | None:
    """A fork server of this process's own. An order in what that forks, in turn; None here."""
    ours, theirs = _pair()
    if os.fork():
        theirs.close()
        _servers[_early(environment)] = Server(ours)
        _Now.wanted = True
        return None
    ours.close()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != theirs.fileno():
            with contextlib.suppress(OSError):
                os.close(number)
    _server_signals()
    return serve(theirs)


def _server_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who orders hears of it, and closes
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def warm_up() -> None:
    """Import what proxies, commands, clients and chains of the tests need."""
    import proxy_addon
    import store

    limit = sys.getrecursionlimit()
    for package in (store, proxy_addon):
        for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if one.name not in ("proxy_addon.cli.main", "proxy_addon.cli.node_preload"):
                importlib.import_module(one.name)
    for name in _MODULES:
        importlib.import_module(name)
    sys.setrecursionlimit(limit)  # eth_account's libraries raise it, and a new process has not imported them


_MODULES: Final = (
    "mitmproxy.tools.main",
    "mitmproxy.tools.dump",
    "mitmproxy.addons",
    "requests",
    "httpx",
    "websockets.sync.client",
    "eth_abi.abi",
    "eth_account",
    "eth_keys.datatypes",
    "http.server",
    "http.client",
    "argparse",
    "rlp",
)


def main() -> None:
    """`_BOOT` comes here, and so do all its children."""
    path = sys.path[1:]
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    _server_signals()
    warm_up()
    opened = {int(one) for one in os.listdir("/proc/self/fd")} - {0, 1, 2, control.fileno()}
    assert len(opened) <= 1, f"an import has opened something: {opened}"  # the one is that of the listing
    gc.collect()
    gc.freeze()  # what is here stays shared with the children
    order: Order | None = serve(control)
    while order is not None and order.nested:
        inner = _nest(order.environment)
        if inner is None:
            break
        order = inner
    assert order is not None
    try:
        run(order, path)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        _leave(ended.code or 0)
    _leave(0)


def _leave(code: int) -> None:
    """As the interpreter ends, but for taking itself apart: memory that is shared would be copied before."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except BaseException:  # said, and made exit code 120
        raise SystemExit(code) from None
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(code & 0xFF)
