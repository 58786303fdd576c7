"""`bursar env`: the variables of `bursar exec`, for a proxy that runs by itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from proxy_addon.cli import trust
from proxy_addon.cli.ca import ensure_ca
from proxy_addon.cli.environment import Trust, additions
from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import config_option, home_of, load_settings

_IN_CONTAINER: Final = Path("/etc/bursar")
"""Where a container finds the certificates: none of the host's own paths mean anything in there."""

_FISH_SPECIAL: Final = re.compile(r"(['\\])")


def _sh(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _fish(variables: Mapping[str, str]) -> str:
    lines = ((name, _FISH_SPECIAL.sub(r"\\\1", value)) for name, value in variables.items())
    return "\n".join(f"set -gx {name} '{value}';" for name, value in lines)


def _systemd(variables: Mapping[str, str]) -> str:
    """Lines for the ``[Service]`` section: quoted, with systemd's specifiers escaped."""

    def quoted(text: str) -> str:
        return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")

    return "\n".join(f'Environment="{name}={quoted(value)}"' for name, value in variables.items())


def _json(variables: Mapping[str, str]) -> str:
    return json.dumps(variables, indent=2)


_FORMATS: Final = {"sh": _sh, "fish": _fish, "systemd": _systemd, "json": _json}


@click.command(name="env")
@config_option
@click.option(
    "--format",
    "form",
    type=click.Choice([*_FORMATS, "docker"]),
    default="sh",
    show_default=True,
    help="For whom: a shell, systemd, docker run, or a program.",
)
@click.option("--url", metavar="URL", help="The proxy's address, instead of the config's [proxy] one.")
@click.option("--unset", is_flag=True, help="Take the variables away again (sh only).")
def command(config: Path, form: str, url: str | None, unset: bool) -> None:
    """Print the variables that send a client through a proxy that runs by itself (`bursar run`).

    They are those of `bursar exec`: proxies in both cases, and a bundle of the public certificates and the
    proxy's own. Options that NODE_OPTIONS and JAVA_TOOL_OPTIONS have already are kept; so is no_proxy.

    \b
    Examples:
      eval "$(bursar env)"
      bursar env --format systemd > /etc/systemd/system/agent.service.d/bursar.conf
      eval "docker run $(bursar env --format docker) IMAGE"
    """
    settings = load_settings(config)
    if url is None:
        if settings.proxy.listen_port == 0:
            raise Failure(
                "the config's [proxy].listen_port is 0, so the port is a new one each time:"
                " set it, or say --url http://127.0.0.1:PORT",
                ExitCode.CONFIG,
            )
        url = _url_of(settings.proxy.listen_host, settings.proxy.listen_port)
    else:
        _check_url(url)
    directory = home_of(config).ca
    ensure_ca(directory)
    files = trust.prepare(directory, os.environ)
    if form == "docker":
        click.echo(_docker(url, files))
        return
    variables = additions(os.environ, url, files)
    if unset:
        if form != "sh":
            raise click.UsageError("--unset is for shells: leave --format away")
        click.echo(f"unset {' '.join(variables)}")
        return
    if form == "systemd":
        click.echo("[Service]")
    click.echo(_FORMATS[form](variables))
    if not _listens(url):
        click.echo(f"bursar: nothing listens at {url} yet: start it with `bursar run`", err=True)


def _check_url(url: str) -> None:
    """Clients make of half an address what they like. What is wrong is not repeated: it may hold a password."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port
    except ValueError:
        usable = False
    if not usable:
        raise click.BadParameter(
            "expected the proxy's address, such as http://127.0.0.1:8402 or http://USER:PASSWORD@127.0.0.1:8402",
            param_hint="--url",
        )


def _url_of(host: str, port: int) -> str:
    # An address that means "all of them" is none to connect to.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _docker(url: str, files: Trust) -> str:
    """Arguments of ``docker run``, quoted for a shell. The container shares the host's network: so the proxy can
    stay on loopback, where nobody else on the network reaches the wallet."""
    inside = replace(
        files,
        bundle=_IN_CONTAINER / files.bundle.name,
        java_store=_IN_CONTAINER / files.java_store.name,
        node_preload=_IN_CONTAINER / files.node_preload.name,
    )
    mounts = (files.bundle, files.java_store, files.node_preload)
    arguments = ["--network=host"]
    arguments += [f"--volume={path}:{_IN_CONTAINER / path.name}:ro" for path in mounts]
    # The container's own variables are unknown here; the host's are not meant for it.
    variables = additions({}, url, inside)
    del variables["SYSTEM_WGETRC"]  # it is this machine's, and names paths of this machine
    arguments += [f"--env={name}={value}" for name, value in variables.items()]
    return " ".join(shlex.quote(argument) for argument in arguments)


def _listens(url: str) -> bool:
    address = urlsplit(url)
    try:
        with socket.create_connection((address.hostname, address.port or 80), timeout=1):
            return True
    except OSError:
        return False
