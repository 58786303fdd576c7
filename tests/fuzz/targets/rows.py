"""The store's small rows and the seal beside the key; the first byte says which: ``A`` an anchor's payload, ``P`` a
pin's, both under a good checksum; ``a`` and ``p`` the raw bytes; ``S`` the seal's file.

- Nothing but `UnknownVersion` is raised, for the seal `StoreUnavailable`; their words can go to a log.
- What is read and written again is read as the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from store import anchors, codec, pins, seal
from store.anchors import Anchor
from store.contract import StoreUnavailable, UnknownVersion
from tests.fuzz.oracle import loggable
from tests.fuzz.target import Target

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-rows-")
FILE = Path(_FOLDER.name) / "seal.json"
FILE.touch(mode=0o600)


def one_input(data: bytes) -> None:
    how, rest = data[:1], data[1:]
    try:
        match how:
            case b"A" | b"a":
                anchor = anchors.decode("p1", codec.seal(rest) if how == b"A" else rest)
                assert anchors.decode("p1", anchors.encode(anchor)) == anchor
                assert type(anchor.line) is int
                assert anchor.line >= 0
            case b"P" | b"p":
                pin = pins._decode("https://a:1", codec.seal(rest) if how == b"P" else rest)
                assert type(pin.payee) is str
                assert type(pin.since) is int
            case b"S":
                FILE.write_bytes(rest)
                found = seal.read(FILE)
                assert len({one.store for one in found}) == len(found)
                assert all(one.commits >= 0 for one in found)
    except UnknownVersion as error:
        assert how in b"AaPp"
        loggable(str(error))
    except StoreUnavailable as error:
        assert how == b"S"
        loggable(str(error))


def seeds() -> dict[str, bytes]:
    anchor = anchors.encode(Anchor("p1", 7, bytes(16), "boot", closed=True))
    sealed = (
        b'{"version":%d,"stores":[{"store":"aa","stamp":"bb","commits":3,"directory":"/x"}]}' % seal.VERSION
    )
    return {
        "anchor.json": b"A" + codec.unseal(anchor, "anchor"),
        "anchor": b"a" + anchor,
        "pin.json": b'P["0x' + b"ab" * 20 + b'",1795420000000]',
        "pin": b"p" + codec.seal(b'["0xab",5]'),
        "seal.json": b"S" + sealed,
        "two_seals.json": b"S"
        + sealed.replace(b"}]", b'},{"store":"cc","stamp":"","commits":0,"directory":""}]'),
        "no_json": b"A[",
        "no_json_pin": b"P{",
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"A",
            b"P",
            b"S",
            b"a",
            b"p",
            b"[",
            b"]",
            b"{",
            b"}",
            b"null",
            b"true",
            b"-1",
            b"1e400",
            b'""',
            b",",
        ),
        *(b'"version":1', b'"stores":[', b'"commits":', b'"store":', b"\\ud800", b"18446744073709551616"),
    ),
)
