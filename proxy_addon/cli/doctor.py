"""`bursar doctor`: is everything there that paying needs?"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from proxy_addon.cli.failure import ExitCode
from proxy_addon.cli.home import config_option, home_of, json_option, load_settings
from proxy_addon.cli.output import echo_json, printable

_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


@click.command(name="doctor")
@config_option
@json_option
def command(config: Path, as_json: bool) -> None:
    """Check key, balance, chain, store, certificate, clock, port, file modes and versions.

    It looks, and changes nothing. For whatever is wrong it says how to mend it. The exit code is 3 if anything
    keeps bursar from paying.

    \b
    Example:
      bursar doctor
    """
    from proxy_addon.cli.checks import Finding, Grade, examine  # mitmproxy is slow to import

    settings = load_settings(config)

    async def look() -> list[Finding]:
        found = []
        async for finding in examine(settings, home_of(config)):
            found.append(finding)
            if not as_json:
                click.echo(f"{_MARKS[finding.grade]} {finding.check:<12} {printable(finding.found)}")
                if finding.mend:
                    click.echo(f"     {'':<12} → {printable(finding.mend)}")
        return found

    found = asyncio.run(look())
    if as_json:
        echo_json(
            [
                {"check": one.check, "grade": one.grade.value, "found": one.found, "mend": one.mend}
                for one in found
            ]
        )
    raise SystemExit(ExitCode.CONFIG if any(one.grade is Grade.FAIL for one in found) else ExitCode.OK)
