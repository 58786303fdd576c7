"""The file in which channels move from one store to another.

- Nothing but `InterchangeError` is raised, and its words can be shown.
- Every channel in what is accepted adds up; amounts are within their bounds; no transaction that could be sent is in
  it.
- Written again, it is the same document.
"""

from __future__ import annotations

from dataclasses import replace

from store import account, interchange
from store.interchange import InterchangeError
from store.lifecycle import ChannelStatus
from store.merging import Incoming
from store.records import Channel, Hold
from tests.fuzz.oracle import amount, loggable
from tests.fuzz.target import Target
from tests.unit.methods.samples import channel, ours, pending, v1_ours


def one_input(data: bytes) -> None:
    try:
        document = interchange.parse(data)
    except InterchangeError as error:
        loggable(str(error))
        return
    for value in document.counters.values():
        amount(value)
    for one in document.incoming:
        account.check(one.channel)
        for value in (one.channel.authorised, one.channel.paid, one.channel.uncertain, one.channel.deposit):
            amount(value)
        assert one.channel.pending is None or one.channel.pending.raw == ""
        assert not one.channel.holds
    again = interchange.parse(written(document))
    assert (again.counters, again.metadata) == (document.counters, document.metadata)
    # A channel that has moved is an open one to whoever takes it: only from there on is it the same.
    assert [one.channel.channel_id for one in again.incoming] == [
        one.channel.channel_id for one in document.incoming
    ]
    assert interchange.parse(written(again)) == again


def written(document: interchange.Document) -> bytes:
    metadata = document.metadata
    return interchange.dump(
        document.incoming,
        document.counters,
        store=metadata.store,
        commits=metadata.commits,
        exported_at=metadata.exported_at,
    )


def seeds() -> dict[str, bytes]:
    busy = replace(
        ours(authorised=1_000, deposit=2**90, paid=100),
        holds={"r1": Hold("r1", 50, 1_000, 5, 10, 1, "f")},
        held=50,
    )
    opening = channel(
        status=ChannelStatus.SENT,
        pending=pending(),
        deposit=0,
        authorised=10,
        transactions=("0x" + "ab" * 32,),
    )
    closed = v1_ours(status=ChannelStatus.CLOSED, captured=7, refunded=9, close_amount=7, note="é")

    def file(*channels: Channel, moved: bool = False, **counters: int) -> bytes:
        incoming = [Incoming(one, moved) for one in channels]
        return interchange.dump(incoming, counters, store="aa" * 16, commits=3, exported_at=1_795_420_000_000)

    whole = file(ours(), opening)
    return {
        "empty.json": file(),
        "several.json": file(busy, closed, lifetime=1000),
        "moved.json": file(ours(), moved=True),
        "opening.json": whole,
        "twice.json": file(ours(), ours()),
        "deep_version.json": file().replace(b'"version": 1', b'"version": ' + b"[" * 1000 + b"]" * 1000),
        "odd_name.json": file(a=5).replace(b'"a": "5"', b'"\\u001b\\n' + b"x" * 900 + b'": 5'),
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b'"metadata"',
            b'"channels": [',
            b'"counters": {',
            b'"version": 1',
            b'"format"',
            b"null",
            b"true",
            b"-1",
        ),
        *(
            b'"340282366920938463463374607431768211456"',
            b'"0"',
            b"1.5",
            b"1e400",
            b'"status": "',
            b"closed",
            b"0x",
        ),
        *(
            b'"pending": {',
            b'"moved": true',
            b'"\\ud800"',
            b"\\u0000",
            b"{}",
            b"[]",
            b"9007199254740992",
            b'"\\u0661"',
        ),
    ),
    longest=6000,
)
