"""mitmproxy with our addon, in this process: what `bursar run` runs, and `bursar exec` in a child.

It starts as mitmdump does, so that logs, options and signals are mitmdump's. Imports mitmproxy: import it late.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mitmproxy import ctx, options
from mitmproxy.tools import cmdline, dump
from mitmproxy.tools import main as tools

from proxy_addon import addon
from proxy_addon.cli.ca import bundle, ensure_ca, public_authorities
from proxy_addon.cli.failure import ExitCode, Failure, failure_of
from proxy_addon.cli.home import home_of
from proxy_addon.mitm import dispatch, door, quick
from proxy_addon.mitm.intake import Intake
from proxy_addon.mitm.unwatched import let_large_bodies_pass

_HASHES: Final = ("$2a$", "$2b$", "$2y$", "{SHA}")
"""What every mitmproxy reads; the last is weak, and taken since it is."""

_OPEN_DOOR: Final = (
    "at %s, other machines could spend from this wallet: nobody is asked for a password. Name a file of users and"
    " passwords in [proxy].auth_file, or listen on 127.0.0.1"
)


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the proxy is reached, and where it writes its ledger."""

    url: str
    pid: int
    ledger: str | None


class Ready:
    """The last addon: once all others run, it tells where the proxy listens; it also ends it with its parent."""

    def __init__(
        self, payer: addon.BursarAddon, tell: Callable[[Listening], None], lifeline: int | None
    ) -> None:
        self._payer = payer
        self._tell = tell
        self._lifeline = lifeline

    def running(self) -> None:
        if self._payer.failure is not None:
            raise SystemExit(1)  # who asked for a proxy that pays gets none that does not; see `serve`
        master: Any = ctx.master
        addresses = master.addons.get("proxyserver").listen_addrs()
        if not addresses:
            raise RuntimeError("the proxy listens nowhere")
        host, port = addresses[0][:2]
        shown = f"[{host}]" if ":" in host else host
        if self._lifeline is not None:
            asyncio.get_running_loop().add_reader(self._lifeline, self._parent_gone)
        runtime = self._payer.runtime
        ledger = None if runtime is None else str(runtime.journal.path)
        quick.look_less_often()
        self._tell(Listening(url=f"http://{shown}:{port}", pid=os.getpid(), ledger=ledger))

    def _parent_gone(self) -> None:
        assert self._lifeline is not None
        asyncio.get_running_loop().remove_reader(self._lifeline)
        master: Any = ctx.master
        master.shutdown()


def serve(
    config: Path,
    *,
    host: str,
    port: int,
    upstream_ca: Path | None,
    auth_file: Path | None = None,
    extra: Sequence[str],
    tell: Callable[[Listening], None],
    lifeline: int | None = None,
    intake: Intake | None = None,
) -> None:
    """Run until SIGINT, SIGTERM or the end of `lifeline`. Raises `Failure` if the wallet or store do not open."""
    home = home_of(config)
    ensure_ca(home.ca)
    for stream in (sys.stdout, sys.stderr):  # a log file gets whole lines, in order, as they come
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    payer = addon.BursarAddon()
    if intake is not None:
        intake.install()

    class Master(dump.DumpMaster):
        def __init__(self, opts: options.Options) -> None:
            # Before there are addons: with --set, mitmproxy reads the authority's key (50 ms) once more.
            opts.update(confdir=str(home.ca))  # type: ignore[no-untyped-call]
            super().__init__(opts)
            addons: Any = self.addons
            dispatch.install(
                addons
            )  # the same hooks, found faster; where it cannot, all is right, only slower
            addons.add(payer, Ready(payer, tell, lifeline))
            self._stopping: asyncio.Task[None] | None = None

        async def run(self) -> None:
            """All options are final; nothing listens yet."""
            if intake is not None:
                if why := intake.why_not(self.options):
                    raise Failure(why, ExitCode.USAGE)
                intake.gone = self._deserted
            let_large_bodies_pass(self.options)
            if doors := door.open_doors(door.to_listen(self.options), self.options):
                raise Failure(_OPEN_DOOR % doors, ExitCode.CONFIG)
            await super().run()

        def shutdown(self) -> None:
            """At a signal, or the end of the lifeline: what is under way ends first, and all addons hear of it."""
            self.event_loop.call_soon_threadsafe(self._stop)

        def _deserted(self) -> None:
            if self._stopping is None:  # a worker that stops already is not hurried by it
                self._stop()

        def _stop(self) -> None:
            if self._stopping is None:
                self._stopping = asyncio.create_task(self._drain(), name="bursar-drain")
            else:
                payer.draining.hurry()

        async def _drain(self) -> None:
            try:
                await payer.drain()
            finally:
                super().shutdown()  # type: ignore[no-untyped-call]

    arguments = [
        *("--set", f"bursar_config={config}"),
        *("--listen-host", host),
        *("--listen-port", str(port)),
        *_trusting(upstream_ca, home.ca),
        *_asking(auth_file),
        *extra,
    ]
    try:
        tools.run(Master, cmdline.mitmdump, arguments, _filters)
    except SystemExit:
        if payer.failure is None:
            raise
        raise _failed(payer) from None


