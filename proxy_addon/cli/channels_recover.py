"""`bursar channels recover`: from the chain and the key alone, for when the store is gone."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from proxy_addon.cli.channels_close import close_one, result_json, result_line
from proxy_addon.cli.failure import ExitCode, Failure, failure_of
from proxy_addon.cli.handover import wait_option
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.output import echo_json
from proxy_addon.cli.recovery_plan import Choice, nothing, tell_plan
from proxy_addon.cli.wallet import missing_password
from store.amounts import parse_units
from store.lifecycle import FINAL
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.chain import ChainClient
    from proxy_addon.config import Settings
    from proxy_addon.methods.contract import Method
    from proxy_addon.payer.adopting import Findings
    from proxy_addon.payer.parts import Parts
    from proxy_addon.runtime import Runtime

_TELL_EVERY_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for."""

    start: str | None  # of one channel's id; None: all
    force: bool
    up_to: str | None  # an amount, in whole tokens
    servers: tuple[str, ...]
    from_block: int
    wait: float


@click.command(name="recover")
@config_option
@click.option("--all", "everything", is_flag=True, help="All that are found.")
@click.option(
    "--force",
    is_flag=True,
    help="Without their servers: request the close on the chain now, withdraw when run again after 16 minutes.",
)
@click.option("--dry-run", is_flag=True, help="Say what there is and what it costs; write and sign nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--from-block",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Look no further back than this block.",
)
@click.option(
    "--server",
    "servers",
    multiple=True,
    metavar="URL",
    help="A paid URL of a server that a channel was opened for, to close with its help. May be given several times.",
)
@click.option(
    "--up-to",
    metavar="AMOUNT",
    help="With a server's help: sign a close of AMOUNT each, where the server does not prove what it has. It may take"
    " all of that.",
)
@wait_option
@json_option
@click.argument("channel_id", metavar="[ID]", required=False)
def recover(
    config: Path,
    everything: bool,
    force: bool,
    dry_run: bool,
    yes: bool,
    from_block: int,
    servers: tuple[str, ...],
    up_to: str | None,
    wait: float,
    as_json: bool,
    channel_id: str | None,
) -> None:
    """Find channels of this wallet on the chain that are not on record, and bring their deposits home.

    For a store that was deleted, or a machine that was lost: the wallet's key is enough. What a payee can prove is
    not known then, so nothing is ever paid with such a channel; it is closed, with its server's help or without
    (--force). Channels on record are left alone: bursar channels close is for those.

    \b
    Examples:
      bursar channels recover --dry-run
      bursar channels recover --all --force
      bursar channels recover 0x1f3a --server https://api.example.com/paid
    """
    if everything and channel_id is not None:
        raise click.UsageError("name one channel, or --all")
    if not (everything or channel_id or dry_run):
        raise click.UsageError("name one channel, or --all; or look first, with --dry-run")
    if force and (servers or up_to):
        raise click.UsageError("--force does without servers: leave out --server and --up-to")
    _check_urls(servers)
    settings = load_settings(config)
    os.environ.update(missing_password(settings))
    wish = Wish(channel_id, force, up_to, servers, from_block, wait)
    code = asyncio.run(_look(settings, wish, as_json) if dry_run else _recover(settings, wish, yes, as_json))
    if code:
        raise SystemExit(code)


def _check_urls(urls: Sequence[str]) -> None:
    from proxy_addon.payer.adopting import origin_of

    for url in urls:
        try:
            origin_of(url)
        except ValueError as error:
            raise click.UsageError(f"--server: {error}") from None


async def _look(settings: Settings, wish: Wish, as_json: bool) -> int:
    """Writes nothing, not even a new store."""
    from proxy_addon.cli.records import read_channels
    from proxy_addon.keys import load_signer
    from proxy_addon.runtime import open_chains

    payer = load_signer(settings).address
    on_record = [view.channel for view in await read_channels(settings)]
    chains = open_chains(settings)
    try:
        findings = await _search(settings, chains, payer, on_record, wish)
        choices = _chosen(settings, findings, wish)
        tell_plan(choices, findings, as_json, wallet=await _wallet(chains, payer, choices))
    finally:
        for chain in chains.values():
            await chain.aclose()
    return ExitCode.OK


