"""The file in which channels move from one store to another: versioned JSON, amounts as decimal strings. Pure.

In the manner of EIP-3076: watermarks, and what is needed to find a deposit again. A signed transaction that is on
its way is not in it, only its hash: nobody can move money with such a file. docs/backup.md describes each member.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, Strict, ValidationError

from store.account import IllegalMove, check
from store.amounts import UINT128_MAX, parse_wire
from store.lifecycle import ChannelStatus
from store.merging import Incoming, without_holds
from store.records import Channel, PaymentScope, PendingTransaction

FORMAT: Final = "bursar-channels"
VERSION: Final = 1
LARGEST: Final = 256 * 2**20


class InterchangeError(ValueError):
    """The file is none, or of an unknown version; nothing of it was taken. The message names the place."""


def _units(value: object) -> int:
    return parse_wire(value, "the amount", limit=UINT128_MAX)


Units = Annotated[int, BeforeValidator(_units), PlainSerializer(str)]
Text = Annotated[str, Strict(), Field(max_length=65_536)]
Hash = Annotated[str, Strict(), Field(pattern=r"^0x[0-9a-f]{64}$")]
Address = Annotated[str, Strict(), Field(pattern=r"^0x[0-9a-f]{40}$")]
Ms = Annotated[int, Strict(), Field(ge=0, lt=2**53)]
Flag = Annotated[bool, Strict()]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metadata(_Model):
    format: Literal["bursar-channels"] = "bursar-channels"
    version: Literal[1] = 1
    store: Text
    exported_at: Ms
    commits: Ms


class Scope(_Model):
    family: Text
    version: Text
    chain: Annotated[str, Strict(), Field(pattern=r"^eip155:[1-9][0-9]{0,18}$")]
    escrow: Address
    token: Address
    payee: Address
    payer: Address
    voucher_signer: Address
    discriminator: Text
    origin: Annotated[str, Strict(), Field(pattern=r"^https?://[^/\s]+:[0-9]{1,5}$")]


class Pending(_Model):
    kind: Literal["open", "top_up"]
    tx_hash: Hash
    valid_before: Ms
    deposit: Units
    fee_sponsored: Flag


class Entry(_Model):
    channel: Hash
    moved: Flag
    scope: Scope
    descriptor: dict[Text, Text]
    resource: Text
    status: ChannelStatus
    authorised: Units
    paid: Units
    uncertain: Units
    eligible_at: Ms
    deposit: Units
    accepted: Units
    settled: Units
    fees: Units
    min_delta: Units
    equal_refused: Flag
    close_amount: Units | None
    captured: Units | None
    refunded: Units | None
    pending: Pending | None
    transactions: tuple[Hash, ...]
    note: Text
    opened_at: Ms
    updated_at: Ms


class Document(_Model):
    metadata: Metadata
    channels: tuple[Entry, ...]
    counters: dict[Text, Units]

    @property
    def incoming(self) -> tuple[Incoming, ...]:
        return tuple(Incoming(_channel(entry), entry.moved) for entry in self.channels)


def dump(
    channels: Iterable[Incoming], counters: Mapping[str, int], *, store: str, commits: int, exported_at: int
) -> bytes:
    """The file's bytes. What is in flight in `channels` is uncertain in it."""
    document = Document.model_validate(
        {
            "metadata": {"store": store, "exported_at": exported_at, "commits": commits},
            "channels": [_entry(one) for one in channels],
            "counters": {key: str(amount) for key, amount in counters.items()},
        }
    )
    return orjson.dumps(
        document.model_dump(mode="json"), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    )


def parse(data: bytes) -> Document:
    """Raises `InterchangeError`, and nothing else, for anything that this version did not write."""
    if len(data) > LARGEST:
        raise InterchangeError(f"more than {LARGEST // 2**20} MiB: no file of channels is so large")
    try:
        value: Any = orjson.loads(data)
    except ValueError as error:
        raise InterchangeError(f"no JSON: {error}") from None
    metadata = value.get("metadata") if isinstance(value, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InterchangeError(f'no "{FORMAT}": its metadata.format says what a file is')
    version = metadata.get("version")
    if version != VERSION or type(version) is not int:
        # Never the text of a list: one that is deep enough cannot be shown.
        shown = "unknown" if isinstance(version, dict | list) else ascii(str(version)[:20])[1:-1]
        raise InterchangeError(
            f"of version {shown}; this bursar reads version {VERSION}. Use the newer bursar that wrote it"
        )
    try:
        document = Document.model_validate(value)
        ids = [entry.channel for entry in document.channels]
        for one in document.incoming:
            check(one.channel)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(
            ascii(part)[:60] if not str(part).isprintable() else str(part)[:60] for part in first["loc"]
        )
        raise InterchangeError(f"{place}: {first['msg'].removeprefix('Value error, ')}") from None
    except IllegalMove as error:
        raise InterchangeError(str(error)) from None
    if len(set(ids)) != len(ids):
        raise InterchangeError("a channel is in it twice")
    return document


def _entry(one: Incoming) -> dict[str, Any]:
    channel = without_holds(one.channel, one.channel.eligible_at)
    scope, pending = channel.scope, channel.pending
    return {
        "channel": channel.channel_id,
        "moved": one.moved,
        "scope": {name: getattr(scope, name) for name in Scope.model_fields},
        "descriptor": dict(channel.descriptor),
        "resource": channel.resource,
        "status": ChannelStatus.OPEN if one.moved else channel.status,
        **{name: str(getattr(channel, name)) for name in _AMOUNTS},
        **{name: _optional(getattr(channel, name)) for name in _OPTIONAL},
        "eligible_at": channel.eligible_at,
        "equal_refused": channel.equal_refused,
        "pending": None
        if pending is None
        else {
            "kind": pending.kind,
            "tx_hash": pending.tx_hash,
            "valid_before": pending.valid_before,
            "deposit": str(pending.deposit),
            "fee_sponsored": pending.fee_sponsored,
        },
        "transactions": channel.transactions,
        "note": channel.note,
        "opened_at": channel.opened_at,
        "updated_at": channel.updated_at,
    }


_AMOUNTS: Final = (
    *("authorised", "paid", "uncertain", "deposit", "accepted", "settled", "fees", "min_delta"),
)
_OPTIONAL: Final = ("close_amount", "captured", "refunded")


def _optional(amount: int | None) -> str | None:
    return None if amount is None else str(amount)


def _channel(entry: Entry) -> Channel:
    pending = entry.pending
    return Channel(
        channel_id=entry.channel,
        scope=PaymentScope(**entry.scope.model_dump()),
        descriptor=dict(entry.descriptor),
        resource=entry.resource,
        status=entry.status,
        authorised=entry.authorised,
        paid=entry.paid,
        uncertain=entry.uncertain,
        eligible_at=entry.eligible_at,
        deposit=entry.deposit,
        accepted=entry.accepted,
        settled=entry.settled,
        fees=entry.fees,
        min_delta=entry.min_delta,
        equal_refused=entry.equal_refused,
        close_amount=entry.close_amount,
        captured=entry.captured,
        refunded=entry.refunded,
        pending=None
        if pending is None
        else PendingTransaction(
            kind=pending.kind,
            raw="",
            tx_hash=pending.tx_hash,
            valid_before=pending.valid_before,
            deposit=pending.deposit,
            fee_sponsored=pending.fee_sponsored,
        ),
        transactions=entry.transactions,
        note=entry.note,
        opened_at=entry.opened_at,
        updated_at=entry.updated_at,
    )