def intake_of(descriptor: int) -> Intake:
    """A worker waits here for its first word from the process that started it; without one it ends."""
    try:
        return Intake.open(descriptor)
    except (EOFError, ConnectionError):
        raise SystemExit(ExitCode.FAILED) from None


def _failed(payer: addon.BursarAddon) -> Failure:
    if payer.cause is not None:
        return failure_of(payer.cause)
    return Failure(str(payer.failure), ExitCode.CONFIG)


def _trusting(upstream_ca: Path | None, directory: Path) -> list[str]:
    """mitmproxy's option *replaces* what it trusts; the config's certificate comes on top."""
    if upstream_ca is None:
        return []
    if not upstream_ca.is_file():
        raise Failure(f"proxy.upstream_ca: there is no file {upstream_ca}", ExitCode.CONFIG)
    trusted = bundle(directory, [public_authorities(), upstream_ca])
    return ["--set", f"ssl_verify_upstream_trusted_ca={trusted}"]


def _asking(auth_file: Path | None) -> list[str]:
    """Clients for a user name and a password. Here, no other process sees the option."""
    if auth_file is None:
        return []
    if not auth_file.is_file():
        raise Failure(f"proxy.auth_file: there is no file {auth_file}", ExitCode.CONFIG)
    mode = auth_file.stat().st_mode
    if mode & 0o077:
        shown = f"{auth_file} is open to others (mode {stat.S_IMODE(mode):o})"
        raise Failure(f"proxy.auth_file: {shown}: chmod 600 {auth_file}", ExitCode.CONFIG)
    _check_users(auth_file)
    return ["--set", f"proxyauth=@{auth_file}"]


def _check_users(auth_file: Path) -> None:
    """mitmproxy says of a line that it cannot read that the file cannot be opened. The line itself is not repeated."""
    try:
        lines = auth_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise Failure(f"proxy.auth_file: {auth_file} cannot be read: {why}", ExitCode.CONFIG) from None
    for number, line in enumerate(lines, 1):
        user, _, password = line.strip().partition(":")
        if user.startswith("#") or not line.strip():
            continue
        if not user or not password.startswith(_HASHES):
            raise Failure(
                f"proxy.auth_file: line {number} of {auth_file} is no user with a bcrypt hash:"
                f" write it with htpasswd -B {auth_file} USER",
                ExitCode.CONFIG,
            )


def _filters(args: Any) -> dict[str, str]:
    """Filter expressions on the command line, as mitmdump takes them."""
    if not args.filter_args:
        return {}
    names = ("save_stream_filter", "readfile_filter", "dumper_filter")
    return dict.fromkeys(names, " ".join(args.filter_args))