async def _recover(settings: Settings, wish: Wish, yes: bool, as_json: bool) -> int:
    """Put on record, and go the first step home with each; the first failure's exit code, or 0."""
    from proxy_addon.payer.adopting import FOUND_NOTE, adopt, place_of
    from proxy_addon.runtime import open_runtime

    runtime = await open_runtime(settings, need_signer=True)
    try:
        parts = runtime.parts
        assert runtime.signer is not None
        address = runtime.signer.address
        on_record = await runtime.store.all()
        findings = await _search(settings, parts.chains, address, on_record, wish)
        choices = _chosen(settings, findings, wish)
        # Found by an earlier run, and not home yet: this goes on with those.
        before = [
            channel
            for channel in on_record
            if channel.note.startswith(FOUND_NOTE)
            and channel.status not in FINAL
            and channel.channel_id.startswith(wish.start or "")
        ]
        if wish.start is not None and len(choices) + len(before) != 1:
            raise _not_one(wish.start, len(choices) + len(before))
        if choices:
            wallet = await _wallet(parts.chains, address, choices)
            tell_plan(choices, findings, as_json=False, wallet=wallet, err=True)
            _confirm(yes)
        elif not before:
            await _end_doubt(runtime, wish)
            if as_json:
                echo_json([])
            click.echo(nothing(findings), err=True)
            return ExitCode.OK
        resources = {} if wish.force else await _resources(settings, parts, on_record, choices, wish)
        for choice in choices:  # all of them first: whatever happens then, none is forgotten
            await adopt(parts, choice.one, resources.get(place_of(choice.one.found)))
        await _end_doubt(runtime, wish)
        parts.need_payer_key("bringing deposits home")
        told: list[dict[str, Any]] = []
        code: int = ExitCode.OK
        for name in [*(choice.name for choice in choices), *(channel.channel_id for channel in before)]:
            try:
                told.append(await _bring_home(settings, runtime, name, resources, wish, as_json))
            except Exception as error:  # one that does not come home does not keep the others away
                failure = failure_of(error)
                code = code or failure.exit_code
                told.append({"channel": name, "error": failure.message})
                if not as_json:
                    click.echo(f"bursar: {name}: {failure.message}", err=True)
        if as_json:
            echo_json(told)
        return code
    finally:
        await runtime.close()


async def _bring_home(
    settings: Settings,
    runtime: Runtime,
    name: str,
    resources: dict[tuple[str, str, str], str],
    wish: Wish,
    as_json: bool,
) -> dict[str, Any]:
    from proxy_addon.payer.adopting import place_of

    channel = await runtime.store.find(name)
    assert channel is not None
    if not channel.resource and (resource := resources.get(place_of(channel))):
        await _note_resource(runtime, name, resource)
    token = settings.token(channel.scope.chain, channel.scope.token)
    up_to = 0
    if wish.up_to is not None:
        try:
            up_to = parse_units(wish.up_to, token.decimals, "--up-to")
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    result = await close_one(runtime, name, wish.wait, force=wish.force, up_to=up_to)
    if not as_json:
        click.echo(result_line(token, result))
    return result_json(result)


async def _end_doubt(runtime: Runtime, wish: Wish) -> None:
    """An emptied store is in doubt, since nobody knows what it has forgotten. Once every channel that the chain has
    is on record, with all of its deposit taken for authorised, nothing is forgotten any more. Raises `Failure`."""
    doubt = runtime.store.sealed_against
    if doubt is None:
        return
    if wish.start is not None or wish.from_block:
        raise Failure(
            f"{doubt}; that ends when all channels are on record: bursar channels recover --all, without --from-block",
            ExitCode.STORE,
        )
    from store.lineage import NotReconciled

    try:
        await runtime.presence.lift()
    except NotReconciled as error:
        raise Failure(f"{error}: bursar reconcile", ExitCode.STORE) from None


