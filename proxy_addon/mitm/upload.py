"""A request's body on its way upstream: sent at once, and kept so that it can be sent again.

Memory stays small: beyond `memory` bytes the body is in an unlinked file of mode 0600. What is kept is
bounded by `cap`: a longer body goes through, but cannot be repeated.
"""

from __future__ import annotations

import hashlib
from tempfile import SpooledTemporaryFile
from typing import IO

from mitmproxy import http
from mitmproxy.net.http.http1 import expected_http_body_size

EMPTY_SHA256 = hashlib.sha256().hexdigest()


def sha256_of(content: bytes | None) -> str:
    return hashlib.sha256(content or b"").hexdigest()


def is_short(request: http.Request, limit: int) -> bool:
    """Is it known from the header that the request's body is no longer than `limit` bytes?"""
    try:
        size = expected_http_body_size(request)
    except ValueError:
        return False
    if size is None or size < 0:
        return False
    # Without a length, an h1 request has no body; an h2 request may have one.
    return size <= limit and (size > 0 or "content-length" in request.headers)


class Upload:
    """The bytes of one body, how far this attempt has got with them, and whether all of them are still here."""

    def __init__(self, *, memory: int, cap: int, hashing: bool) -> None:
        self._memory = memory
        self._cap = cap
        self._hash = hashlib.sha256() if hashing else None
        self._file: IO[bytes] | None = None
        self._base = 0  # offset in the body of the file's first byte
        self._last = b""  # the newest chunk, if nothing before it waits
        self._unstored = False  # `_last` is in memory only
        self._kept = True
        self.size = 0
        self.sent = 0
        self.complete = False
        self.trailers: http.Headers | None = None

    @property
    def repeatable(self) -> bool:
        return self._kept

    @property
    def over_cap(self) -> bool:
        return self.size > self._cap

    @property
    def pending(self) -> int:
        """Bytes that this attempt has not sent yet."""
        return self.size - self.sent

    @property
    def sha256(self) -> str | None:
        """Hex digest, once the body is complete."""
        if not self.complete or self._hash is None:
            return None
        return self._hash.hexdigest()

    def append(self, data: bytes) -> None:
        """Take the next bytes from the client. If they cannot be stored, the body is not repeatable any more.

        Raises ``OSError`` if bytes that wait to be sent cannot be stored: then the request cannot go on.
        """
        if self._hash is not None:
            self._hash.update(data)
        waiting = self.pending
        offset = self.size
        self.size += len(data)
        if self.over_cap:
            self._kept = False
        if self._kept or waiting:
            try:
                if self._unstored:
                    self._write(self._last, self.sent)
                self._write(data, offset)
            except OSError:
                self._kept = False
                if waiting:
                    raise
        self._last = b"" if waiting else data
        self._unstored = not (self._kept or waiting)
        if self._unstored:
            self._drop()

    def take(self, limit: int) -> bytes:
        """The next bytes to send, at most `limit` unless they have just come in; empty if there are none."""
        if self._last and self.pending == len(self._last):
            data, self._last, self._unstored = self._last, b"", False
        else:
            data = self._read(min(limit, self.pending))
        self.sent += len(data)
        if not self._kept and not self.pending:
            self._drop()
        return data

    def rewind(self) -> None:
        """Begin again, for another attempt."""
        assert self._kept
        self.sent = 0
        self._last = b""

    def forget(self) -> None:
        """No further attempt will be made: keep only what this one has still to send."""
        self._kept = False
        if not self.pending:
            self._drop()

    def close(self) -> None:
        self._kept = False
        self._drop()

    def _write(self, data: bytes, offset: int) -> None:
        if self._file is None:
            # SpooledTemporaryFile: unlinked at once, mode 0600
            self._file = SpooledTemporaryFile(max_size=self._memory)  # noqa: SIM115 - closed in _drop
            self._base = offset
        self._file.seek(0, 2)
        self._file.write(data)

    def _read(self, count: int) -> bytes:
        if not count:
            return b""
        assert self._file is not None
        self._file.seek(self.sent - self._base)
        return self._file.read(count)

    def _drop(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
