"""`bursar run`: the proxy, in the foreground, until it is told to stop."""

from __future__ import annotations

import gc
import json
import os
import socket
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from proxy_addon.cli.ca import CERTIFICATE
from proxy_addon.cli.home import config_option, home_of, json_option, load_settings
from proxy_addon.cli.wallet import missing_password

if TYPE_CHECKING:
    from proxy_addon.cli.serve import Listening
    from proxy_addon.cli.workers import Workers

READY_LIMIT: Final = 4096
"""Longest message on the ready pipe, in bytes: one write that a pipe takes whole."""

MOST_WORKERS: Final = 32
"""The store has room for a hundred processes; commands need some of it."""


@click.command(name="run", context_settings={"ignore_unknown_options": False})
@config_option
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen, instead of the config's [proxy] address."
)
@json_option
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    default=1,
    show_default=True,
    metavar="N",
    help="Serve with so many processes: on one port, with one store.",
)
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--lifeline-fd", type=int, hidden=True)
@click.option("--worker-fd", type=int, hidden=True)
@click.argument("mitmdump_options", nargs=-1, type=click.UNPROCESSED)
def command(
    config: Path,
    listen: str | None,
    as_json: bool,
    workers: int,
    ready_fd: int | None,
    lifeline_fd: int | None,
    worker_fd: int | None,
    mitmdump_options: tuple[str, ...],
) -> None:
    """Run the proxy that pays, until SIGTERM or Ctrl-C.

    What follows -- goes to mitmdump, which does the proxying: filters, -w FILE, --set OPTION=VALUE.

    \b
    Examples:
      bursar run
      bursar run --listen 127.0.0.1:9000 -- --flow-detail 0
      bursar run --workers 2
    """
    settings = load_settings(config)
    host, port = settings.proxy.listen_host, settings.proxy.listen_port
    if listen is not None:
        host, port = parse_address(listen)
    config = config.expanduser().absolute()

    def tell(listening: Listening | Workers) -> None:
        gc.enable()
        if ready_fd is not None:
            announce(ready_fd, listening)
        elif as_json:
            click.echo(json.dumps({"ready": True, **asdict(listening)}))
        else:
            certificate = home_of(config).ca / CERTIFICATE
            click.echo(f"bursar is ready: http_proxy={listening.url} https_proxy={listening.url}")
            click.echo(f"clients of https sites need to trust {certificate}")

    if workers > 1 and worker_fd is None:
        from proxy_addon.cli.workers import supervise_workers

        raise SystemExit(
            supervise_workers(
                config,
                settings,
                number=workers,
                host=host,
                port=port,
                extra=mitmdump_options,
                tell=tell,
                lifeline=lifeline_fd,
            )
        )

    if worker_fd is None:
        _check_free(host, port)
        os.environ.update(missing_password(settings))

    # A fifth of a second of the start would go into looking for garbage among modules, which stay.
    gc.disable()

    from proxy_addon.cli.serve import intake_of, serve  # mitmproxy is slow to import

    serve(
        config,
        host=host,
        port=port,
        upstream_ca=settings.proxy.upstream_ca,
        auth_file=settings.proxy.auth_file,
        extra=mitmdump_options,
        tell=tell,
        lifeline=lifeline_fd,
        intake=None if worker_fd is None else intake_of(worker_fd),
    )


def announce(descriptor: int, listening: Listening | Workers) -> None:
    """For a parent: one JSON object on the pipe, which then ends."""
    data = json.dumps(asdict(listening)).encode()
    assert len(data) <= READY_LIMIT
    os.write(descriptor, data)
    os.close(descriptor)


def parse_address(text: str) -> tuple[str, int]:
    """``127.0.0.1:8402``, ``[::1]:8402``, ``:8402`` (loopback) or ``8402``."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{text!r} is no HOST:PORT such as 127.0.0.1:8402", param_hint="--listen")
    return host or "127.0.0.1", int(port)


def _check_free(host: str, port: int) -> None:
    """Say what is wrong with an address before mitmproxy says it in a page."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            from proxy_addon.cli.accepting import unusable

            raise unusable(host, port, error) from None
