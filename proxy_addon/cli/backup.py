"""`bursar backup`: a copy of store and ledger, while a proxy runs."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.output import echo_json, utc

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from store.backup import Taken


@click.command(name="backup")
@config_option
@json_option
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def command(config: Path, as_json: bool, directory: Path) -> None:
    """Copy the store and its ledger to DIRECTORY, as they are at one moment. Payments go on meanwhile.

    To restore: stop all that uses the store, put DIRECTORY in its place, and start again. What was paid since the
    backup is not in it, so nothing is signed until bursar reconcile has been run; unless nothing was. The key and the
    config are not part of it.

    \b
    Example:
      bursar backup /media/stick/bursar-$(date +%F)
    """
    settings = load_settings(config)
    taken = asyncio.run(_take(settings, directory.expanduser().absolute()))
    if as_json:
        echo_json(
            {
                "directory": str(taken.directory),
                "store": taken.store_id,
                "commits": taken.commits,
                "taken_at": taken.taken_at,
                "in_use": taken.in_use,
                "ledger_files": taken.files,
                "bytes": taken.size,
            }
        )
        return
    click.echo(
        f"{taken.directory} has the store as of {utc(taken.taken_at)} and {taken.files} files of its ledger:"
        f" {taken.size / 2**20:.1f} MiB"
    )


async def _take(settings: Settings, target: Path) -> Taken:
    where = settings.store
    if where.backend != "lmdb":
        raise Failure(
            f"the store is {where.backend!r}: bursar backup copies stores of the kind 'lmdb'", ExitCode.STORE
        )
    if not (where.directory / "data.mdb").exists():
        raise Failure(f"there is no store in {where.directory} yet: nothing to copy", ExitCode.STORE)
    from store.backup import take_backup
    from store.lmdb_store import LmdbBackend

    backend = await LmdbBackend.open(where.directory)
    try:
        now = time.time_ns() // 1_000_000
        return await take_backup(backend, where.directory.absolute(), where.ledger, target, now)
    finally:
        await backend.close()
