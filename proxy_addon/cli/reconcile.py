"""`bursar reconcile`: make what is uncertain known; and go on from an older copy of the store."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy_addon.cli import account
from proxy_addon.cli.doubts import Doubt, doubts
from proxy_addon.cli.failure import Failure, failure_of
from proxy_addon.cli.handover import wait_option, when_free
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.lines import Pick, read_ledger
from proxy_addon.cli.output import echo_json, printable, short_id, utc
from proxy_addon.cli.records import Ownership, View, one_of, read_channels
from proxy_addon.cli.wallet import missing_password
from store.amounts import Token
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from proxy_addon.runtime import Runtime

_SHOWN = 10  # of a channel's id: enough for any command


@dataclass(frozen=True, slots=True)
class Found:
    """What became of one channel. `error`: it could not be asked about at all."""

    before: Channel
    after: Channel
    requests: tuple[Doubt, ...]
    why: str = ""
    error: str = ""
    code: int = 0


@click.command(name="reconcile")
@config_option
@click.option("--all", "everything", is_flag=True, help="Channels with nothing uncertain, too.")
@click.option(
    "--dry-run", is_flag=True, help="Only show what is uncertain: nothing is asked, nothing written."
)
@click.option(
    "--assume-spent",
    is_flag=True,
    help="Take each channel of an old copy of the store for used up, until receipts or closes prove otherwise.",
)
@wait_option
@json_option
@click.argument("channel_id", metavar="[CHANNEL]", required=False)
def command(
    config: Path,
    everything: bool,
    dry_run: bool,
    assume_spent: bool,
    wait: float,
    as_json: bool,
    channel_id: str | None,
) -> None:
    """Find out what is uncertain: requests that may have been charged, and whose answer never came.

    For each channel the chain is asked, and then, where nothing in doubt can be charged any more, its server: by
    HEAD with the voucher that it has, which costs nothing. What it does not claim can be spent again; what it does
    claim is booked as paid. A channel that a running proxy uses is waited for.

    Where the store is an older copy that was put back, nothing is signed until that is dealt with: vouchers that it
    does not know of may have left. With --assume-spent each channel counts as authorised up to its deposit, all of
    it uncertain; payments then go on, with new channels, and a close of the old ones brings home what was not spent.

    \b
    Examples:
      bursar reconcile --dry-run
      bursar reconcile 0x1f3a
      bursar reconcile --assume-spent && bursar channels close --all
    """
    if everything and channel_id is not None:
        raise click.UsageError("name one channel, or --all")
    settings = load_settings(config)
    if assume_spent:
        _tell_assumed(settings, asyncio.run(_assume(settings)), as_json=as_json)
        return
    why, left = asyncio.run(_doubt(settings))
    if why is not None and not dry_run:
        _tell_doubt(why, left, as_json=as_json)
        return
    views = [
        view
        for view in asyncio.run(read_channels(settings))
        if everything or channel_id is not None or view.channel.uncertain
    ]
    if channel_id is not None:
        chosen = one_of((view.channel for view in views), channel_id)
        views = [view for view in views if view.channel is chosen]
    elif not everything:
        views = [view for view in views if view.channel.status not in FINAL]
    behind = _behind(settings, [view.channel.channel_id for view in views])
    if dry_run:
        found = [_look(view, behind) for view in views]
    else:
        os.environ.update(missing_password(settings))
        found = asyncio.run(_reconcile(settings, views, behind, wait))
    if as_json:
        told = {"in_doubt": why is not None, "why": why, "left": list(left)}
        echo_json(told | {"channels": [_as_json(settings, one) for one in found]})
    else:
        _tell(settings, found, dry_run=dry_run)
    if code := next((one.code for one in found if one.error), 0):
        raise SystemExit(code)


def _behind(settings: Settings, ids: Iterable[str]) -> dict[str, list[Doubt]]:
    wanted = set(ids)
    if not wanted:
        return {}
    pick = Pick(channel=wanted.pop() if len(wanted) == 1 else None)
    return doubts(entry for entry in read_ledger(settings.store.ledger) if pick.takes(entry))


def _look(view: View, behind: dict[str, list[Doubt]]) -> Found:
    """What would be done, were it done now."""
    channel, now = view.channel, time.time_ns() // 1_000_000
    close = f"bursar channels close {channel.channel_id[:_SHOWN]}"
    if not channel.uncertain:
        why = ""
    elif view.ownership is Ownership.IN_USE:
        why = "a running proxy has it, and gives it back some seconds after its last request"
    elif channel.status is not ChannelStatus.OPEN:
        why = f"it is {channel.status}: the chain is asked, and its close decides: {close}"
    elif channel.eligible_at > now:
        why = f"it may still be charged until {utc(channel.eligible_at)}"
    elif channel.equal_refused:
        why = f"its server takes no voucher twice, so it cannot be asked: {close} decides"
    else:
        why = f"{channel.scope.host} would be asked"
    return Found(channel, channel, tuple(behind.get(channel.channel_id, ())), why)


async def _reconcile(
    settings: Settings, views: list[View], behind: dict[str, list[Doubt]], wait: float
) -> list[Found]:
    from proxy_addon.runtime import open_runtime

    if not views:
        return []
    runtime = await open_runtime(settings, need_signer=True)
    try:
        found = []
        for view in views:
            requests = tuple(behind.get(view.channel.channel_id, ()))
            try:
                found.append(await _one(runtime, view.channel.channel_id, requests, wait))
            except Exception as error:  # one that cannot be asked about does not keep the others from it
                failure = failure_of(error)
                found.append(
                    Found(view.channel, view.channel, requests, error=failure.message, code=failure.exit_code)
                )
        return found
    finally:
        await runtime.close()


async def _one(runtime: Runtime, channel_id: str, requests: tuple[Doubt, ...], wait: float) -> Found:
    from proxy_addon.core.errors import LocalRefusal
    from proxy_addon.payer.reconciling import reconcile

    try:
        done = await when_free(channel_id, wait, lambda: reconcile(runtime.parts, channel_id))
    except LocalRefusal as error:  # no policy refused: the server or the chain did not help
        raise Failure(str(error)) from None
    return Found(done.before, done.after, requests, done.why)


# -- telling


def _tell(settings: Settings, found: list[Found], *, dry_run: bool) -> None:
    if not found:
        click.echo("nothing is uncertain")
        return
    for one in found:
        before, after = one.before, one.after
        token = _token(settings, before)
        click.echo(f"{before.channel_id} of {printable(before.scope.host)} ({before.status})")
        for request in one.requests:
            click.echo(f"  {_line(token, request)}")
        if dry_run or one.error:
            click.echo(
                f"  uncertain {token.show(before.uncertain)} of {token.show(before.authorised)} authorised"
            )
        else:
            for name in ("uncertain", "paid", "free"):
                old, new = getattr(before, name), getattr(after, name)
                change = "" if old == new else f" -> {token.show(new)}"
                click.echo(f"  {name.ljust(9)} {token.show(old)}{change}")
            if after.status is not before.status:
                click.echo(f"  {'status'.ljust(9)} {before.status} -> {after.status}")
        if one.error:
            click.echo(f"bursar: {short_id(before.channel_id)}: {one.error}", err=True)
        elif one.why:
            click.echo(f"  {printable(one.why)}")


def _line(token: Token, doubt: Doubt) -> str:
    what = " ".join(filter(None, (doubt.method, doubt.path)))
    words = (
        doubt.t[:19].replace("T", " ") + "Z",
        token.show(doubt.amount),
        doubt.outcome,
        what,
        f"({doubt.reason})" if doubt.reason else "",
        f"a retry of {doubt.retry_of}" if doubt.retry_of else "",
    )
    return printable("  ".join(filter(None, words)))


def _as_json(settings: Settings, one: Found) -> dict[str, Any]:
    token = _token(settings, one.before)
    return {
        "channel": one.before.channel_id,
        "host": one.before.scope.host,
        "symbol": token.symbol,
        "decimals": token.decimals,
        "before": {"status": one.before.status.value, **account.fields(one.before)},
        "after": {"status": one.after.status.value, **account.fields(one.after)},
        "requests": [request.as_json() for request in one.requests],
        "why": one.why or None,
        "error": one.error or None,
    }


def _token(settings: Settings, channel: Channel) -> Token:
    return settings.token(channel.scope.chain, channel.scope.token)


# -- an older copy of the store


async def _doubt(settings: Settings) -> tuple[str | None, tuple[str, ...]]:
    from proxy_addon.runtime import open_runtime

    runtime = await open_runtime(settings, need_signer=False)
    try:
        return runtime.store.sealed_against, await runtime.store.commits.left_in_doubt()
    finally:
        await runtime.close()


async def _assume(settings: Settings) -> list[Any] | None:
    from proxy_addon.cli.assume_spent import assume_spent
    from proxy_addon.runtime import open_runtime

    runtime = await open_runtime(settings, need_signer=False)
    try:
        if runtime.store.sealed_against is None:
            return None
        return list(await assume_spent(runtime))
    finally:
        await runtime.close()


def _tell_doubt(why: str, left: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        echo_json({"in_doubt": True, "why": why, "left": list(left), "channels": []})
        return
    click.echo(f"{why}.")
    click.echo(
        f"{len(left)} channels are to be reconciled: bursar reconcile --assume-spent, or put the last copy back"
    )


def _tell_assumed(settings: Settings, assumed: list[Any] | None, *, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "channel": one.channel.channel_id,
                "raised": str(one.amount),
                "authorised": str(one.channel.authorised),
                "uncertain": str(one.channel.uncertain),
            }
            for one in assumed or ()
        ]
        echo_json({"was_in_doubt": assumed is not None, "channels": rows})
        return
    if assumed is None:
        click.echo("the store is in order: nothing was assumed")
        return
    for one in assumed:
        token = _token(settings, one.channel)
        click.echo(
            f"{one.channel.channel_id} of {one.channel.scope.host}: {token.show(one.channel.uncertain)} may have been"
            " spent; close it to know"
        )
    click.echo("The store is reconciled: payments go on.")
