"""`bursar exec`: one command behind a proxy of its own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from proxy_addon.cli import trust
from proxy_addon.cli.ca import ensure_ca
from proxy_addon.cli.environment import behind, replaced
from proxy_addon.cli.failure import Failure
from proxy_addon.cli.home import config_option, home_of, load_settings
from proxy_addon.cli.summary import summary_json, summary_lines
from proxy_addon.cli.supervise import end_as, run_command, start_proxy
from proxy_addon.cli.wallet import descriptors, missing_password, secrets_in_env
from proxy_addon.hardening import close_to_others

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""As a shell has it."""


@click.command(name="exec", context_settings={"allow_interspersed_args": False})
@config_option
@click.option("--quiet", "-q", is_flag=True, help="Say nothing of what was paid.")
@click.option("--json", "as_json", is_flag=True, help="Say what was paid in one line of JSON.")
@click.option(
    "--proxy-log",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Keep the proxy's log in this file (it is appended to).",
)
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARGS]...")
def command(
    config: Path, quiet: bool, as_json: bool, proxy_log: Path | None, arguments: tuple[str, ...]
) -> None:
    """Run one command behind a proxy of its own; then say, on stderr, what it paid.

    The command gets proxy and certificate variables for all common clients, and not the wallet's password or
    key. Its exit code and its signals pass through. What no_proxy exempts stays exempt.

    \b
    Examples:
      bursar exec -- curl https://api.example.com/paid
      bursar exec --config ./bursar.toml -- python agent.py
    """
    settings = load_settings(config)
    config = config.expanduser().absolute()
    home = home_of(config)
    close_to_others()  # the command could read here what it is not given
    password = missing_password(settings)
    ensure_ca(home.ca)
    with tempfile.TemporaryDirectory(prefix="bursar-") as scratch:
        log = proxy_log or Path(scratch) / "proxy.log"
        proxy = start_proxy(config, {**os.environ, **password}, log, inherit=descriptors(settings.wallet))
        try:
            environ = behind(
                os.environ,
                proxy.url,
                trust.prepare(home.ca, os.environ),
                without=secrets_in_env(settings.wallet),
            )
            if not quiet and (names := replaced(os.environ)):
                click.echo(f"bursar: {', '.join(names)} not used: the proxy connects directly", err=True)
            status = _run(arguments, environ)
        finally:
            died = proxy.process.poll()
            proxy.stop()
        if died is not None:
            click.echo(f"bursar: the proxy ended early: {proxy.last_words() or f'code {died}'}", err=True)
        if not quiet:
            told = summary_json if as_json else summary_lines
            for line in told(settings, proxy.ledger):
                click.echo(line, err=True)
    raise SystemExit(end_as(status))


def _run(arguments: tuple[str, ...], environ: dict[str, str]) -> int:
    try:
        return run_command(arguments, environ)
    except FileNotFoundError:
        raise Failure(f"{arguments[0]}: no such command", NOT_FOUND) from None
    except OSError as error:
        raise Failure(f"{arguments[0]}: {error.strerror}", NOT_EXECUTABLE) from None
