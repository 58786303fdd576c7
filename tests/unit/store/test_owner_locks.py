from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.contract import StoreUnavailable
from store.owner_locks import OwnerLock
from tests.unit.store.disk import file_descriptors_left


@pytest.fixture
def locks() -> Iterator[list[OwnerLock]]:
    taken: list[OwnerLock] = []
    yield taken
    for lock in taken:
        lock.release()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path


def files(directory: Path) -> set[str]:
    return set(os.listdir(directory / "owners"))


def dead(directory: Path, owner_id: str) -> Path:
    """The file of an owner that was killed: there, and locked by nobody."""
    path = directory / "owners" / f"{owner_id}.lock"
    path.touch(mode=0o600)
    return path


def test_ids_are_never_the_same(directory: Path, locks: list[OwnerLock]) -> None:
    locks += [OwnerLock(directory) for _ in range(50)]
    assert len({lock.owner_id for lock in locks}) == 50
    assert files(directory) == {f"{lock.owner_id}.lock" for lock in locks}
    assert all(one.alive(other.owner_id) for one in locks for other in locks)


def test_release_is_idempotent_and_seen_at_once(directory: Path, locks: list[OwnerLock]) -> None:
    one, two = OwnerLock(directory), OwnerLock(directory)
    locks += [one, two]
    one.release()
    one.release()
    assert not one.alive(one.owner_id)
    assert not two.alive(one.owner_id)
    assert one.alive(two.owner_id)
    assert files(directory) == {f"{two.owner_id}.lock"}


def test_the_dead_are_cleaned_up_and_the_living_left(directory: Path, locks: list[OwnerLock]) -> None:
    first = OwnerLock(directory)
    locks.append(first)
    gone = dead(directory, "d" * 32)
    other = directory / "owners" / "notes.txt"
    other.touch()
    assert not first.alive("d" * 32)
    assert gone.exists(), "asking must not change anything"
    second = OwnerLock(directory)
    locks.append(second)
    assert not gone.exists()
    assert other.exists()
    assert not first.alive("d" * 32)
    assert second.alive(first.owner_id)


def test_two_who_ask_at_once_do_not_take_each_other_for_the_owner(
    directory: Path, locks: list[OwnerLock]
) -> None:
    lock = OwnerLock(directory)
    locks.append(lock)
    with dead(directory, "d" * 32).open("r+") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        assert not lock.alive("d" * 32)


def test_what_cannot_be_told_is_an_error(directory: Path, locks: list[OwnerLock]) -> None:
    """Taking a living owner for dead would let two processes sign on one channel."""
    lock = OwnerLock(directory)
    locks.append(lock)
    dead(directory, "d" * 32).unlink()
    (directory / "owners" / f"{'d' * 32}.lock").symlink_to("nowhere")
    with pytest.raises(StoreUnavailable, match="alive cannot be told"):
        lock.alive("d" * 32)


def test_a_vanished_directory_is_an_error_and_no_death(directory: Path, locks: list[OwnerLock]) -> None:
    one, two = OwnerLock(directory), OwnerLock(directory)
    locks += [one, two]
    for name in files(directory):
        (directory / "owners" / name).unlink()
    with pytest.raises(StoreUnavailable, match=r"were removed.*start them again"):
        one.alive(two.owner_id)
    assert one.alive(one.owner_id)


def test_a_file_that_is_cleaned_up_before_its_lock_is_not_used(
    directory: Path, locks: list[OwnerLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between making its file and locking it, an owner looks dead to whoever cleans up."""
    real = fcntl.flock
    vanished: list[str] = []

    def flock(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and len(vanished) < 3:
            (name,) = files(directory)
            (directory / "owners" / name).unlink()
            vanished.append(name)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = OwnerLock(directory)
    locks.append(lock)
    assert len(vanished) == 3
    assert files(directory) == {f"{lock.owner_id}.lock"}


def test_a_file_that_is_being_cleaned_up_is_not_used(
    directory: Path, locks: list[OwnerLock], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fcntl.flock
    cleaning: list[int] = []

    def flock(fd: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and not cleaning:
            (name,) = files(directory)
            cleaner = os.open(directory / "owners" / name, os.O_RDWR)
            real(cleaner, fcntl.LOCK_SH)
            cleaning.append(cleaner)
            try:
                real(fd, operation)
            finally:
                (directory / "owners" / name).unlink()
                os.close(cleaner)
        else:
            real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    lock = OwnerLock(directory)
    locks.append(lock)
    assert cleaning
    assert files(directory) == {f"{lock.owner_id}.lock"}
    assert lock.alive(lock.owner_id)


def test_a_directory_that_takes_no_files_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))

    def refuse(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StoreUnavailable, match=r"No locks available.*local, writable"):
        OwnerLock(directory)
    monkeypatch.undo()

    def vanish(fd: int, operation: int) -> None:
        for name in files(directory):
            (directory / "owners" / name).unlink()

    monkeypatch.setattr(fcntl, "flock", vanish)
    with pytest.raises(StoreUnavailable, match="every new file vanishes"):
        OwnerLock(directory)
    assert len(os.listdir("/proc/self/fd")) == before


def test_opening_and_closing_at_once(directory: Path) -> None:
    """Openings clean up while others open; no living owner may ever look dead."""
    wrong: list[str] = []

    def churn() -> None:
        for _ in range(100):
            lock = OwnerLock(directory)
            if not probe.alive(lock.owner_id):
                wrong.append(lock.owner_id)
            lock.release()
            if probe.alive(lock.owner_id):
                wrong.append(lock.owner_id)

    probe = OwnerLock(directory)
    threads = [threading.Thread(target=churn) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert files(directory) == {f"{probe.owner_id}.lock"}
    probe.release()


def test_a_process_without_a_file_left_is_refused(directory: Path) -> None:
    OwnerLock(directory).release()
    before = len(os.listdir("/proc/self/fd"))
    with (
        file_descriptors_left(0),
        pytest.raises(StoreUnavailable, match=r"no lock could be taken.*Too many open"),
    ):
        OwnerLock(directory)
    assert len(os.listdir("/proc/self/fd")) == before
    assert files(directory) == set()


def test_tidying_up_is_no_condition(directory: Path, locks: list[OwnerLock]) -> None:
    """With one file left there is room for the lock, and none to look for what the dead have left."""
    OwnerLock(directory).release()
    gone = dead(directory, "d" * 32)
    with file_descriptors_left(1):
        locks.append(OwnerLock(directory))
    assert gone.exists()
    assert locks[0].alive(locks[0].owner_id)


def test_what_cannot_be_tidied_up_stays(directory: Path, locks: list[OwnerLock], tmp_path: Path) -> None:
    """A link is not followed: what it names is not ours to remove. The others are gone all the same."""
    OwnerLock(directory).release()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    link = directory / ("a" * 32 + ".lock")
    link.symlink_to(elsewhere)
    gone = dead(directory, "d" * 32)
    locks.append(OwnerLock(directory))
    assert link.is_symlink()
    assert elsewhere.exists()
    assert not gone.exists()


def test_asking_leaves_nothing_open_and_says_yes_or_no(directory: Path, locks: list[OwnerLock]) -> None:
    locks += [OwnerLock(directory), OwnerLock(directory)]
    dead(directory, "d" * 32)
    before = len(os.listdir("/proc/self/fd"))
    assert locks[0].alive(locks[1].owner_id) is True
    assert locks[0].alive("d" * 32) is False
    assert locks[0].alive("e" * 32) is False
    assert locks[0].alive("no id of ours") is False
    assert len(os.listdir("/proc/self/fd")) == before
