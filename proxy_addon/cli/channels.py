"""`bursar channels`: the deposits, where they are, and how they come back."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy_addon.cli import account
from proxy_addon.cli.channels_close import close, top_up
from proxy_addon.cli.channels_recover import recover
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.moving import export, import_
from proxy_addon.cli.next_steps import Outlook, in_short, next_step, outlook_of, ready_times
from proxy_addon.cli.output import echo_json, printable, short_id, table
from store import budgets
from store.amounts import Token
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.cli.records import View
    from proxy_addon.config import Settings

_REQUESTABLE = (ChannelStatus.ASIDE, ChannelStatus.CLOSING)
"""Of these only the ledger may know that a close was requested on the chain."""


@click.group(name="channels")
def command() -> None:
    """List, show, top up, close and recover payment channels. All of it works while a proxy runs.

    \b
    Examples:
      bursar channels list
      bursar channels close --all
      bursar channels close --force 0x1f3a
      bursar channels recover --dry-run
    """


command.add_command(close)
command.add_command(top_up)
command.add_command(recover)


command.add_command(export)
command.add_command(import_)


@command.command(name="list")
@config_option
@click.option("--all", "everything", is_flag=True, help="Closed and failed ones, too.")
@json_option
def list_(config: Path, everything: bool, as_json: bool) -> None:
    """All channels that may hold a deposit: what is locked, what of it comes back, and when.

    \b
    Example:
      bursar channels list --all
    """
    settings = load_settings(config)
    views = [view for view in _views(settings) if everything or view.channel.status not in FINAL]
    waiting = any(view.channel.status in _REQUESTABLE for view in views)
    ready = ready_times(settings.store.ledger) if waiting else {}
    outlook = outlook_of(settings)
    if as_json:
        echo_json([_as_json(settings, view, ready, outlook) for view in views])
        return
    if not views:
        click.echo("no channels" if everything else "no open channels (--all shows closed ones)", err=True)
        return
    rows = [_row(settings, view, ready, outlook) for view in views]
    amounts = ("LOCKED", "AUTHORISED", "PAID", "UNCERTAIN", "SETTLED", "LEFT")
    header = ("CHANNEL", "HOST", "STATUS", *amounts, "TOKEN", "NEXT", "OWNER")
    click.echo(table(header, rows, right=amounts))
    for line in _totals(settings, views):
        click.echo(line)


@command.command(name="show")
@config_option
@json_option
@click.argument("channel_id", metavar="ID")
def show(config: Path, as_json: bool, channel_id: str) -> None:
    """One channel's account, its history, and what comes next; the start of its id is enough.

    \b
    Example:
      bursar channels show 0x1f3a
    """
    from proxy_addon.cli.records import one_of

    settings = load_settings(config)
    views = _views(settings)
    channel = one_of((view.channel for view in views), channel_id)
    view = next(view for view in views if view.channel is channel)
    history = account.history_of(settings, channel.channel_id)
    outlook = outlook_of(settings)
    if as_json:
        told = _as_json(settings, view, {channel.channel_id: history.ready_at}, outlook)
        echo_json(told | {"history": account.as_json(history)})
        return
    pairs = account.details(view, _token(settings, channel), history, outlook)
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {printable(value)}")


def _views(settings: Settings) -> list[View]:
    from proxy_addon.cli.records import read_channels

    return asyncio.run(read_channels(settings))


def _token(settings: Settings, channel: Channel) -> Token:
    return settings.token(channel.scope.chain, channel.scope.token)


def _row(settings: Settings, view: View, ready: dict[str, int], outlook: Outlook) -> tuple[str, ...]:
    channel = view.channel
    token = _token(settings, channel)

    def show(amount: int) -> str:
        return token.show(amount).partition(" ")[0]

    return (
        short_id(channel.channel_id),
        channel.scope.host,
        channel.status,
        *(show(amount) for amount in (budgets.locked(channel), channel.authorised, channel.paid)),
        *(show(amount) for amount in (channel.uncertain, channel.settled)),
        "" if channel.status in FINAL else show(_left(channel)),
        token.symbol,
        in_short(view, ready.get(channel.channel_id, 0), outlook),
        view.ownership,
    )


def _left(channel: Channel) -> int:
    """What comes back of the deposit, if all that is uncertain was charged."""
    return channel.ceiling - channel.paid - channel.uncertain


def _totals(settings: Settings, views: list[View]) -> list[str]:
    """What is locked, per token."""
    by_token: dict[tuple[str, str], list[Channel]] = {}
    for view in views:
        if view.channel.status not in FINAL:
            scope = view.channel.scope
            by_token.setdefault((scope.chain, scope.token), []).append(view.channel)
    lines = []
    for channels in by_token.values():
        token = _token(settings, channels[0])
        locked = token.show(sum(budgets.locked(channel) for channel in channels))
        left = token.show(sum(_left(channel) for channel in channels))
        what = "1 channel" if len(channels) == 1 else f"{len(channels)} channels"
        lines.append(f"{locked} locked in {what}, of which {left} come back when they are closed")
    return lines


def _as_json(settings: Settings, view: View, ready: dict[str, int], outlook: Outlook) -> dict[str, Any]:
    channel = view.channel
    token = _token(settings, channel)
    ready_at = ready.get(channel.channel_id, 0)
    return {
        "channel": channel.channel_id,
        "status": channel.status.value,
        "ownership": view.ownership.value,
        "owner": channel.owner,
        "scope": dataclasses.asdict(channel.scope),
        "resource": channel.resource,
        "symbol": token.symbol,
        "decimals": token.decimals,
        "locked": str(budgets.locked(channel)),
        **account.fields(channel),
        "captured": None if channel.captured is None else str(channel.captured),
        "refunded": None if channel.refunded is None else str(channel.refunded),
        "in_flight": len(channel.holds),
        "transactions": list(channel.transactions),
        "pending": None if channel.pending is None else channel.pending.kind,
        "note": channel.note,
        "opened_at": channel.opened_at,
        "updated_at": channel.updated_at,
        "ready_at": ready_at or None,
        "next": next_step(view, token, ready_at, outlook),
    }
