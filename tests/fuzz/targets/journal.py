"""A ledger file's bytes.

- Reading lines raises nothing; reading moves raises `IllegalMove` only, and never skips a number.
- A line's number is a number, its channel a name or none; a move has fields of its own types, so that folding it into
  a record raises `IllegalMove` only. A move that is written again is the same.
- After a fold that went well the account adds up, nothing was authorised by it, and no less is paid than before.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from store import account, journal, ledger_hash
from store.account import Ended, Ending, Grown, IllegalMove, Move, Probed, Sent
from store.records import Hold, JournalMark
from tests.fuzz.oracle import amount, loggable
from tests.fuzz.target import Target
from tests.unit.methods.samples import ours

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-journal-")
FILE = Path(_FOLDER.name) / f"p1{journal.SUFFIX}"
CHANNEL = ours(authorised=1_000, deposit=5_000, paid=100, folded=JournalMark("p1", 1, "boot"))


def one_input(data: bytes) -> None:
    FILE.write_bytes(data)
    lines = list(journal.read_lines(FILE))
    assert len(lines) <= data.count(b"\n")
    for line in lines:
        assert type(line.number) is int
        assert line.channel_id is None or type(line.channel_id) is str
        if line.move is not None:
            check(line.move)
    try:
        moves = journal.moves_after(FILE.parent, JournalMark("p1", 1, "boot"), CHANNEL.channel_id)
    except IllegalMove as error:
        loggable(str(error))
        return
    assert [one.number for one in lines] == list(range(1, len(lines) + 1))
    assert moves == [
        one.move for one in lines if one.number > 1 and one.move and one.channel_id == CHANNEL.channel_id
    ]
    try:
        folded = account.fold(CHANNEL, moves)
    except IllegalMove:
        return
    account.check(folded)
    assert folded.authorised == CHANNEL.authorised
    assert folded.paid >= CHANNEL.paid
    assert not folded.holds


def check(move: Move) -> None:
    values = asdict(move)
    values |= values.pop("hold", {})
    assert all(type(value) in (int, str, Ending) or value is None for value in values.values()), move
    for name in {"amount", "voucher", "spent", "accepted", "charged"} & values.keys():
        amount(values[name], 2**128)
    assert journal._move_from_json(journal._move_to_json(move)) == move


def seeds() -> dict[str, bytes]:
    def chained(*moves: Move) -> bytes:
        FILE.unlink(missing_ok=True)
        ledger = journal.Journal(FILE.parent, "p1", "boot")
        ledger.append({"event": "opened", "at": 1, "note": "é"}, channel_id=CHANNEL.channel_id)
        for move in moves:
            ledger.append({"event": "moved", "at": 2}, channel_id=CHANNEL.channel_id, move=move)
        ledger.close()
        return FILE.read_bytes()

    def file(*moves: Move) -> bytes:
        """As before lines were chained: a changed one is then still read."""
        lines = chained(*moves).splitlines()
        return b"".join(ledger_hash.without_hash(line)[0] + b"\n" for line in lines)

    sent = Sent(Hold("r1", 100, 1_000, 5, 10, 1, "f"))
    return {
        "chained.jsonl": chained(sent, Ended("r1", Ending.PAID, 7, spent=200, accepted=1_000)),
        "paid.jsonl": file(sent, Ended("r1", Ending.PAID, 7, spent=200, accepted=1_000)),
        "lost.jsonl": file(sent),
        "stream.jsonl": file(sent, Grown("r1", 50, 1_000), Ended("r1", Ending.METERED, 9, charged=120)),
        "probed.jsonl": file(Probed(1, 5, 6, 150, 1_000)),
        "deep.jsonl": file(sent).replace(b'"kind":"sent"', b'"kind":' + b"[" * 1000 + b"]" * 1000),
        "deep_ending.jsonl": file(sent, Ended("r1", Ending.PAID, 7)).replace(
            b'"ending":"paid"', b'"ending":' + b"[" * 1000 + b"]" * 1000
        ),
        "endless.jsonl": file(sent).replace(b'"sent_at":5', b'"sent_at":1e400'),
        "list.jsonl": file(sent).replace(b'"request":"r1"', b'"request":["r1"]'),
        "negative.jsonl": file(sent, Ended("r1", Ending.PAID, 7)).replace(
            b'"amount":"100"', b'"amount":"-50"'
        ),
        "huge.jsonl": file(sent).replace(b'"voucher":"1000"', b'"voucher":"%d"' % 2**128),
        "torn": file(sent)[:-9] + b"~\n" + file(sent)[-40:],
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"\n",
            b"~\n",
            b'"n":',
            b'"move":{',
            b'"kind":"',
            b'"channel":',
            b"null",
            b"[]",
            b"{}",
            b"true",
            b"1e400",
        ),
        *(
            b'"request":',
            b'"amount":',
            b'"voucher":',
            b'"ending":"metered"',
            b'"spent":',
            b'"charged":',
            b'"seq":-1',
        ),
        *(b"-5", b'"1_0"', b'" 5 "', b"1.5", b'"' + b"9" * 50 + b'"', b"9" * 25, b'"grown"', b'"probed"'),
    ),
)
