"""A share of the fuzzing on every run, without a fuzzer: the kept corpus, and mutations of it, the same every time."""

from __future__ import annotations

import pytest

from tests.fuzz.run import Found, escaped, read_log, table
from tests.fuzz.target import CORPUS, NAMES, kept, load, mutations

MUTATIONS = 900
BLOCKS = 3


@pytest.mark.parametrize("name", NAMES)
def test_the_kept_corpus(name: str) -> None:
    target, inputs = load(name), kept(name)
    assert inputs
    for file, data in inputs.items():
        try:
            target.one_input(data)
        except Exception as error:
            raise AssertionError(f"{CORPUS / name / file}") from error


@pytest.mark.parametrize("block", range(BLOCKS))
@pytest.mark.parametrize("name", NAMES)
def test_mutations_of_it(name: str, block: int) -> None:
    target = load(name)
    inputs = list(kept(name).values())
    for data in mutations(inputs, target.words, MUTATIONS // BLOCKS, seed=block):
        try:
            target.one_input(data[: target.longest])
        except Exception as error:
            raise AssertionError(f"{name}: {data[: target.longest]!r}") from error


@pytest.mark.parametrize("name", NAMES)
def test_the_seeds_are_those_of_the_samples(name: str) -> None:
    """After a change of the samples: ``python -m tests.fuzz.seeds``."""
    found = kept(name)
    assert load(name).seeds().items() <= found.items()
    assert all(len(data) <= 8192 for data in found.values())


def test_every_target_is_named_and_says_what_it_holds_its_parser_to() -> None:
    from tests.fuzz import targets

    folder = CORPUS.parent / "targets"
    assert targets.__file__ is not None
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(NAMES)
    assert {path.name for path in CORPUS.iterdir()} == set(NAMES)
    for name in NAMES:
        text = (folder / f"{name}.py").read_text()
        assert "\n- " in text.split('"""')[1], name


def test_mutations_are_the_same_every_time() -> None:
    first = list(mutations([b"abc", b"defg"], [b"--"], 50, seed=1))
    assert first == list(mutations([b"abc", b"defg"], [b"--"], 50, seed=1))
    assert len(set(first)) > 40


LOG = """INFO: A corpus is not provided, starting from an empty corpus
#2\tINITED cov: 5 ft: 7 corp: 1/1b exec/s: 0 rss: 40Mb
#4096\tpulse  cov: 181 ft: 920 corp: 179/9Kb lim: 43 exec/s: 2048 rss: 52Mb
"""


def test_what_the_fuzzer_says_is_read() -> None:
    assert read_log("") == (0, 0, 0, 0)
    assert read_log(LOG) == (4096, 181, 920, 179)  # it was killed
    assert read_log(LOG + "stat::number_of_executed_units: 59081\n") == (59081, 181, 920, 179)


def test_the_table_tells_a_crash_and_a_failure() -> None:
    fine = Found("abi", 1_000, 5, 6, 7, 1.5, (), False)
    crashed = Found("sse", 10, 5, 6, 7, 1.5, ("a", "b"), True)
    failed = Found("rpc", 0, 0, 0, 0, 0.1, (), True)
    lines = table([fine, crashed, failed]).splitlines()
    assert [line.split()[-1] for line in lines] == ["crashes", "0", "2", "failed"]
    assert lines[1].split()[1] == "1,000"


def test_a_word_of_a_dictionary_is_escaped() -> None:
    assert escaped(b'a"\\\n\xff') == "a\\x22\\x5c\\x0a\\xff"
