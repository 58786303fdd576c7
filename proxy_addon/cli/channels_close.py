"""`bursar channels close` and `top-up`: what a person does to channels."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from proxy_addon.cli.failure import Failure, failure_of
from proxy_addon.cli.handover import wait_option, when_free
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.output import echo_json, utc
from proxy_addon.cli.wallet import missing_password
from store.amounts import Token, parse_units
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from proxy_addon.payer.closing import CloseResult
    from proxy_addon.payer.forcing import GraceRunning
    from proxy_addon.runtime import Runtime

NOT_LIMITS: Final = frozenset(
    {
        *("no-channel", "channel-not-open", "close-begun", "pending-unknown", "server-unreachable"),
        *("server-unknown", "no-challenge", "protocol", "chain-unavailable", "unfunded", "top-up-failed"),
    }
)
"""Why something fails that no limit is against."""


@click.command(name="close")
@config_option
@click.option("--all", "everything", is_flag=True, help="Every channel that is not closed.")
@click.option(
    "--force",
    is_flag=True,
    help="Without the server: request the close on the chain now, withdraw when run again after 16 minutes.",
)
@wait_option
@json_option
@click.argument("channel_id", metavar="[ID]", required=False)
def close(
    config: Path, everything: bool, force: bool, wait: float, as_json: bool, channel_id: str | None
) -> None:
    """Close a channel: the payee gets what it earned, the rest of the deposit comes back.

    A channel that a running proxy uses is waited for: it is given back a few seconds after its last request.

    \b
    Examples:
      bursar channels close 0x1f3a
      bursar channels close --all
    """
    if everything == (channel_id is not None):
        raise click.UsageError("name one channel, or --all")
    settings = load_settings(config)
    os.environ.update(missing_password(settings))
    code = asyncio.run(_close(settings, channel_id, wait, force=force, as_json=as_json))
    if code:
        raise SystemExit(code)


@click.command(name="top-up")
@config_option
@wait_option
@json_option
@click.argument("channel_id", metavar="ID")
@click.argument("amount", metavar="AMOUNT")
def top_up(config: Path, wait: float, as_json: bool, channel_id: str, amount: str) -> None:
    """Add AMOUNT (in the channel's token, such as 0.50) to a channel's deposit.

    Within the limits of the host's rule: max_deposit for the channel, max_deposits_per_day. A proxy tops up by
    itself when a deposit runs low; this is for more than that.

    \b
    Example:
      bursar channels top-up 0x1f3a 0.50
    """
    settings = load_settings(config)
    os.environ.update(missing_password(settings))
    asyncio.run(_top_up(settings, channel_id, amount, wait, as_json=as_json))


async def _top_up(settings: Settings, start: str, amount: str, wait: float, *, as_json: bool) -> None:
    from proxy_addon.cli.records import one_of
    from proxy_addon.core.errors import LocalRefusal
    from proxy_addon.payer.by_hand import top_up_channel
    from proxy_addon.runtime import open_runtime

    runtime = await open_runtime(settings, need_signer=True)
    try:
        channel = one_of(await runtime.store.all(), start)
        token = _token(settings, channel)
        try:
            units = parse_units(amount, token.decimals, "AMOUNT")
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        if not units:
            raise click.UsageError("AMOUNT must be more than 0")
        policy = settings.spend_policy()
        channel = await when_free(
            channel.channel_id,
            wait,
            lambda: top_up_channel(runtime.parts, policy, channel.channel_id, units),
        )
    except LocalRefusal as error:
        if error.reason in NOT_LIMITS:
            raise Failure(str(error)) from None
        raise
    finally:
        await runtime.close()
    if as_json:
        echo_json(
            {
                "channel": channel.channel_id,
                "status": channel.status.value,
                "added": str(units),
                "deposit": str(channel.deposit),
                "fees": str(channel.fees),
                "tx": channel.transactions[-1],
            }
        )
        return
    click.echo(
        f"topped up {channel.channel_id} of {channel.scope.host} by {token.show(units)}:"
        f" its deposit is {token.show(channel.deposit)} ({channel.transactions[-1]})"
    )


async def _close(
    settings: Settings, channel_id: str | None, wait: float, *, force: bool, as_json: bool
) -> int:
    """Close one after the other; the first failure's exit code, or 0."""
    from proxy_addon.cli.records import one_of
    from proxy_addon.runtime import open_runtime

    runtime = await open_runtime(settings, need_signer=True)
    try:
        channels = await runtime.store.all()
        if channel_id is not None:
            chosen = [one_of(channels, channel_id)]
        else:
            chosen = [channel for channel in channels if channel.status not in FINAL]
        told: list[dict[str, Any]] = []
        code = 0
        for channel in chosen:
            try:
                result = await close_one(runtime, channel.channel_id, wait, force=force)
            except Exception as error:  # one that cannot be closed does not keep the others open
                if channel_id is not None:
                    raise
                failure = failure_of(error)
                code = code or failure.exit_code
                told.append({"channel": channel.channel_id, "error": failure.message})
                if not as_json:
                    click.echo(f"bursar: {channel.channel_id}: {failure.message}", err=True)
                continue
            told.append(result_json(result))
            if not as_json:
                click.echo(result_line(_token(settings, channel), result))
        if as_json:
            echo_json(told if channel_id is None else told[0])
        elif not chosen:
            click.echo("no open channels", err=True)
        return code
    finally:
        await runtime.close()


async def close_one(
    runtime: Runtime, channel_id: str, wait: float, *, force: bool, up_to: int = 0
) -> CloseResult | GraceRunning:
    """One step of a close; a forced one that is on its way goes on as it began. Raises `Failure`."""
    from proxy_addon.core.errors import LocalRefusal
    from proxy_addon.payer.closing import close_channel
    from proxy_addon.payer.forcing import force_close

    async def work() -> CloseResult | GraceRunning:
        channel = await runtime.store.find(channel_id)
        forced = (
            channel is not None and channel.status is ChannelStatus.CLOSING and channel.close_amount is None
        )
        if force or forced:
            return await force_close(runtime.parts, channel_id)
        return await close_channel(runtime.parts, channel_id, up_to=up_to)

    try:
        return await when_free(channel_id, wait, work)
    except LocalRefusal as error:  # no policy refused: the server or the chain did not help
        raise Failure(str(error)) from None


def _token(settings: Settings, channel: Channel) -> Token:
    return settings.token(channel.scope.chain, channel.scope.token)


def result_json(result: CloseResult | GraceRunning) -> dict[str, Any]:
    from proxy_addon.payer.forcing import GraceRunning

    if isinstance(result, GraceRunning):
        return {
            "channel": result.channel.channel_id,
            "status": result.channel.status.value,
            "ready_at": result.ready_at,
        }
    return {
        "channel": result.channel.channel_id,
        "status": result.channel.status.value,
        "deposit": str(result.deposit),
        "captured": str(result.captured),
        "refunded": str(result.refunded),
        "tx": result.tx_hash,
    }


def result_line(token: Token, result: CloseResult | GraceRunning) -> str:
    channel = result.channel
    from proxy_addon.payer.forcing import GraceRunning

    if isinstance(result, GraceRunning):
        return (
            f"{channel.channel_id} of {channel.scope.host} is closing by force: run this again after"
            f" {utc(result.ready_at * 1000)}, and its deposit is withdrawn"
        )
    if channel.status is not ChannelStatus.CLOSED:
        return f"{channel.channel_id} is {channel.status}: {channel.note or 'its deposit never left'}"
    return (
        f"closed {channel.channel_id} of {channel.scope.host}: {token.show(result.captured)} captured,"
        f" {token.show(result.refunded)} refunded ({result.tx_hash or 'transaction unknown'})"
    )
