"""What tests of the store do to the system under it, and what they watch it do."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def file_descriptors_left(count: int) -> Iterator[None]:
    """This process may open `count` more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = [os.open(os.devnull, os.O_RDONLY) for _ in range(count + 1)]
    for fd in probe:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe[-1], hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a write meets is what it meets on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """What is synced and renamed from now on, in order: what, its name, how many bytes of it were there."""
    seen: list[tuple[str, str, int]] = []
    sync, rename = os.fsync, Path.rename

    def watched_sync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        seen.append(("sync", path.name, 0 if path.is_dir() else path.stat().st_size))
        sync(fd)

    def watched_rename(path: Path, target: Path) -> Path:
        seen.append(("rename", target.name, 0))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "rename", watched_rename)
    return seen
