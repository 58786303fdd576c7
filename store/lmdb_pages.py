"""Reading an LMDB data file page by page, without mapping it: does it hold every page that its index refers to?

Knows data format 1 (LMDB 0.9) as 64-bit machines write it, which is what `lmdb.open` makes. LMDB itself cannot be
asked: it reads a page beyond the end of the file (SIGBUS), and stops the process at a page of another kind.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_MAGIC: Final = 0xBEEFC0DE
_FORMAT: Final = 1

_PAGE_HEADER: Final = struct.Struct("=QHHHH")  # number, -, flags, end of the node pointers, -
_META: Final = struct.Struct(
    "=IIQQ IHHQQQQQ IHHQQQQQ QQ"
)  # magic, format, …, two trees, last page, transaction
_NODE: Final = struct.Struct("=HHHH")  # low, high, flags, length of the key
_BRANCH, _LEAF, _OVERFLOW, _LEAF2, _SUBPAGE = 0x01, 0x02, 0x04, 0x20, 0x40
_BIG, _SUBTREE, _DUPLICATES = 0x01, 0x02, 0x04
_NO_ROOT: Final = 2**64 - 1


class Damaged(Exception):
    """A page is missing, or is not what its place in the tree calls for."""


def check_pages(path: Path) -> None:
    """Raise `Damaged` unless every page that the last commit refers to is in the file.

    Nothing may be written meanwhile. Pages that are free may be missing: LMDB does not write a page that one
    transaction takes and frees again, so the file of a sound store can be some pages short.
    """
    with path.open("rb") as file:
        _File(file.fileno()).check()


class _File:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._size = os.fstat(fd).st_size
        self._page_size = 0
        self._seen: set[int] = set()

    def check(self) -> None:
        head = os.pread(self._fd, _PAGE_HEADER.size + _META.size, 0)
        if len(head) < _PAGE_HEADER.size + _META.size:
            raise Damaged("it has no first page")
        self._page_size = _META.unpack_from(head, _PAGE_HEADER.size)[4]
        if not 512 <= self._page_size <= 65_536 or self._page_size & (self._page_size - 1):
            raise Damaged(f"pages of {self._page_size} bytes")
        newest = max((self._meta(0), self._meta(1)), key=lambda meta: meta[-1])
        for root in (newest[11], newest[19]):  # the tree of free pages, the tree of records
            if root != _NO_ROOT:
                self._check_tree(root)

    def _meta(self, number: int) -> tuple[int, ...]:
        meta = _META.unpack_from(self._page(number), _PAGE_HEADER.size)
        if meta[:2] != (_MAGIC, _FORMAT):
            raise Damaged(f"page {number} does not describe a store")
        return meta

    def _page(self, number: int, count: int = 1) -> bytes:
        if (number + count) * self._page_size > self._size:
            raise Damaged(f"page {number + count - 1} is missing")
        return os.pread(self._fd, self._page_size, number * self._page_size)

    def _check_tree(self, number: int) -> None:
        page = self._page(number)
        own_number, _, flags, end, _ = _PAGE_HEADER.unpack_from(page)
        kind = flags & (_BRANCH | _LEAF | _OVERFLOW | _LEAF2 | _SUBPAGE)
        if own_number != number or kind not in (_BRANCH, _LEAF):
            raise Damaged(f"page {number} is none of this tree")
        if number in self._seen:
            raise Damaged(f"page {number} is used twice")
        self._seen.add(number)
        try:
            for low, high, node_flags, value in self._nodes(page, end):
                if kind == _BRANCH:
                    self._check_tree(low | high << 16 | node_flags << 32)
                elif node_flags & (_SUBTREE | _DUPLICATES):
                    raise Damaged(f"page {number} has a tree of its own")
                elif node_flags & _BIG:
                    self._check_long_value(struct.unpack_from("=Q", page, value)[0])
        except struct.error as error:
            raise Damaged(f"page {number} points outside itself") from error

    @staticmethod
    def _nodes(page: bytes, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Of each node its three numbers, and where its value begins."""
        for pointer in range(_PAGE_HEADER.size, end, 2):
            (start,) = struct.unpack_from("=H", page, pointer)
            low, high, flags, key_length = _NODE.unpack_from(page, start)
            yield low, high, flags, start + _NODE.size + key_length

    def _check_long_value(self, number: int) -> None:
        page = self._page(number)
        own_number, _, flags, low, high = _PAGE_HEADER.unpack_from(page)
        if own_number != number or not flags & _OVERFLOW:
            raise Damaged(f"page {number} is no long value")
        self._page(number, low | high << 16)
