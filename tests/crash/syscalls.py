"""What a payer writes, in the order in which the system was asked for it: read from strace's log.

Each call has the line where it began and the one where it was over; with threads, other calls come in between.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRACED = (
    "openat,close,lseek,write,writev,pwrite64,pwritev,fsync,fdatasync,sync_file_range,msync,sendto,sendmsg,"
    "ftruncate,fallocate,rename,unlink,mmap"
)
STRINGS = 4_000_000

_LINE = re.compile(r"(?P<pid>\d+) +(?P<rest>.*)")
_RESUMED = re.compile(r"<\.\.\. (?P<name>\w+) resumed>(?P<rest>.*)")
_UNFINISHED = re.compile(r"(?P<call>.*?)(?:,? ?)<unfinished \.\.\.>$")
_CALL = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)")
_RESULT = re.compile(r"\)\s+= (?P<result>-?\d+)")
_FD = re.compile(r"(?P<fd>\d+)<(?P<path>(?:\\x[0-9a-f]{2})*|[^>]*)>")
_HEX = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Syscall:
    """`began` and `ended` are line numbers. `offset` is None where the file's own position, or none, counts."""

    name: str
    thread: int
    fd: int
    path: str
    data: bytes
    offset: int | None
    result: int
    began: int
    ended: int
    arguments: str


def read(log: Path) -> list[Syscall]:
    """All calls that came back, in the order in which they began."""
    return sorted(_calls(log.read_text().splitlines()), key=lambda call: call.began)


def _calls(lines: Iterable[str]) -> Iterator[Syscall]:
    begun: dict[int, tuple[int, str]] = {}
    for number, line in enumerate(lines):
        found = _LINE.match(line)
        if found is None:
            continue
        thread, rest = int(found["pid"]), found["rest"]
        if (resumed := _RESUMED.match(rest)) is not None:
            began, call = begun.pop(thread)
            yield from _call(thread, call + resumed["rest"], began, number)
        elif (unfinished := _UNFINISHED.match(rest)) is not None:
            begun[thread] = (number, unfinished["call"])
        else:
            yield from _call(thread, rest, number, number)


def _call(thread: int, text: str, began: int, ended: int) -> Iterator[Syscall]:
    found, result = _CALL.match(text), _RESULT.search(text)
    if found is None or result is None:
        return
    name, arguments = found["name"], found["arguments"]
    first = _FD.match(arguments)
    yield Syscall(
        name=name,
        thread=thread,
        fd=int(first["fd"]) if first is not None else -1,
        path=_text(first["path"]) if first is not None else "",
        data=b"".join(_bytes(one) for one in _HEX.findall(arguments)),
        offset=_offset(name, arguments),
        result=int(result["result"]),
        began=began,
        ended=ended,
        arguments=arguments,
    )


def _offset(name: str, arguments: str) -> int | None:
    if name in ("pwrite64", "pwritev"):
        return int(arguments[: arguments.rindex(")")].rsplit(", ", 1)[1])
    return None


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _text(path: str) -> str:
    return _bytes(path).decode() if path.startswith("\\x") else path


# -- one file


@dataclass(frozen=True)
class Write:
    """Bytes that were put into a file. `lasting` is the line after which they outlive a power cut; None: not known."""

    offset: int
    data: bytes
    began: int
    ended: int
    lasting: int | None


def writes_of(calls: list[Syscall], path: str) -> list[Write]:
    """Every write to the file `path`, and from when on each is on the disk: by a later sync, or by ``O_DSYNC``."""
    direct: set[int] = set()  # descriptors that return only when it is on the disk
    at: dict[int, int] = {}  # where the next write of a descriptor goes
    found: list[tuple[int, bytes, Syscall]] = []
    syncs: list[Syscall] = []
    for call in calls:
        if call.name == "openat" and _opened(call) == path and call.result >= 0:
            at[call.result] = 0
            direct.discard(call.result)
            if re.search(r"O_D?SYNC", call.arguments):
                direct.add(call.result)
        if call.path != path or call.result < 0:
            continue
        match call.name:
            case "lseek":
                at[call.fd] = call.result
            case "pwrite64" | "pwritev":
                assert call.offset is not None
                found.append((call.offset, call.data[: call.result], call))
            case "write" | "writev":
                found.append((at[call.fd], call.data[: call.result], call))
                at[call.fd] += call.result
            case "fsync" | "fdatasync" if call.result == 0:
                syncs.append(call)
            case "mmap":
                assert "PROT_WRITE" not in call.arguments, "it is written through a map, which nobody can see"
            case _:
                pass
    return [
        Write(offset, data, call.began, call.ended, _lasting(call, direct, syncs))
        for offset, data, call in found
    ]


def _lasting(call: Syscall, direct: set[int], syncs: list[Syscall]) -> int | None:
    if call.fd in direct:
        return call.ended
    return next((sync.ended for sync in syncs if sync.began > call.ended), None)


def _opened(call: Syscall) -> str:
    """The file that an ``openat`` names; the first string is it, whatever the directory is shown as."""
    return call.data.decode(errors="replace")


def image(writes: Iterable[Write]) -> bytes:
    """The file that these writes, in this order, leave."""
    content = bytearray()
    for write in writes:
        end = write.offset + len(write.data)
        if len(content) < end:
            content.extend(bytes(end - len(content)))
        content[write.offset : end] = write.data
    return bytes(content)
