"""Channels as mppx and the tempo wallet keep them: the SQLite file `channels.db`, and the JSON of `mppx sessions`.

- ``channels.db`` (mppx's `createSqliteChannelStore`; `~/.tempo/wallet/channels.db`): a table `channels`. Sessions of
  v2 have their descriptor as JSON, those of v1 in columns.
- ``…/mppx/sessions/v1/channels/ID.json`` (`mppx sessions`): one file for each channel, with what its receipts said.
- An entry of `createJsonChannelStore`, as its key-value store has it: the same channel, without its server.

Read only. An id is computed anew from the descriptor, never taken from the file.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

from proxy_addon.cli.failure import Failure
from proxy_addon.methods.abi import ZERO_ADDRESS, parse_address
from proxy_addon.methods.registry import method_of
from proxy_addon.methods.tempo_session.voucher import FAMILY
from store import account
from store.amounts import parse_wire
from store.lifecycle import ChannelStatus
from store.merging import Incoming
from store.records import Channel, PaymentScope

_SQLITE: Final = b"SQLite format 3\x00"
_LARGEST: Final = 64 * 2**20
_PORTS: Final = {"http": 80, "https": 443}
_COLUMNS: Final = (
    *("channel_id", "origin", "request_url", "chain_id", "escrow_contract", "token", "payee", "payer"),
    *("authorized_signer", "salt", "session_protocol", "descriptor_json", "deposit", "cumulative_amount"),
    *("accepted_cumulative", "server_spent", "state", "created_at", "last_used_at"),
)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row or file that is no channel we can use, and why."""

    name: str
    why: str


def read_mppx(path: Path, origin: str | None) -> list[Incoming | Unreadable]:
    """What is in `path`: a database, a JSON file, or a directory of those.

    `origin` is the place of entries that name none. Raises `Failure` if it is nothing of the kind.
    """
    if path.is_dir():
        files = sorted(path.glob("*.json"))
        if not files:
            raise Failure(
                f"{path} has no *.json: name the directory …/mppx/sessions/v1/channels, or a channels.db"
            )
        return [one for file in files for one in _read_json(file, origin)]
    try:
        with path.open("rb") as file:
            is_database = file.read(len(_SQLITE)) == _SQLITE
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from None
    return list(_read_database(path)) if is_database else list(_read_json(path, origin))


# -- channels.db


def _read_database(path: Path) -> Iterator[Incoming | Unreadable]:
    try:
        database = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)
        try:
            database.row_factory = sqlite3.Row
            known = {row["name"] for row in database.execute("PRAGMA table_info(channels)")}
            if not known:
                raise Failure(f"{path} is a database without a table of channels")
            rows = database.execute("SELECT * FROM channels ORDER BY created_at, channel_id").fetchall()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise Failure(f"{path} cannot be read: {error}") from None
    for row in rows:
        values = {name: row[name] for name in _COLUMNS if name in known}
        try:
            yield _of_row(values)
        except (ValueError, KeyError, TypeError) as error:
            yield Unreadable(str(values.get("channel_id")), _said(error))


def _of_row(row: Mapping[str, Any]) -> Incoming:
    version = row.get("session_protocol") or "v1"
    if version == "v2":
        descriptor = _mapping(json.loads(row["descriptor_json"]))
    else:
        names = ("payer", "payee", "token", "salt")
        descriptor = {name: row[name] for name in names} | {"authorizedSigner": row["authorized_signer"]}
    return _incoming(
        row["channel_id"],
        version=version,
        chain_id=row["chain_id"],
        escrow=row["escrow_contract"],
        descriptor=descriptor,
        url=row.get("request_url") or row["origin"],
        cumulative=row["cumulative_amount"],
        accepted=row.get("accepted_cumulative") or "0",
        spent=row.get("server_spent") or "0",
        deposit=row["deposit"],
        active=row["state"] == "active",
        opened_at=int(row["created_at"]) * 1000,
        updated_at=int(row["last_used_at"]) * 1000,
    )


# -- JSON


def _read_json(path: Path, origin: str | None) -> Iterator[Incoming | Unreadable]:
    try:
        if path.stat().st_size > _LARGEST:
            raise Failure(f"{path} is no session of mppx: it has more than {_LARGEST // 2**20} MiB")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Failure(f"{path} is neither a channels.db nor JSON") from None
    for name, one in _entries(path, value):
        try:
            yield _of_session(one) if "channel" in one else _of_entry(one, origin)
        except (ValueError, KeyError, TypeError) as error:
            yield Unreadable(name, _said(error))


