"""The body's store, against a plain list of bytes."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy_addon.mitm.upload import Upload

MEMORY, CAP = 64, 400


class UploadMachine(RuleBasedStateMachine):
    """Bytes come in, attempts begin and go on; what leaves is always the body's prefix, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.upload = Upload(memory=MEMORY, cap=CAP, hashing=True)
        self.body = b""
        self.taken = b""
        self.forgotten = False

    @rule(data=st.binary(min_size=1, max_size=150))
    def append(self, data: bytes) -> None:
        self.upload.append(data)
        self.body += data

    @rule(limit=st.integers(1, 100))
    def take(self, limit: int) -> None:
        self.taken += self.upload.take(limit)

    @precondition(lambda self: self.upload.repeatable)
    @rule()
    def rewind(self) -> None:
        self.upload.rewind()
        self.taken = b""

    @rule()
    def forget(self) -> None:
        self.upload.forget()
        self.forgotten = True

    @invariant()
    def what_leaves_is_the_body(self) -> None:
        assert self.body.startswith(self.taken)
        assert self.upload.pending == len(self.body) - len(self.taken)
        assert self.upload.size == len(self.body)
        assert self.upload.over_cap == (len(self.body) > CAP)
        assert self.upload.repeatable == (len(self.body) <= CAP and not self.forgotten)

    def teardown(self) -> None:
        while self.upload.pending:
            self.taken += self.upload.take(33)
        assert self.taken == self.body
        assert self.upload.take(10) == b""
        assert self.upload.sha256 is None
        self.upload.complete = True
        assert self.upload.sha256 == hashlib.sha256(self.body).hexdigest()
        self.upload.close()


TestUpload = UploadMachine.TestCase
TestUpload.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_nothing_is_stored_once_it_is_forgotten_and_sent(chunks: list[bytes]) -> None:
    upload = Upload(memory=MEMORY, cap=CAP, hashing=False)
    upload.forget()
    for chunk in chunks:
        upload.append(chunk)
        assert upload.take(10) == chunk  # as it came, and whole
        assert upload._file is None
    assert upload.sha256 is None


def test_the_file_has_no_name_and_is_ours_alone() -> None:
    upload = Upload(memory=10, cap=1000, hashing=False)
    upload.append(b"x" * 11)
    assert upload._file is not None
    status = os.fstat(upload._file.fileno())
    assert status.st_nlink == 0
    assert stat.S_IMODE(status.st_mode) & 0o077 == 0
    upload.close()
    assert not upload.repeatable


class FullDisk:
    def __init__(self, **kwargs: Any) -> None:
        pass

    def seek(self, *args: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        pass


def test_a_full_disk_costs_the_repeat_not_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy_addon.mitm.upload.SpooledTemporaryFile", FullDisk)
    upload = Upload(memory=MEMORY, cap=CAP, hashing=False)
    upload.append(b"one")
    assert not upload.repeatable
    assert upload.take(10) == b"one"
    upload.append(b"two")
    with pytest.raises(OSError, match="No space"):
        upload.append(b"three")  # and "two" still waits
