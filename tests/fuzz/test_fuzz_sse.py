"""A share of the fuzzing on every run: the seeds, 2,000 mutations of them, and a moment of the real fuzzer if it is there."""

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


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """A seed, with parts of it replaced, removed or doubled, or parts of another put in."""
    data = draw(st.sampled_from(list(SEEDS.values())))
    for _ in range(draw(st.integers(1, 5))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 40)))
        other = draw(st.sampled_from(list(SEEDS.values())))
        put = draw(st.one_of(pieces, st.just(data[start:stop] * 2), st.just(other[start:stop])))
        data = data[:start] + put + data[stop:]
    return data


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds(name: str) -> None:
    one_input(SEEDS[name])


@settings(max_examples=2_000)
@given(mutations())
def test_mutations_of_the_seeds(data: bytes) -> None:
    one_input(data)


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_a_moment_of_the_fuzzer(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.fuzz.fuzz_sse", "-runs=5000", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [*command, str(tmp_path), str(CORPUS)], capture_output=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
