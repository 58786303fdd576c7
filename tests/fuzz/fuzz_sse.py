"""The event filter under a coverage-guided fuzzer (atheris): ``python -m tests.fuzz.fuzz_sse tests/fuzz/corpus/sse``.

An input is the number of piece sizes, the sizes, a byte for the limit (0xff: the real one), and the body.
"""

from __future__ import annotations

import importlib
import sys

from proxy_addon.core.sse import HELD_LIMIT
from tests.properties.sse_reference import reference, run


def one_input(data: bytes) -> None:
    """Raises if the filter and the reading of the whole body differ, or if the filter raises."""
    number = data[0] % 9 if data else 0
    sizes, rest = list(data[1 : 1 + number]), data[1 + number :]
    limit = HELD_LIMIT if rest[:1] in (b"", b"\xff") else rest[0] + 1
    body = rest[1:]
    found = run(body, sizes if any(sizes) else [len(body) + 1], limit)
    expected = reference(body, limit)
    if found != expected:
        raise AssertionError(f"{body!r} in {sizes} under {limit}: {found!r}, expected {expected!r}")


def main() -> None:
    atheris = importlib.import_module("atheris")
    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
