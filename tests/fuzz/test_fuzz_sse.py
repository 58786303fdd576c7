"""A share of the fuzzing on every run: the seeds, 2,000 mutations of them, and the real fuzzer where it is there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.fuzz_sse import one_input

CORPUS = Path(__file__).parent / "corpus" / "sse"
SEEDS = {path.name: path.read_bytes() for path in sorted(CORPUS.iterdir())}

snippets = st.sampled_from([b"\n", b"\r", b"\r\n", b"\n\n", b"event: payment-receipt", b"data:", b":", b"\0"])
pieces = snippets | st.binary(max_size=4)


# Lists of simple things: drawing is most of the work. Places in thousandths, whatever the length.
edits = st.lists(
    st.tuples(st.integers(0, 1000), st.integers(0, 40), pieces | st.none(), st.sampled_from(sorted(SEEDS))),
    min_size=1,
    max_size=5,
)


def mutate(name: str, steps: list[tuple[int, int, bytes | None, str]]) -> bytes:
    """The seed with parts of it replaced or removed, or as much of another seed put in."""
    data = SEEDS[name]
    for place, size, put, other in steps:
        start = len(data) * place // 1000
        data = (
            data[:start] + (SEEDS[other][start : start + size] if put is None else put) + data[start + size :]
        )
    return data


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds(name: str) -> None:
    one_input(SEEDS[name])


@settings(max_examples=2_000)
@given(st.sampled_from(sorted(SEEDS)), edits)
def test_mutations_of_the_seeds(name: str, steps: list[tuple[int, int, bytes | None, str]]) -> None:
    one_input(mutate(name, steps))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_a_moment_of_the_fuzzer(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.fuzz_sse",
        "-max_total_time=10",
        f"-artifact_prefix={tmp_path}/",
    ]
    done = subprocess.run(
        [*command, str(tmp_path), str(CORPUS)], capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
