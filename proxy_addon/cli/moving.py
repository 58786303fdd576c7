"""`bursar channels export` and `import`: channels from one store to another, and their watermarks as a backup."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.handover import wait_option, when_free
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.output import echo_json, short_id
from store.lifecycle import ChannelStatus
from store.merging import Charged, Incoming
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.cli.mppx_state import Unreadable
    from proxy_addon.cli.taking_in import Taken
    from proxy_addon.config import Settings
    from proxy_addon.runtime import Runtime
    from store.channels import ChannelStore

MOVED: Final = "moved to another store"


@click.command(name="export")
@config_option
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    metavar="SCOPE",
    help="Only channels of this host, of this payee:token:escrow:chainId, or of this whole scope; repeatable.",
)
@click.option(
    "--move", is_flag=True, help="Give the open channels up here: from then on they are the other store's."
)
@click.option(
    "--again", is_flag=True, help="With --move: those that were moved before, too; their file was lost."
)
@wait_option
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
def export(
    config: Path, scopes: tuple[str, ...], move: bool, again: bool, wait: float, file: Path | None
) -> None:
    """Write what is known of each channel to FILE (or stdout): authorised, paid, uncertain, deposit, descriptor.

    Without --move it is a backup of the watermarks: whoever imports it can close the channels, and never authorises
    less than was authorised here. With --move the open channels change hands; a channel that a running proxy uses is
    waited for. Nobody can move money with such a file. FILE is new and for you alone.

    \b
    Examples:
      bursar channels export channels.json
      bursar channels export --move --scope api.example.com channels.json
    """
    if again and not move:
        raise click.UsageError("--again goes with --move")
    settings = load_settings(config)
    if move:
        if file is None:
            raise click.UsageError("--move needs a FILE: what is lost on the way is moved to nobody")
        told = asyncio.run(_move(settings, scopes, file, wait, again=again))
        click.echo(f"{file}: {told}", err=True)
        return
    data, count = asyncio.run(_export(settings, scopes))
    if file is None:
        click.echo(data, nl=False)
        return
    _write(file, data, new=True)
    click.echo(f"{file}: {count} channels; they stay in use here", err=True)


async def _export(settings: Settings, scopes: Sequence[str]) -> tuple[bytes, int]:
    from proxy_addon.cli.records import open_store, view_of

    if settings.store.backend == "lmdb" and not settings.store.directory.exists():
        raise Failure(f"there is no store in {settings.store.directory} yet", ExitCode.STORE)
    store = await open_store(settings)
    try:
        channels, counters = await store.books()
        chosen = [view_of(settings, store, one).channel for one in channels if _chosen(one, scopes)]
        standing = await store.commits.standing()
    finally:
        await store.close()
    return _dumped([Incoming(one, moved=False) for one in chosen], counters, standing, whole=not scopes), len(
        chosen
    )


async def _move(settings: Settings, scopes: Sequence[str], file: Path, wait: float, *, again: bool) -> str:
    """The file is there before a channel is given up, so that there is room for it; then it says so."""
    from proxy_addon.runtime import open_runtime

    runtime = await open_runtime(settings, need_signer=False)
    try:
        if runtime.store.sealed_against is not None:
            raise Failure(
                f"{runtime.store.sealed_against}: reconcile it before anything is moved", ExitCode.STORE
            )
        channels, counters = await runtime.store.books()
        standing = await runtime.store.commits.standing()
        chosen = [one for one in channels if _chosen(one, scopes)]
        plain = [Incoming(one, moved=False) for one in chosen]
        _write(file, _dumped(plain, counters, standing, whole=not scopes), new=True)
        found = [await _give_up(runtime, one, wait, again=again) for one in chosen]
        counters = await runtime.store.counters()
        _write(file, _dumped(found, counters, standing, whole=not scopes), new=False)
    finally:
        await runtime.close()
    moved = sum(one.moved for one in found)
    return f"{moved} channels moved, {len(found) - moved} copied"


async def _give_up(runtime: Runtime, channel: Channel, wait: float, *, again: bool) -> Incoming:
    """From the commit on nothing is paid with it here. What was authorised here stays counted here."""
    if channel.status is ChannelStatus.MOVED and again:
        return Incoming(channel, moved=True)
    if channel.status is not ChannelStatus.OPEN:
        return Incoming(channel, moved=False)
    owned = await when_free(channel.channel_id, wait, lambda: runtime.parts.claim(channel.channel_id))
    if owned.status is not ChannelStatus.OPEN or owned.pending is not None:
        await runtime.store.release(owned)
        return Incoming(owned, moved=False)
    mark = runtime.parts.audit.journal.mark
    given = replace(
        owned, status=ChannelStatus.MOVED, note=MOVED, folded=mark, updated_at=runtime.parts.now()
    )
    await runtime.store.delete(given)
    await runtime.store.release(given)
    runtime.parts.audit.note(
        "moved",
        f"moved channel {given.channel_id} of {given.scope.host} to another store",
        channel_id=given.channel_id,
        host=given.scope.host,
    )
    return Incoming(replace(given, note=""), moved=True)


def _dumped(channels: Sequence[Incoming], counters: dict[str, int], standing: Any, *, whole: bool) -> bytes:
    from store import interchange

    hosts = {one.channel.scope.host for one in channels}
    kept = {
        key: amount
        for key, amount in counters.items()
        if whole or (key.startswith("host-day/") and key.split("/", 3)[3] in hosts)
    }
    return interchange.dump(
        channels,
        kept,
        store=standing.store_id,
        commits=standing.commits or 0,
        exported_at=time.time_ns() // 1_000_000,
    )


def _chosen(channel: Channel, scopes: Sequence[str]) -> bool:
    scope = channel.scope
    names = {scope.key, scope.short_key, scope.host, scope.host.rpartition(":")[0]}
    return not scopes or any(one.lower() in names for one in scopes)


@click.command(name="import")
@config_option
@click.option("--from", "source", type=click.Choice(["bursar", "mppx"]), default="bursar", show_default=True)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--take-over",
    is_flag=True,
    help="No other store uses these channels any more: pay with them here. Never say so of one that is in use.",
)
@click.option("--origin", metavar="URL", help="With --from mppx: the server of entries that name none.")
@json_option
@click.argument("file", type=click.Path(path_type=Path, exists=True))
def import_(
    config: Path, source: str, dry_run: bool, take_over: bool, origin: str | None, as_json: bool, file: Path
) -> None:
    """Take in channels that another store has: a bursar's export, or what mppx and the tempo wallet keep.

    Nothing is ever lowered, and what is not known counts as uncertain. Channels that were exported with --move go on
    here where they were. Of others nobody knows whether they are in use elsewhere: they are set aside, to be closed,
    unless you say --take-over. Budgets follow. Doing it again changes nothing more.

    \b
    Examples:
      bursar channels import channels.json --dry-run
      bursar channels import --from mppx --take-over ~/.tempo/wallet/channels.db
    """
    settings = load_settings(config)
    found, charged, bad = _read(file, source, origin)
    taken = asyncio.run(_take(settings, found, charged, take_over=take_over, dry_run=dry_run))
    foreign = _foreign(settings, taken)
    if as_json:
        echo_json([*(_taken_json(one) for one in taken), *(_bad_json(one) for one in bad)])
    else:
        _tell(settings, taken, bad, foreign, dry_run=dry_run)
    if bad or any(one.action == "skipped" for one in taken):
        raise SystemExit(int(ExitCode.FAILED))


def _read(file: Path, source: str, origin: str | None) -> tuple[list[Incoming], Charged, list[Unreadable]]:
    if source == "mppx":
        from proxy_addon.cli.mppx_state import read_mppx

        rows = read_mppx(file, origin)
        good = [one for one in rows if isinstance(one, Incoming)]
        return good, Charged({}), [one for one in rows if not isinstance(one, Incoming)]
    from store import interchange

    try:
        with file.open("rb") as opened:
            document = interchange.parse(opened.read(interchange.LARGEST + 1))
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror}") from None
    except interchange.InterchangeError as error:
        raise Failure(f"{file} was not imported: {error}") from None
    return list(document.incoming), Charged(document.counters), []


async def _take(
    settings: Settings, found: list[Incoming], charged: Charged, *, take_over: bool, dry_run: bool
) -> list[Taken]:
    from proxy_addon.cli.taking_in import Importer
    from proxy_addon.runtime import open_runtime

    if dry_run:
        store = await _store_to_look_at(settings)
        try:
            return await Importer(settings, store, charged, parts=None, take_over=take_over).take_all(found)
        finally:
            await store.close()
    runtime = await open_runtime(settings, need_signer=False)
    try:
        importer = Importer(settings, runtime.store, charged, parts=runtime.parts, take_over=take_over)
        return await importer.take_all(found)
    finally:
        await runtime.close()


async def _store_to_look_at(settings: Settings) -> ChannelStore:
    """Looking makes none."""
    from proxy_addon.cli.records import open_store
    from store.channels import ChannelStore
    from store.memory_store import MemoryBackend

    if settings.store.backend == "lmdb" and not settings.store.directory.exists():
        return ChannelStore(MemoryBackend())
    return await open_store(settings)


def _foreign(settings: Settings, taken: list[Taken]) -> dict[str, int]:
    """How many channels are of payers whose key the config does not name."""
    from proxy_addon.cli.faucet import wallet_address

    own = None
    with suppress(Exception):  # a key that cannot be opened is no reason not to import
        own = wallet_address(settings)
    payers: dict[str, int] = {}
    for payer in (one.record.scope.payer for one in taken if one.record is not None):
        if own is not None and payer != own:
            payers[payer] = payers.get(payer, 0) + 1
    return payers


def _tell(
    settings: Settings, taken: list[Taken], bad: list[Unreadable], foreign: dict[str, int], *, dry_run: bool
) -> None:
    for one in taken:
        record = one.record
        if record is None:
            click.echo(f"bursar: {one.channel_id} was skipped: {one.why}", err=True)
            continue
        token = settings.token(record.scope.chain, record.scope.token)
        click.echo(
            f"{short_id(one.channel_id)} of {record.scope.host}: {one.action}; it is {record.status},"
            f" {token.show(record.authorised)} authorised, {token.show(record.paid)} paid,"
            f" {token.show(record.uncertain)} uncertain"
        )
    for row in bad:
        click.echo(f"bursar: {row.name} was skipped: {row.why}", err=True)
    for payer, number in foreign.items():
        click.echo(
            f"bursar: {number} channels are of the payer {payer}, whose key this config does not name: they are kept,"
            " and cannot be paid with or closed here",
            err=True,
        )
    if not taken and not bad:
        click.echo("no channels in it", err=True)
    if dry_run:
        click.echo("nothing was written (--dry-run)", err=True)


def _taken_json(one: Taken) -> dict[str, Any]:
    record = one.record
    return {
        "channel": one.channel_id,
        "action": one.action,
        "raised": str(one.raised),
        "why": one.why or None,
        "status": None if record is None else record.status.value,
        "authorised": None if record is None else str(record.authorised),
        "paid": None if record is None else str(record.paid),
        "uncertain": None if record is None else str(record.uncertain),
    }


def _bad_json(one: Unreadable) -> dict[str, Any]:
    return {"channel": one.name, "action": "skipped", "why": one.why}


def _write(path: Path, data: bytes, *, new: bool) -> None:
    """For its owner alone, durable, whole or not at all; never over another file. Raises `Failure`."""
    if new and (path.exists() or path.is_symlink()):
        raise Failure(f"{path} exists and is not overwritten: name a new file")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if new:
            os.link(temporary, path)
        else:
            temporary.rename(path)
    except FileExistsError:
        raise Failure(f"{path} exists and is not overwritten: name a new file") from None
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)
