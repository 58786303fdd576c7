"""`bursar ledger`: every line that any process wrote about money."""

from __future__ import annotations

import asyncio
import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from proxy_addon.cli.failure import ExitCode
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.lines import Entry, Pick, parse_time, read_ledger
from proxy_addon.cli.output import echo_json, printable, short_id, table, token_named
from proxy_addon.cli.summary import sums_as_json
from proxy_addon.cli.sums import Difference, Sums, add_up, differences
from proxy_addon.cli.verify import verify

if TYPE_CHECKING:
    from proxy_addon.config import Settings

COLUMNS: Final = (
    *("t", "kind", "request", "client", "host", "method", "path", "channel", "token", "symbol", "amount"),
    *("amount_human", "cumulative", "outcome", "status", "reason", "fee", "tx", "message", "retry_of"),
)
"""Of --csv. JSON has every field."""

_QUIET_KINDS: Final = frozenset({"start", "sent", "probe", "note", "close-sent", "top-up-sent"})


def _time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return parse_time(value, datetime.now(UTC))
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is no time such as 2026-01-31, 2026-01-31T12:00 or 24h"
        ) from None


@click.group(name="ledger", invoke_without_command=True)
@config_option
@click.option("--host", help="Only this host (name, or name:port).")
@click.option(
    "--since", callback=_time, metavar="TIME", help="From this time on (UTC), or 24h, 7d: so long ago."
)
@click.option("--until", callback=_time, metavar="TIME", help="Before this time.")
@click.option("--channel", metavar="ID", help="Only this channel; the start of its id is enough.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only lines of this kind; repeatable.")
@click.option("--all", "everything", is_flag=True, help="In the table: lines of no consequence, too.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV.")
@click.option(
    "--sum", "summed", is_flag=True, help="Write what the lines add up to, and compare with the store."
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    config: Path,
    host: str | None,
    since: str | None,
    until: str | None,
    channel: str | None,
    kinds: tuple[str, ...],
    everything: bool,
    as_csv: bool,
    summed: bool,
    as_json: bool,
) -> None:
    """What was paid, to whom, for what: the ledger of all processes, by time.

    --json and --csv write every line, one JSON object each. --sum adds up what was paid; without other filters
    than --channel it is compared with the store, to the base unit (exit code 4 if they disagree).

    \b
    Examples:
      bursar ledger --since 24h --host api.example.com
      bursar ledger --sum
      bursar ledger --json | jq 'select(.kind == "ended")'
      bursar ledger verify
    """
    if ctx.invoked_subcommand is not None:
        if ctx.get_parameter_source("config") is ParameterSource.COMMANDLINE:
            ctx.default_map = {ctx.invoked_subcommand: {"config": config}}
        return
    if as_csv and (as_json or summed):
        raise click.UsageError("--csv goes with neither --json nor --sum")
    settings = load_settings(config)
    pick = Pick(host, channel.lower() if channel else None, since, until, frozenset(kinds))
    if summed:
        _sum(settings, pick, as_json=as_json)
        return
    picked = (entry for entry in read_ledger(settings.store.ledger) if pick.takes(entry))
    if as_json:
        for entry in picked:
            click.echo(json.dumps({**entry.line.fields, "journal": entry.journal}, ensure_ascii=False))
    elif as_csv:
        _write_csv(picked)
    else:
        _write_table(picked, everything=everything or bool(kinds))


command.add_command(verify)


def _write_csv(entries: Iterator[Entry]) -> None:
    writer = csv.writer(sys.stdout)
    writer.writerow((*COLUMNS, "journal"))
    for entry in entries:
        writer.writerow((*(_cell(entry.text(name)) for name in COLUMNS), entry.journal))


def _cell(text: str) -> str:
    """A server chooses paths and reasons: none of them may become a formula in a spreadsheet."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def _write_table(entries: Iterator[Entry], *, everything: bool) -> None:
    rows = [_row(entry) for entry in entries if everything or _matters(entry)]
    if not rows:
        click.echo("nothing in the ledger (of what was asked for)", err=True)
        return
    click.echo(
        table(("TIME", "WHAT", "AMOUNT", "HOST", "REQUEST", "CHANNEL", "WHY"), rows, right=("AMOUNT",))
    )


def _matters(entry: Entry) -> bool:
    if entry.text("kind") == "ended":
        return entry.text("outcome") != "free"
    return entry.text("kind") not in _QUIET_KINDS


def _row(entry: Entry) -> tuple[str, ...]:
    kind, outcome = entry.text("kind"), entry.text("outcome")
    request = " ".join(filter(None, (entry.text("method"), entry.text("path"))))
    why = entry.text("reason") or (entry.text("message") if kind not in ("ended", "sent") else "")
    return (
        entry.text("t")[:19].replace("T", " ") + "Z",
        outcome if kind in ("ended", "decision") and outcome else kind,
        entry.text("amount_human") or entry.text("amount"),
        entry.text("host"),
        request if len(request) <= 40 else f"{request[:39]}…",
        short_id(entry.text("channel")),
        why if len(why) <= 80 else f"{why[:79]}…",
    )


def _sum(settings: Settings, pick: Pick, *, as_json: bool) -> None:
    found: list[Difference] = []
    if pick.whole_channels:
        # The store first: what is paid meanwhile is then in the lines, and folded into the records as well.
        sums, found = _sum_and_compare(settings, pick)
    else:
        sums = add_up(entry for entry in read_ledger(settings.store.ledger) if pick.takes(entry))
    wrong = [one for one in found if not one.doubted]
    if as_json:
        value = sums_as_json(settings, sums)
        value["compared"] = pick.whole_channels
        value["differences"] = [asdict(one) for one in found]
        echo_json(value)
    else:
        _write_sums(settings, sums)
        for one in found:
            click.echo(f"bursar: {one.text}", err=True)
        if pick.whole_channels and not found and sums.tokens:
            click.echo("The store agrees, to the base unit.")
    if wrong:
        raise SystemExit(int(ExitCode.STORE))


def _sum_and_compare(settings: Settings, pick: Pick) -> tuple[Sums, list[Difference]]:
    from proxy_addon.cli.records import read_channels  # opens the store

    for attempt in range(3):
        before = _size(settings.store.ledger)
        channels = [view.channel for view in asyncio.run(read_channels(settings))]
        sums = add_up(entry for entry in read_ledger(settings.store.ledger) if pick.takes(entry))
        found = differences(sums.paid_by_channel, channels, pick.channel or "", closing=sums.closing)
        if not found or _size(settings.store.ledger) == before or attempt == 2:
            break  # else a running proxy wrote meanwhile: look again
    return sums, found


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*")) if directory.is_dir() else 0


def _write_sums(settings: Settings, sums: Sums) -> None:
    if not sums.tokens:
        click.echo("nothing in the ledger (of what was asked for)", err=True)
        return
    rows = []
    for one in sums.tokens.values():
        token = token_named(settings, one.token, one.symbol)
        rows.append(
            (
                token.show(one.paid + one.adjusted),
                str(one.paid_requests),
                token.show(one.uncertain),
                str(one.uncertain_requests),
                token.show(one.deposited),
                token.show(one.refunded),
                token.show(one.fees),
                printable(one.token),
            )
        )
    header = ("PAID", "REQUESTS", "UNCERTAIN", "REQUESTS ", "DEPOSITED", "REFUNDED", "FEES", "TOKEN")
    click.echo(table(header, rows, right=header[:-1]))
