"""What mitmproxy's HTTP/1 leaves out, and a hostile peer can hang or fill a proxy with.

Headers, trailers and chunk headers have no end there: here they have one. Trailers end its connection handler with an
exception, and the other side waits for ever: here they are dropped, as RFC 9110 section 6.5.1 allows. An interim
answer (1xx) is taken for the final one: here it is dropped, as mitmproxy does on HTTP/2. An empty line before a
request or an answer stops it: here it is skipped. CR, LF and NUL in a field go on as they came: here each becomes a
space, as RFC 9110 section 5.5 wants.
"""

from __future__ import annotations

import re
from typing import Final

from h11._receivebuffer import ReceiveBuffer
from mitmproxy.proxy.layer import Layer
from mitmproxy.proxy.layers.http._http1 import Http1Connection

MOST_BYTES: Final = 256 * 1024
"""Of one header, of one message's trailers, of one chunk's header."""
MOST_INTERIM: Final = 100
"""Interim answers before a final one."""

_INTERIM: Final = re.compile(
    rb"HTTP/1\.[0-9] 1(?!01\b)[0-9]{2}\b"
)  # 101 is final: the connection is upgraded
_NO_FIELD: Final = re.compile(rb"[\r\n\0]")

Fields = tuple[tuple[bytes, bytes], ...]


class HeadBuffer(ReceiveBuffer):
    """In the place of a connection's own. What is refused reads as a line that no message can have."""

    def __init__(self, connection: Http1Connection) -> None:
        super().__init__()
        self.__iadd__(bytes(connection.buf))
        self._connection = connection
        self._interim = 0

    def maybe_extract_lines(self) -> list[bytearray] | None:
        in_body = self._connection.state == self._connection.read_body
        while True:
            lines = super().maybe_extract_lines()
            if lines is None:
                return _refused(b"more than %d bytes" % MOST_BYTES) if len(self) > MOST_BYTES else None
            if in_body:
                return []
            if lines and not _INTERIM.match(lines[0]):
                self._interim = 0
                return lines
            self._interim += bool(lines)
            if self._interim > MOST_INTERIM:
                return _refused(b"more than %d interim answers" % MOST_INTERIM)

    def maybe_extract_next_line(self) -> bytearray | None:
        line = super().maybe_extract_next_line()
        return bytearray(b"?\r\n") if line is None and len(self) > MOST_BYTES else line


def bound(connection: Layer | None) -> None:
    """Give a connection such a buffer, if it speaks HTTP/1 and has none."""
    if isinstance(connection, Http1Connection) and not isinstance(connection.buf, HeadBuffer):
        connection.buf = HeadBuffer(connection)


def clean(fields: Fields) -> Fields:
    """Without what could end a field early at the next one who reads it."""
    if not _NO_FIELD.search(b" ".join([value for _, value in fields])):
        return fields
    return tuple((name, _NO_FIELD.sub(b" ", value)) for name, value in fields)


def _refused(why: bytes) -> list[bytearray]:
    return [bytearray(why)]
