"""Waiting for a running proxy to give a channel back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import click

from proxy_addon.cli.failure import Failure
from proxy_addon.cli.output import short_id

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_RETRY_S: Final = 0.25


def wait_option(command: _F) -> _F:
    """``--wait SECONDS``: the argument `wait`."""
    return click.option(
        "--wait",
        type=click.FloatRange(min=0),
        default=10.0,
        show_default=True,
        help="Seconds to wait for a running proxy to give the channel back.",
    )(command)


async def when_free(channel_id: str, wait: float, work: Callable[[], Awaitable[_T]]) -> _T:
    """`work` on a channel, as soon as no other process has it. Raises `Failure` when `wait` seconds are over."""
    from store.channels import ChannelBusy

    deadline = time.monotonic() + wait
    told = False
    while True:
        try:
            return await work()
        except ChannelBusy as error:
            if time.monotonic() >= deadline:
                raise Failure(f"{error}; stop its requests, or wait longer with --wait") from None
            if not told:
                click.echo(
                    f"bursar: waiting for a running proxy to give back {short_id(channel_id)}", err=True
                )
                told = True
            await asyncio.sleep(_RETRY_S)
