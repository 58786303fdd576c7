"""What others may touch, or may have put there, is refused before it is opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from store.contract import StoreUnavailable
from store.private_files import check_private_file, private_directory


def test_a_directory_is_made_for_us_alone_and_the_one_it_is_in(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c"
    assert stat.S_IMODE(private_directory(path).st_mode) == 0o700
    assert private_directory(path).st_ino == path.stat().st_ino
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o701, 0o702, 0o704, 0o710, 0o720, 0o740, 0o777])
def test_one_bit_for_anybody_else_is_too_many(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "store"
    path.mkdir()
    path.chmod(mode)
    with pytest.raises(StoreUnavailable, match=f"mode {mode:04o} lets others in; run: chmod 700 "):
        private_directory(path)
    file = tmp_path / "file"
    file.touch()
    file.chmod(mode)
    with pytest.raises(StoreUnavailable, match=f"mode {mode:04o} lets others in; run: chmod 600 "):
        check_private_file(file)


def test_what_is_no_directory_or_cannot_be_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o600)
    with pytest.raises(StoreUnavailable, match="not a directory"):
        private_directory(tmp_path / "file")
    with pytest.raises(StoreUnavailable, match=r"cannot be made or read: (Not a directory|File exists)"):
        private_directory(tmp_path / "file" / "store")


def test_a_file_is_a_plain_one_that_can_be_looked_at(tmp_path: Path) -> None:
    check_private_file(tmp_path / "missing")
    (tmp_path / "file").touch(mode=0o600)
    check_private_file(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("link", "pipe"):
        with pytest.raises(StoreUnavailable, match="is not a plain file"):
            check_private_file(tmp_path / name)
    with pytest.raises(StoreUnavailable, match="cannot be read: Not a directory"):
        check_private_file(tmp_path / "file" / "data.mdb")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    file.touch(mode=0o600)
    directory.mkdir(mode=0o700)
    for path in (file, directory):
        os.chown(path, 12345, -1)
    with pytest.raises(StoreUnavailable, match="belongs to user id 12345 and this process runs as 0"):
        check_private_file(file)
    with pytest.raises(StoreUnavailable, match="belongs to user id 12345"):
        private_directory(directory)