async def _note_resource(runtime: Runtime, name: str, resource: str) -> None:
    """Where its server is: known by now, and not when it was found."""
    from dataclasses import replace

    till = runtime.parts.till(await runtime.parts.claim(name))
    try:
        await till.commit(change=lambda record: replace(record, resource=resource))
    finally:
        await till.release(used=False)


# -- finding


async def _search(
    settings: Settings,
    chains: Mapping[str, ChainClient],
    payer: str,
    on_record: Sequence[Channel],
    wish: Wish,
) -> dict[str, Findings]:
    """On each chain of the config."""
    from proxy_addon.core.errors import ChainUnavailable
    from proxy_addon.payer.adopting import search

    records = {channel.channel_id: channel for channel in on_record}
    found = {}
    for chain, entry in settings.chains.items():
        escrows = _escrows(chain, entry.extra_escrows)
        progress = _Progress(chain)
        try:
            found[chain] = await search(
                chains[chain],
                chain,
                payer,
                escrows,
                records,
                from_block=wish.from_block,
                progress=progress.told,
            )
        except ChainUnavailable as error:
            raise Failure(
                f"{error}; it looked back to block {progress.block}, --from-block {progress.block} shows what is there"
                if progress.block is not None
                else str(error)
            ) from None
    return found


class _Progress:
    """On a terminal only, now and then."""

    def __init__(self, chain: str) -> None:
        self._chain = chain
        self._told_at = 0.0
        self.block: int | None = None

    def told(self, block: int, found: int) -> None:
        self.block = block
        now = asyncio.get_running_loop().time()
        if sys.stderr.isatty() and now > self._told_at + _TELL_EVERY_S:
            self._told_at = now
            click.echo(f"bursar: {self._chain}: {found} openings back to block {block}", err=True)


def _escrows(chain: str, extra: Sequence[str]) -> list[tuple[Method, str]]:
    """Each method with each escrow that it could have been opened in."""
    from proxy_addon.methods.registry import METHODS

    found = []
    for method in METHODS.values():
        canonical = method.escrows.get(chain, method.escrows.get("*"))
        found += [(method, escrow) for escrow in dict.fromkeys((canonical, *extra)) if escrow is not None]
    return found


def _chosen(settings: Settings, findings: dict[str, Findings], wish: Wish) -> list[Choice]:
    chosen = []
    for chain, found in findings.items():
        for one in found.lost:
            if not one.found.channel_id.startswith((wish.start or "").lower()):
                continue
            fees = one.method.forced_fees(found.head, requested=one.state.close_requested_at is not None)
            token = settings.token(chain, one.found.scope.token)
            chosen.append(Choice(chain, one, token, fees.usual, fees.most, fees.most_at_once))
    return chosen


async def _resources(
    settings: Settings, parts: Parts, on_record: Sequence[Channel], choices: Sequence[Choice], wish: Wish
) -> dict[tuple[str, str, str], str]:
    """Where the servers are: as named, as other channels on record have it, or at the hosts of the config."""
    from proxy_addon.payer.adopting import place_of, places

    found = await places(parts.outbound, wish.servers)
    for channel in on_record:
        if channel.resource:
            found.setdefault(place_of(channel), channel.resource)
    if any(place_of(choice.one.found) not in found for choice in choices):
        hosts = [host.host for host in settings.policy.hosts if not host.host.startswith("*.")]
        for place, url in (await places(parts.outbound, [f"https://{host}/" for host in hosts])).items():
            found.setdefault(place, url)
    return found


async def _wallet(
    chains: Mapping[str, ChainClient], payer: str, choices: Sequence[Choice]
) -> dict[tuple[str, str], int]:
    """What the wallet has of each token that fees would be paid in."""
    pairs = {(choice.chain, choice.token.address) for choice in choices}
    return {(chain, token): await chains[chain].balance(token, payer) for chain, token in pairs}


def _confirm(yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("nobody to ask: say --yes, or look first with --dry-run")
    click.confirm("Bring them home?", abort=True, err=True)


def _not_one(start: str, number: int) -> Failure:
    if not number:
        return Failure(
            f"no channel {start} to recover; bursar channels recover --dry-run shows what there is"
        )
    return Failure(f"{start} is the start of {number} channels: give more of the id", ExitCode.USAGE)