def _entries(path: Path, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """One session, one channel, or a key-value store's keys with one each."""
    if isinstance(value, dict) and not ({"channel", "channelId"} & value.keys()):
        for key, text in value.items():
            found = json.loads(text) if isinstance(text, str) else text
            if isinstance(found, dict):
                yield key, found
    elif isinstance(value, dict):
        yield path.name, value
    else:
        raise Failure(f"{path} is no session of mppx: a JSON object was expected")


def _of_session(record: Mapping[str, Any]) -> Incoming:
    if record.get("version") != 1:
        raise ValueError(f"a session of version {record.get('version')!r}, not 1")
    entry = _mapping(record["channel"])
    receipt = record.get("receipt") or {}
    return _incoming(
        entry["channelId"],
        version="v2",
        chain_id=entry["chainId"],
        escrow=entry["escrow"],
        descriptor=_mapping(entry["descriptor"]),
        url=record["endpoint"],
        cumulative=entry["cumulativeAmount"],
        accepted=receipt.get("acceptedCumulative", "0"),
        spent=record["spent"],
        deposit=entry["deposit"],
        active=record["status"] == "open",
        opened_at=_iso(record["createdAt"]),
        updated_at=_iso(record["updatedAt"]),
    )


def _of_entry(entry: Mapping[str, Any], origin: str | None) -> Incoming:
    if origin is None:
        raise ValueError("it does not say which server it is for: name it with --origin")
    return _incoming(
        entry["channelId"],
        version="v2",
        chain_id=entry["chainId"],
        escrow=entry["escrow"],
        descriptor=_mapping(entry["descriptor"]),
        url=origin,
        cumulative=entry["cumulativeAmount"],
        accepted="0",
        spent="0",
        deposit=entry["deposit"],
        active=entry.get("opened") is True,
        opened_at=0,
        updated_at=0,
    )


# -- a channel


def _incoming(
    channel_id: object,
    *,
    version: str,
    chain_id: object,
    escrow: object,
    descriptor: Mapping[str, Any],
    url: object,
    cumulative: object,
    accepted: object,
    spent: object,
    deposit: object,
    active: bool,
    opened_at: int,
    updated_at: int,
) -> Incoming:
    """Raises ``ValueError`` naming what is wrong with it."""
    lower = {name: _text(value, f"descriptor.{name}").lower() for name, value in descriptor.items()}
    if type(chain_id) is not int or chain_id <= 0:
        raise ValueError(f"its chain id is {chain_id!r}")
    payer = parse_address(lower["payer"], "payer")
    signer = parse_address(lower["authorizedSigner"], "authorizedSigner")
    origin, resource = _place(_text(url, "its address"))
    scope = PaymentScope(
        family=FAMILY,
        version=version,
        chain=f"eip155:{chain_id}",
        escrow=parse_address(_text(escrow, "escrow"), "escrow"),
        token=parse_address(lower["token"], "token"),
        payee=parse_address(lower["payee"], "payee"),
        payer=payer,
        voucher_signer=payer if signer == ZERO_ADDRESS else signer,
        discriminator=lower.get("operator", ""),
        origin=origin,
    )
    computed = method_of(FAMILY, version).channel_id(scope, lower)
    if _text(channel_id, "channelId").lower() != computed:
        raise ValueError(f"its id is not that of its descriptor, which is {computed}")
    paid, taken = parse_wire(spent, "what was spent"), parse_wire(accepted, "what was accepted")
    authorised = max(parse_wire(cumulative, "its cumulative amount"), paid, taken)
    channel = Channel(
        channel_id=computed,
        scope=scope,
        descriptor=lower,
        resource=resource,
        status=ChannelStatus.OPEN if active else ChannelStatus.ASIDE,
        authorised=authorised,
        paid=paid,
        uncertain=authorised - paid,
        accepted=taken,
        deposit=parse_wire(deposit, "its deposit"),
        note="" if active else "no longer active where it was imported from",
        opened_at=max(0, opened_at),
        updated_at=max(0, updated_at),
    )
    account.check(channel)
    return Incoming(channel, moved=False)


def _place(url: str) -> tuple[str, str]:
    """Origin with its port, and the address without its query."""
    parts = urlsplit(url)
    if parts.scheme not in _PORTS or not parts.hostname:
        raise ValueError(f"it is for {url[:80]!r}, which is no http address")
    port = parts.port or _PORTS[parts.scheme]
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    origin = f"{parts.scheme}://{host}:{port}"
    return origin, f"{origin}{parts.path or '/'}"


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is no text")
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("a JSON object was expected")
    return value


def _iso(value: object) -> int:
    moment = datetime.fromisoformat(_text(value, "a time"))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)


def _said(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
