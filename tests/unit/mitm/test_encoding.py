"""Taking off a Content-Encoding while the body streams."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import Callable, Iterator

import brotli  # type: ignore[import-untyped, unused-ignore]
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.mitm.encoding import PIECE_LIMIT, decoder

NOISE = random.Random(7).randbytes(100_000)
TEXT = b"data: hello\n\n" * 30_000
SKIPPABLE = b"\x52\x2a\x4d\x18\x04\0\0\0abcd"


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-15)


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


ENCODERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("x-gzip", gzip.compress),
    ("GZIP", gzip.compress),
    ("deflate", zlib.compress),
    ("deflate", raw_deflate),
    ("br", brotli.compress),
    ("zstd", zstd),
    ("identity", bytes),
    ("", bytes),
    ("gzip, br", lambda data: brotli.compress(gzip.compress(data, mtime=0))),
    ("deflate ,identity,\tgzip", lambda data: gzip.compress(zlib.compress(data))),
]


def decode(name: str, body: bytes, size: int) -> tuple[bytes, bool]:
    found = decoder(name)
    assert found is not None
    out = b"".join(found.feed(body[at : at + size]) for at in range(0, len(body), size))
    return out, found.complete


@pytest.mark.parametrize(("name", "encode"), ENCODERS)
@pytest.mark.parametrize("data", [b"", b"x", TEXT, NOISE], ids=["empty", "byte", "text", "noise"])
@pytest.mark.parametrize("size", [1, 100, 1_000_000])
def test_every_encoding_in_any_pieces(
    name: str, encode: Callable[[bytes], bytes], data: bytes, size: int
) -> None:
    assert decode(name, encode(data), size) == (data, True)


@given(st.sampled_from(ENCODERS), st.lists(st.binary(max_size=50)), st.integers(1, 40))
def test_any_body(encoding: tuple[str, Callable[[bytes], bytes]], parts: list[bytes], size: int) -> None:
    name, encode = encoding
    assert decode(name, encode(b"".join(parts)), size) == (b"".join(parts), True)


@pytest.mark.parametrize(
    "name", ["compress", "gzip;q=1", "gzip, sdch", "gzip gzip", "gzip, gzip, gzip, gzip", "*"]
)
def test_an_encoding_that_is_not_known(name: str) -> None:
    assert decoder(name) is None


# --- what is flushed comes out ---------------------------------------------------------------------------


def gzip_flushes(parts: list[bytes]) -> Iterator[bytes]:
    encoder = zlib.compressobj(wbits=31)
    for part in parts:
        yield encoder.compress(part) + encoder.flush(zlib.Z_SYNC_FLUSH)


def deflate_flushes(parts: list[bytes]) -> Iterator[bytes]:
    encoder = zlib.compressobj(wbits=-15)
    for part in parts:
        yield encoder.compress(part) + encoder.flush(zlib.Z_FULL_FLUSH)


def br_flushes(parts: list[bytes]) -> Iterator[bytes]:
    encoder = brotli.Compressor()
    for part in parts:
        yield encoder.process(part) + encoder.flush()


def zstd_flushes(parts: list[bytes]) -> Iterator[bytes]:
    encoder = zstandard.ZstdCompressor().compressobj()
    for part in parts:
        yield encoder.compress(part) + encoder.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


@pytest.mark.parametrize(
    ("name", "flushes"),
    [("gzip", gzip_flushes), ("deflate", deflate_flushes), ("br", br_flushes), ("zstd", zstd_flushes)],
)
def test_what_a_server_has_flushed_comes_out_at_once(
    name: str, flushes: Callable[[list[bytes]], Iterator[bytes]]
) -> None:
    parts = [b"data: 1\n\n", b"x", NOISE + bytes(300_001), TEXT]
    found = decoder(name)
    assert found is not None
    assert found.complete  # nothing came: nothing was cut
    for piece, part in zip(flushes(parts), parts, strict=True):
        assert found.feed(piece) == part
        assert not found.complete  # the end is missing


# --- members, frames, and what follows --------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1_000_000])
@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        (
            "gzip",
            gzip.compress(b"a", mtime=0) + gzip.compress(b"", mtime=0) + gzip.compress(b"b", mtime=0),
            (b"ab", True),
        ),
        ("gzip", gzip.compress(b"a", mtime=0) + bytes(9), (b"a", True)),
        ("gzip", gzip.compress(b"a", mtime=0) + b"\x1ffollows", (b"a", True)),
        ("gzip", gzip.compress(b"a", mtime=0) + b"\x1f", (b"a", False)),
        ("gzip", gzip.compress(b"a", mtime=0) + gzip.compress(b"b", mtime=0)[:-1], (b"ab", False)),
        ("deflate", zlib.compress(b"a") + b"follows", (b"a", True)),
        ("deflate", raw_deflate(b"a") + b"follows", (b"a", True)),
        ("deflate", b"\x78", (b"", False)),
        ("zstd", zstd(b"a") + SKIPPABLE + zstd(b"") + zstd(b"b"), (b"ab", True)),
        ("zstd", zstd(b"a") + zstd(b"b")[:2], (b"a", False)),
        ("br", brotli.compress(NOISE)[:-1], (NOISE, False)),
    ],
)
def test_members_one_behind_the_other(
    name: str, body: bytes, expected: tuple[bytes, bool], size: int
) -> None:
    assert decode(name, body, size) == expected


# --- what cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1_000_000])
@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("gzip", TEXT[:50]),
        ("gzip", gzip.compress(NOISE, mtime=0)[:-8] + bytes(8)),  # a wrong check sum
        ("deflate", b"\x78\x9c" + b"\xff" * 9),
        ("br", b"\xff" * 50),
        ("br", brotli.compress(b"a") + b"behind"),
        ("br", brotli.compress(NOISE) + bytes(40)),
        ("zstd", TEXT[:50]),
        ("zstd", zstd(b"a") + b"behind"),
        ("gzip, zstd", zstd(b"neither")),
    ],
)
def test_what_is_not_in_its_encoding_is_the_server_s_fault(name: str, body: bytes, size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="Content-Encoding"):
        decode(name, body, size)


def test_a_window_over_rfc_9659_is_refused() -> None:
    params = zstandard.ZstdCompressionParameters(window_log=25, compression_level=1)
    encoder = zstandard.ZstdCompressor(compression_params=params).compressobj()
    with pytest.raises(RemoteProtocolError, match="memory"):
        decode("zstd", encoder.compress(NOISE) + encoder.flush(), 1_000_000)


@pytest.mark.parametrize(("name", "encode"), [each for each in ENCODERS if each[0] not in ("identity", "")])
def test_the_limit_is_exact(name: str, encode: Callable[[bytes], bytes]) -> None:
    body = encode(bytes(5000))
    enough, short = decoder(name, limit=5000), decoder(name, limit=4999)
    assert enough is not None
    assert short is not None
    assert enough.feed(body) == bytes(5000)
    with pytest.raises(RemoteProtocolError, match="more than 4999 bytes"):
        short.feed(body)


@pytest.mark.parametrize("name", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
def test_a_bomb_is_refused_before_it_fills_the_memory(name: str) -> None:
    zeros = bytes(16 * 1024 * 1024)
    match name:
        case "br":
            maker = brotli.Compressor(quality=5)
            body = b"".join(maker.process(zeros) for _ in range(16)) + maker.finish()
        case "zstd":
            body = zstd(zeros) * 16
        case "deflate":
            body = zlib.compress(zeros * 4, 9)
        case _:
            body = gzip.compress(zeros, 9, mtime=0) * 8
            body = gzip.compress(body, 9, mtime=0) if name == "gzip, gzip" else body
    assert len(body) < PIECE_LIMIT
    found = decoder(name)
    assert found is not None
    with pytest.raises(RemoteProtocolError, match=f"more than {PIECE_LIMIT} bytes"):
        found.feed(body)


def test_the_limit_is_that_of_a_piece_and_not_of_the_body() -> None:
    found = decoder("gzip", limit=20_000)
    assert found is not None
    out = b"".join(found.feed(piece) for piece in gzip_flushes([bytes(20_000)] * 5))
    assert out == bytes(100_000)
