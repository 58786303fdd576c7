"""The files of the ledger's directory: which journal each belongs to, and in which order they are read.

A journal is `NAME.jsonl`, and when that is full `NAME.0002.jsonl`, `NAME.0003.jsonl` and so on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

SUFFIX: Final = ".jsonl"
_SEGMENT: Final = re.compile(r"(.+)\.([0-9]{4,9})\Z", re.DOTALL)
_CHUNK: Final = 1 << 18


def segment_path(directory: Path, name: str, segment: int) -> Path:
    """The file of a journal's `segment`, counted from 1."""
    return directory / (f"{name}{SUFFIX}" if segment == 1 else f"{name}.{segment:04d}{SUFFIX}")


def journal_of(path: Path) -> tuple[str, int]:
    """The journal that a file of the ledger belongs to, and its segment."""
    stem = path.name.removesuffix(SUFFIX)
    found = _SEGMENT.match(stem)
    return (stem, 1) if found is None else (found[1], int(found[2]))


def journals(directory: Path) -> dict[str, list[Path]]:
    """All journals by name, each with its files in order. A missing directory has none."""
    found = defaultdict[str, list[tuple[int, Path]]](list)
    for path in directory.glob(f"*{SUFFIX}") if directory.is_dir() else ():
        name, segment = journal_of(path)
        found[name].append((segment, path))
    return {name: [path for _, path in sorted(found[name])] for name in sorted(found)}


def segments(directory: Path, name: str) -> Sequence[Path]:
    """The files of one journal, in order."""
    found = [segment_path(directory, name, 1), *directory.glob(f"{_escaped(name)}.*{SUFFIX}")]
    mine = [(journal_of(path)[1], path) for path in found if journal_of(path)[0] == name and path.exists()]
    return [path for _, path in sorted(mine)]


def raw_lines(path: Path) -> Iterator[bytes]:
    """Whole lines, without their newlines; what comes after the last newline was torn, or is being written.

    No file stays open between two lines: a ledger may have more journals than a process may have files.
    """
    offset, rest = 0, b""
    while True:
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(_CHUNK)
        except FileNotFoundError:
            return
        if not data:
            return
        offset += len(data)
        *whole, rest = (rest + data).split(b"\n")
        yield from whole


def last_lines(path: Path) -> Iterator[bytes]:
    """Whole lines, without their newlines, the last ones first; who takes them all may get the last ones twice."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _CHUNK))
            *whole, _torn = file.read().split(b"\n")
    except FileNotFoundError:
        return
    yield from reversed(whole[1:] if size > _CHUNK else whole)
    if size > _CHUNK:
        yield from reversed(list(raw_lines(path)))


def _escaped(name: str) -> str:
    """`name` for a glob that finds nothing else."""
    return re.sub(r"([*?[])", r"[\1]", name)
