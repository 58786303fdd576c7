"""The ledger file: one JSON line before a credential leaves, one for every move after it.

Each process writes a journal of its own, named after its owner id; only that process appends, readers read at
any time. A line goes out in one ``write`` without a sync: it survives kill -9, not a power cut, which is
why every amount that may be signed is in the store first. A line without its newline was torn by a crash
(or a full disk) before anything left, and is not read.

A journal that grows goes on in a further file (`ledger_files`). Each line carries a hash that chains it to the
one before (`ledger_hash`); the store keeps how far it has seen the chain (`anchors`).

Lines with ``move`` carry what `account.apply` needs; all others are for people.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, assert_never

import orjson

from store import ledger_files, ledger_hash
from store.account import Ended, Ending, Grown, IllegalMove, Move, Probed, Reconciled, Sent, WrittenOff
from store.amounts import UINT128_MAX
from store.anchors import Anchor
from store.contract import StoreUnavailable
from store.records import Hold, JournalMark

VERSION: Final = 1
SUFFIX: Final = ledger_files.SUFFIX
SEGMENT_BYTES: Final = 64 * 2**20


def boot_id() -> str:
    """Which run of the machine this is. Unknown is unlike every other, so that the safe rule applies."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{os.urandom(8).hex()}"


@dataclass(frozen=True, slots=True)
class Line:
    """One line as read back: its number, its fields, and its move if it moves a channel's account."""

    number: int
    fields: Mapping[str, Any]
    channel_id: str | None
    move: Move | None
    body: bytes = b""  # what its hash is over, after the hash of the line before
    digest: bytes | None = None  # its hash; None in ledgers of before there was one


