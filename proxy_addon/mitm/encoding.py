"""Content-Encoding taken off a body as it streams: each piece gives what can be known of the decoded bytes.

gzip (several members, RFC 1952), deflate (with zlib's header, or raw as some servers send it), br, zstd
(several frames, windows up to the 8 MB of RFC 9659). What a server has flushed comes out at once.
A piece that decodes to more than `PIECE_LIMIT` is a decompression bomb, and refused before it fills the memory.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol

import brotli  # type: ignore[import-untyped, unused-ignore]
import zstandard

from proxy_addon.core.errors import RemoteProtocolError

PIECE_LIMIT: Final = 16 * 1024 * 1024
"""The most bytes that one `Decoder.feed` gives. A piece from mitmproxy has at most 64 KB; text shrinks by 10 to 50."""

_MOST_CODINGS: Final = 3
_ZSTD_WINDOW: Final = 8 * 1024 * 1024  # RFC 9659 section 3
_GZIP_MAGIC: Final = b"\x1f\x8b"
# A few bytes of br make 8 MB and more, and Brotli before 1.2 cannot be told to stop: it gets this many at a time.
_BR_STEP: Final = 16
_ZSTD_STEP: Final = (
    256  # a block of 4 bytes makes at most 128 KB (RFC 8878 section 3.1.1.2.4): 8 MB over the limit
)


class Decoder(Protocol):
    """One body, from its first byte."""

    def feed(self, data: bytes) -> bytes:
        """All that is decoded by now, at most `PIECE_LIMIT` bytes.

        Raises `RemoteProtocolError` for what is not in this encoding or too much; then the body is lost.
        """
        ...

    @property
    def complete(self) -> bool:
        """Could the body end here? False in the middle of a member, frame or stream: it was cut."""
        ...


def decoder(content_encoding: str, *, limit: int = PIECE_LIMIT) -> Decoder | None:
    """For the value of a Content-Encoding field (RFC 9110 section 8.4); None if a coding in it is not known."""
    names = [name.strip(" \t").lower() for name in content_encoding.split(",")]
    makers = [_MAKERS.get(name) for name in names if name not in ("", "identity")]
    known = [make for make in makers if make is not None]
    if len(known) < len(makers) or len(known) > _MOST_CODINGS:
        return None
    # Listed in the order in which they were applied.
    return _Chain([make(limit) for make in reversed(known)])


class _Chain:
    def __init__(self, decoders: list[Decoder]) -> None:
        self._decoders = decoders

    def feed(self, data: bytes) -> bytes:
        for each in self._decoders:
            data = each.feed(data)
        return data

    @property
    def complete(self) -> bool:
        return all(each.complete for each in self._decoders)


def _bomb(name: str, limit: int) -> RemoteProtocolError:
    return RemoteProtocolError(f"a piece of the {name} body decodes to more than {limit} bytes")


def _broken(name: str, error: object) -> RemoteProtocolError:
    return RemoteProtocolError(f"the body is not what its Content-Encoding {name} says: {error}")


class _Zlib:
    """gzip and deflate. What follows the last member of gzip is ignored, as browsers do (often zeros)."""

    def __init__(self, limit: int, *, gzip: bool) -> None:
        self._limit, self._gzip = limit, gzip
        self._name = "gzip" if gzip else "deflate"
        self._head = b""  # the first bytes of a member, until it is clear what it is
        self._member: zlib._Decompress | None = None
        self._later = False  # one member has ended
        self._over = False

    def feed(self, data: bytes) -> bytes:
        out = bytearray()
        while data and not self._over:
            if self._member is None:
                data, self._head = self._head + data, b""
                if self._later and not _GZIP_MAGIC.startswith(data[:2]):
                    self._over = True
                    break
                if len(data) < 2:
                    self._head = data
                    break
                self._member = zlib.decompressobj(self._window_bits(data))
            try:
                out += self._member.decompress(data, self._limit + 1 - len(out))
            except zlib.error as error:
                raise _broken(self._name, error) from None
            if len(out) > self._limit:
                raise _bomb(self._name, self._limit)
            data = b""
            if self._member.eof:
                data, self._member = self._member.unused_data, None
                self._later, self._over = True, not self._gzip
        return bytes(out)

    def _window_bits(self, head: bytes) -> int:
        if self._gzip:
            return 16 + zlib.MAX_WBITS
        # RFC 1950 section 2.2. No encoder begins a raw stream so: a stored block, not the last, with a bit of
        # its padding set.
        has_header = head[0] & 0x0F == 8 and int.from_bytes(head[:2], "big") % 31 == 0
        return zlib.MAX_WBITS if has_header else -zlib.MAX_WBITS

    @property
    def complete(self) -> bool:
        return self._over or (self._member is None and not self._head)


class _Brotli:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._stream = brotli.Decompressor()
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        out = bytearray()
        for start in range(0, len(data), _BR_STEP):
            self._begun = True
            if self._stream.is_finished():
                raise _broken("br", "there are bytes behind its end")
            self._decode(data[start : start + _BR_STEP], out)
        # It keeps back what did not fit its first buffer of 32 KB, until it is asked again.
        while not self._stream.is_finished() and self._decode(b"", out):
            pass
        return bytes(out)

    def _decode(self, data: bytes, out: bytearray) -> bool:
        """Appends to `out`; did anything come?"""
        try:
            decoded: bytes = self._stream.process(data)
        except brotli.error as error:
            raise _broken("br", error) from None
        if len(out) + len(decoded) > self._limit:
            raise _bomb("br", self._limit)
        out += decoded
        return bool(decoded)

    @property
    def complete(self) -> bool:
        return not self._begun or bool(self._stream.is_finished())


class _Zstd:
    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._maker = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def feed(self, data: bytes) -> bytes:
        out = bytearray()
        for start in range(0, len(data), _ZSTD_STEP):
            rest = data[start : start + _ZSTD_STEP]
            while rest:
                frame = self._frame or self._maker.decompressobj()
                try:
                    out += frame.decompress(rest)
                except zstandard.ZstdError as error:
                    raise _broken("zstd", error) from None
                if len(out) > self._limit:
                    raise _bomb("zstd", self._limit)
                rest, self._frame = (frame.unused_data, None) if frame.eof else (b"", frame)
        return bytes(out)

    @property
    def complete(self) -> bool:
        return self._frame is None


_MAKERS: Final[dict[str, Callable[[int], Decoder]]] = {
    "gzip": lambda limit: _Zlib(limit, gzip=True),
    "x-gzip": lambda limit: _Zlib(limit, gzip=True),  # RFC 9110 section 8.4.1.3: the same
    "deflate": lambda limit: _Zlib(limit, gzip=False),
    "br": _Brotli,
    "zstd": _Zstd,
}
