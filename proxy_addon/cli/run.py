"""`bursar run`: the proxy, in the foreground, until it is told to stop."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy_addon.cli.ca import CERTIFICATE
from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import config_option, home_of, json_option, load_settings
from proxy_addon.cli.wallet import missing_password

if TYPE_CHECKING:
    from proxy_addon.cli.serve import Listening


@click.command(name="run", context_settings={"ignore_unknown_options": False})
@config_option
@click.option(
    "--listen", metavar="HOST:PORT", help="Where to listen, instead of the config's [proxy] address."
)
@json_option
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--lifeline-fd", type=int, hidden=True)
@click.argument("mitmdump_options", nargs=-1, type=click.UNPROCESSED)
def command(
    config: Path,
    listen: str | None,
    as_json: bool,
    ready_fd: int | None,
    lifeline_fd: int | None,
    mitmdump_options: tuple[str, ...],
) -> None:
    """Run the proxy that pays, until SIGTERM or Ctrl-C.

    What follows -- goes to mitmdump, which does the proxying: filters, -w FILE, --set OPTION=VALUE.

    \b
    Examples:
      bursar run
      bursar run --listen 127.0.0.1:9000 -- --flow-detail 0
    """
    settings = load_settings(config)
    host, port = settings.proxy.listen_host, settings.proxy.listen_port
    if listen is not None:
        host, port = parse_address(listen)
    _check_free(host, port)
    os.environ.update(missing_password(settings))

    from proxy_addon.cli.serve import announce, serve  # mitmproxy is slow to import

    def tell(listening: Listening) -> None:
        if as_json:
            ready = {"ready": True, "url": listening.url, "pid": listening.pid, "ledger": listening.ledger}
            click.echo(json.dumps(ready))
        else:
            certificate = home_of(config).ca / CERTIFICATE
            click.echo(f"bursar is ready: http_proxy={listening.url} https_proxy={listening.url}")
            click.echo(f"clients of https sites need to trust {certificate}")

    serve(
        config.expanduser().absolute(),
        host=host,
        port=port,
        upstream_ca=settings.proxy.upstream_ca,
        auth_file=settings.proxy.auth_file,
        extra=mitmdump_options,
        tell=tell if ready_fd is None else announce(ready_fd),
        lifeline=lifeline_fd,
    )


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
            if error.errno == errno.EADDRINUSE:
                raise Failure(
                    f"{host}:{port} is in use, maybe by another bursar: stop that, or choose with --listen"
                ) from None
            raise Failure(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with --listen",
                ExitCode.FAILED,
            ) from None