class Journal:
    """This process's ledger. Raises `StoreUnavailable` if a line cannot be written whole.

    A file that has reached `segment_bytes` is synced and followed by another.
    """

    def __init__(self, directory: Path, name: str, boot: str, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.name = name
        self.boot = boot
        self.lines = 0
        self._directory = directory
        self._digest = ledger_hash.first(name)
        self._segment_bytes = segment_bytes
        self._segment = 1
        self._written = 0  # bytes of this segment
        self._torn = False
        self.path = ledger_files.segment_path(directory, name, 1)
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = _create(self.path)
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def mark(self) -> JournalMark:
        return JournalMark(self.name, self.lines, self.boot)

    @property
    def anchor(self) -> Anchor:
        """Where its chain of hashes stands."""
        return Anchor(self.name, self.lines, self._digest, self.boot, closed=self._fd < 0)

    def append(
        self, fields: Mapping[str, Any], *, channel_id: str | None = None, move: Move | None = None
    ) -> int:
        """Write one line; when this returns, kill -9 does not lose it. Returns its number.

        Raises `StoreUnavailable` if it could not be written whole: nothing that depends on it may leave.
        """
        if self._fd < 0:
            raise StoreUnavailable(f"the ledger {self.path} is closed")
        record: dict[str, Any] = {"v": VERSION, "n": self.lines + 1, **fields}
        if channel_id is not None:
            record["channel"] = channel_id
        if move is not None:
            record["move"] = _move_to_json(move)
        try:
            body = orjson.dumps(record, default=str)
        except TypeError:  # long integers, bytes of a client that are no text: rare, so only then walked
            body = orjson.dumps(_plain(record), default=str)
        digest = ledger_hash.link(self._digest, body)
        data = ledger_hash.with_hash(body, digest) + b"\n"
        if self._torn:
            # End the torn line, so that this one stands alone, and spoil it: it may lack only its newline, and
            # whoever wrote it was told that it is not there.
            data = b"~\n" + data
        elif self._written >= self._segment_bytes:
            self._next_segment()
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise self._unwritable(error) from error
        self._written += written
        self._torn = written != len(data)
        if self._torn:
            raise StoreUnavailable(
                f"the ledger {self.path} took only a part of a line: free some space on its disk"
            )
        self._digest = digest
        self.lines += 1
        return self.lines

    def _next_segment(self) -> None:
        """Go on in a new file. If there can be none, the old one goes on, and the next line tries again."""
        path = ledger_files.segment_path(self._directory, self.name, self._segment + 1)
        try:
            fd = _create(path)
        except OSError:
            return
        full, self._fd = self._fd, fd
        self.path, self._written, self._segment = path, 0, self._segment + 1
        # Beside the requests that wait: what is written is not lost by a crash in any case.
        threading.Thread(target=_sync_and_close, args=(full,), name="ledger sync").start()

    def _unwritable(self, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(f"cannot write the ledger {self.path}: {error.strerror}; free some space")

    def close(self) -> None:
        """Write no more. From here on what was written survives a power cut."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _sync_and_close(fd)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _sync_and_close(fd: int) -> None:
    try:
        with contextlib.suppress(OSError):  # a disk that fails now has taken the lines before
            os.fsync(fd)
    finally:
        os.close(fd)


def read_lines(path: Path) -> Iterator[Line]:
    """All whole lines of a ledger file, in order. A missing file has none."""
    for raw in ledger_files.raw_lines(path):
        if (line := parse_line(raw)) is not None:
            yield line


def read_journal(directory: Path, name: str) -> Iterator[Line]:
    """The same of all files of a journal."""
    for path in ledger_files.segments(directory, name):
        yield from read_lines(path)


def parse_line(raw: bytes) -> Line | None:
    """What a line of a file (without its newline) says; None for one that was torn by a full disk."""
    try:
        fields = orjson.loads(raw)
        if type(fields["n"]) is not int:
            return None
        body, digest = ledger_hash.without_hash(raw)
        return Line(
            number=fields["n"],
            fields=fields,
            channel_id=_text(fields["channel"]) if "channel" in fields else None,
            move=_move_from_json(fields["move"]) if "move" in fields else None,
            body=body,
            digest=digest,
        )
    except (KeyError, TypeError, ValueError):
        return None  # nothing left after it was refused


def end_of(directory: Path, anchor: Anchor) -> Anchor | None:
    """Where a journal that nobody writes any more has ended; None if that is before its anchor: lines are missing."""
    for path in reversed(ledger_files.segments(directory, anchor.journal)):
        for raw in ledger_files.last_lines(path):
            line = parse_line(raw)
            if line is not None and line.digest is not None:
                if line.number < anchor.line:
                    return None
                return Anchor(anchor.journal, line.number, line.digest, anchor.boot_id, closed=True)
    return None if anchor.line else replace(anchor, closed=True)


def moves_after(directory: Path, mark: JournalMark, channel_id: str) -> list[Move]:
    """What the journal of `mark` says of one channel since the record was folded.

    Raises `account.IllegalMove` if lines that were written are not there (the file is gone, cut short or
    damaged) or are not what was written: money may have left that they would name, so the caller uses
    `account.doubt_everything`.
    """
    path = ledger_files.segment_path(directory, mark.journal, 1)
    files = list(ledger_files.segments(directory, mark.journal))
    if not files:
        raise IllegalMove(
            f"the ledger {path} is gone, but {channel_id} was folded up to its line {mark.line}"
        )
    last, files = _up_to(files, mark.line)
    moves: list[Move] = []
    before = ledger_hash.first(mark.journal) if last == 0 else None
    chained: bool | None = None  # none of its lines has a hash, or each has
    for line in (line for file in files for line in read_lines(file)):
        if line.number != last + 1:
            raise IllegalMove(f"the ledger {path} goes from line {last} to {line.number}: lines are lost")
        chained = line.digest is not None if chained is None else chained
        linked = before is None or line.digest == ledger_hash.link(before, line.body)
        if (line.digest is not None) is not chained or (chained and not linked):
            raise IllegalMove(f"line {line.number} of the ledger {path} is not what was written")
        last, before = line.number, line.digest
        if line.number > mark.line and line.channel_id == channel_id and line.move is not None:
            moves.append(line.move)
    if last < mark.line:
        raise IllegalMove(
            f"the ledger {path} ends at line {last}, but {channel_id} was folded up to {mark.line}"
        )
    return moves


def _up_to(files: list[Path], line: int) -> tuple[int, list[Path]]:
    """The files of a journal from that one on which has `line`, and the number of the line before them."""
    for index in range(len(files) - 1, 0, -1):
        found = next(read_lines(files[index]), None)
        if found is not None and found.number <= max(line, 1):
            return found.number - 1, files[index:]
    return 0, files


def _plain(value: object) -> object:
    """What JSON can carry and give back: long integers as decimal strings, stray bytes spelled out."""
    match value:
        case int():
            return value if -(2**63) <= value < 2**63 else str(value)
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case Mapping():
            return {_plain(str(key)): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _move_to_json(move: Move) -> dict[str, Any]:
    match move:
        case Sent(held):
            return {
                "kind": "sent",
                "request": held.request_id,
                "amount": str(held.amount),
                "voucher": str(held.voucher),
                "sent_at": held.sent_at,
                "expires_at": held.expires_at,
                "seq": held.seq,
                "fingerprint": held.fingerprint,
            }
        case Ended():
            return {
                "kind": "ended",
                "request": move.request_id,
                "ending": move.ending.value,
                "at": move.at,
                "spent": None if move.spent is None else str(move.spent),
                "accepted": str(move.accepted),
                "charged": str(move.charged),
            }
        case Grown():
            return {
                "kind": "grown",
                "request": move.request_id,
                "amount": str(move.amount),
                "voucher": str(move.voucher),
            }
        case Probed():
            return {
                "kind": "probed",
                "seq": move.seq,
                "sent_at": move.sent_at,
                "at": move.at,
                "spent": str(move.spent),
                "voucher": str(move.voucher),
            }
        case WrittenOff():
            return {"kind": "written-off", "amount": str(move.amount), "at": move.at}
        case Reconciled():
            return {"kind": "reconciled", "amount": str(move.amount)}
        case _:
            assert_never(move)


def _move_from_json(data: Mapping[str, Any]) -> Move:
    match data["kind"]:
        case "sent":
            return Sent(
                Hold(
                    request_id=_text(data["request"]),
                    amount=_amount(data["amount"]),
                    voucher=_amount(data["voucher"]),
                    sent_at=_number(data["sent_at"]),
                    expires_at=_number(data["expires_at"]),
                    seq=_number(data["seq"]),
                    fingerprint=_text(data["fingerprint"]),
                )
            )
        case "ended":
            return Ended(
                request_id=_text(data["request"]),
                ending=Ending(_text(data["ending"])),
                at=_number(data["at"]),
                spent=None if data["spent"] is None else _amount(data["spent"]),
                accepted=_amount(data["accepted"]),
                charged=_amount(data.get("charged", 0)),  # missing in lines of before there were streams
            )
        case "grown":
            return Grown(
                request_id=_text(data["request"]),
                amount=_amount(data["amount"]),
                voucher=_amount(data["voucher"]),
            )
        case "probed":
            return Probed(
                seq=_number(data["seq"]),
                sent_at=_number(data["sent_at"]),
                at=_number(data["at"]),
                spent=_amount(data["spent"]),
                voucher=_amount(data["voucher"]),
            )
        case "written-off":
            return WrittenOff(amount=_amount(data["amount"]), at=_number(data["at"]))
        case "reconciled":
            return Reconciled(amount=_amount(data["amount"]))
        case _:
            raise ValueError("an unknown move")


def _text(value: object) -> str:
    if type(value) is not str:
        raise ValueError("text was expected")
    return value


def _amount(value: object) -> int:
    """Base units: a negative one would give back, in the fold, what was paid; no voucher has more than a uint128."""
    amount = _number(value)
    if not 0 <= amount <= UINT128_MAX:
        raise ValueError("no amount of base units")
    return amount


_LONGEST_NUMBER: Final = 40  # characters: a sign, and the digits of a uint128


def _number(value: object) -> int:
    """As `_move_to_json` and `_plain` write it. Anything else was not written by us: it must not come to be money."""
    if type(value) is int:
        return value
    if type(value) is str and len(value) <= _LONGEST_NUMBER and str(number := int(value)) == value:
        return number
    raise ValueError("an integer was expected")
