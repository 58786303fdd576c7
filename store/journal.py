"""The ledger file: one JSON line before a credential leaves, one for every move after it.

Each process writes a file of its own, named after its owner id; only that process appends, readers read at
any time. A line goes out in one ``write`` without a sync: it survives kill -9, not a power cut, which is
why every amount that may be signed is in the store first. A line without its newline was torn by a crash
(or a full disk) before anything left, and is not read.

Lines with ``move`` carry what `account.apply` needs; all others are for people.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, assert_never

import orjson

from store.account import Ended, Ending, Grown, IllegalMove, Move, Probed, Sent
from store.contract import StoreUnavailable
from store.records import Hold, JournalMark

VERSION: Final = 1
SUFFIX: Final = ".jsonl"


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


class Journal:
    """This process's ledger file. Raises `StoreUnavailable` if a line cannot be written whole."""

    def __init__(self, directory: Path, name: str, boot: str) -> None:
        self.name = name
        self.boot = boot
        self.lines = 0
        self._torn = False
        self.path = directory / f"{name}{SUFFIX}"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(
                self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise StoreUnavailable(f"cannot write the ledger {self.path}: {error.strerror}") from error

    @property
    def mark(self) -> JournalMark:
        return JournalMark(self.name, self.lines, self.boot)

    def append(
        self, fields: Mapping[str, Any], *, channel_id: str | None = None, move: Move | None = None
    ) -> int:
        """Write one line; when this returns, kill -9 does not lose it. Returns its number.

        Raises `StoreUnavailable` if it could not be written whole: nothing that depends on it may leave.
        """
        record: dict[str, Any] = {"v": VERSION, "n": self.lines + 1, **fields}
        if channel_id is not None:
            record["channel"] = channel_id
        if move is not None:
            record["move"] = _move_to_json(move)
        try:
            data = orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # long integers, bytes of a client that are no text: rare, so only then walked
            data = orjson.dumps(_plain(record), default=str, option=orjson.OPT_APPEND_NEWLINE)
        if self._torn:
            # End the torn line, so that this one stands alone, and spoil it: it may lack only its newline, and
            # whoever wrote it was told that it is not there.
            data = b"~\n" + data
        try:
            written = os.write(self._fd, data)
        except OSError as error:
            raise StoreUnavailable(
                f"cannot write the ledger {self.path}: {error.strerror}; free some space"
            ) from error
        self._torn = written != len(data)
        if self._torn:
            raise StoreUnavailable(
                f"the ledger {self.path} took only a part of a line: free some space on its disk"
            )
        self.lines += 1
        return self.lines

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read_lines(path: Path) -> Iterator[Line]:
    """All whole lines of a ledger file, in order. A missing file has none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for raw in file:
            if not raw.endswith(b"\n"):
                return
            try:
                fields = orjson.loads(raw)
                if type(fields["n"]) is not int:
                    continue
                yield Line(
                    number=fields["n"],
                    fields=fields,
                    channel_id=fields.get("channel"),
                    move=_move_from_json(fields["move"]) if "move" in fields else None,
                )
            except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
                continue  # torn by a full disk: nothing left after it was refused


def moves_after(directory: Path, mark: JournalMark, channel_id: str) -> list[Move]:
    """What the journal of `mark` says of one channel since the record was folded.

    Raises `account.IllegalMove` if lines that were written are not there (the file is gone, cut short or
    damaged): money may have left that they would name, so the caller uses `account.doubt_everything`.
    """
    path = directory / f"{mark.journal}{SUFFIX}"
    if not path.exists():
        raise IllegalMove(
            f"the ledger {path} is gone, but {channel_id} was folded up to its line {mark.line}"
        )
    moves, last = [], 0
    for line in read_lines(path):
        if line.number != last + 1:
            raise IllegalMove(f"the ledger {path} goes from line {last} to {line.number}: lines are lost")
        last = line.number
        if line.number > mark.line and line.channel_id == channel_id and line.move is not None:
            moves.append(line.move)
    if last < mark.line:
        raise IllegalMove(
            f"the ledger {path} ends at line {last}, but {channel_id} was folded up to {mark.line}"
        )
    return moves


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
        case _:
            assert_never(move)


def _move_from_json(data: Mapping[str, Any]) -> Move:
    match data["kind"]:
        case "sent":
            return Sent(
                Hold(
                    request_id=data["request"],
                    amount=int(data["amount"]),
                    voucher=int(data["voucher"]),
                    sent_at=int(data["sent_at"]),
                    expires_at=int(data["expires_at"]),
                    seq=int(data["seq"]),
                    fingerprint=data["fingerprint"],
                )
            )
        case "ended":
            return Ended(
                request_id=data["request"],
                ending=Ending(data["ending"]),
                at=int(data["at"]),
                spent=None if data["spent"] is None else int(data["spent"]),
                accepted=int(data["accepted"]),
                charged=int(data.get("charged", 0)),  # missing in lines of before there were streams
            )
        case "grown":
            return Grown(request_id=data["request"], amount=int(data["amount"]), voucher=int(data["voucher"]))
        case "probed":
            return Probed(
                seq=int(data["seq"]),
                sent_at=int(data["sent_at"]),
                at=int(data["at"]),
                spent=int(data["spent"]),
                voucher=int(data["voucher"]),
            )
        case kind:
            raise ValueError(f"unknown move {kind!r}")
