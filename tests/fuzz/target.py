"""What a fuzz target is, where its inputs are kept, and how an input is changed a little without a fuzzer."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parent / "corpus"

NAMES: Final = (
    "abi",
    "challenge",
    "config",
    "fields",
    "frames",
    "interchange",
    "journal",
    "need_voucher",
    "problem",
    "receipt",
    "records",
    "rows",
    "rpc",
    "snapshot",
    "sse",
    "strict_json",
    "terms",
)
"""The modules of `tests.fuzz.targets`, each with a `TARGET` whose docstring states its oracle."""


@dataclass(frozen=True, slots=True)
class Target:
    """`one_input` raises for an input on which the parser does what it must not."""

    one_input: Callable[[bytes], None]
    seeds: Callable[[], dict[str, bytes]]  # real samples, the same on every call; see `tests.fuzz.seeds`
    words: tuple[bytes, ...]  # what the format is made of: for mutations and for the fuzzer's dictionary
    longest: int = 2048  # bytes of an input; longer ones cost time and find nothing new


def load(name: str) -> Target:
    found = importlib.import_module(f"tests.fuzz.targets.{name}").TARGET
    assert isinstance(found, Target)
    return found


def kept(name: str) -> dict[str, bytes]:
    """The corpus in the tree: the seeds, and inputs that once found something."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir())}


def mutations(inputs: Sequence[bytes], words: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """`count` inputs that differ a little from those given: the same ones on every call and every Python."""
    dice = random.Random(seed)
    for _ in range(count):
        data = dice.choice(inputs)
        for _ in range(1 + int(dice.random() ** 2 * 5)):
            data = _change(data, inputs, words, dice)
        yield data


def _change(data: bytes, inputs: Sequence[bytes], words: Sequence[bytes], dice: random.Random) -> bytes:
    start = dice.randrange(len(data) + 1)
    stop = min(len(data), start + int(dice.random() ** 3 * 40))
    match dice.randrange(7):
        case 0:
            return data[:start] + data[stop:]
        case 1:
            return data[:start] + dice.choice(words) + data[start:]
        case 2:
            return data[:start] + dice.choice(words) + data[stop:]
        case 3:
            return data[:start] + bytes([dice.randrange(256)]) + data[start + 1 :]
        case 4:  # a digit or a letter for another: what it says changes, its form does not
            return data[:start] + dice.choice(b"0123456789abcdefxXeE.-_").to_bytes() + data[start + 1 :]
        case 5:
            return data[:stop] + data[start:]
        case _:
            other = dice.choice(inputs)
            at = dice.randrange(len(other) + 1)
            return data[:start] + other[at : at + 60] + data[stop:]
