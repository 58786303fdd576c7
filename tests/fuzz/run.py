"""The fuzz targets, one after the other, and a table of what came of it: ``python -m tests.fuzz.run``.

A target that finds something stops there: the input and the report stay in the folder that the table names. The
corpus that the fuzzer grows is kept with ``--work`` and is where it goes on the next time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.target import CORPUS, NAMES, load

RSS_MIB: Final = 1024
HANG_SECONDS: Final = 10  # for one input: real ones take a millisecond
MISSING: Final = (
    "atheris is not installed, and there is no fuzzing without it. It has wheels for CPython 3.11 to 3.13 on Linux"
    " (x86-64): `make fuzz` installs it there. The kept corpus and its mutations run in `make test` on every platform."
)

_EXECUTED: Final = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)
_COUNTED: Final = re.compile(r"^#(\d+)\s", re.MULTILINE)
_COVERAGE: Final = re.compile(r"\bcov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass(frozen=True)
class Found:
    """What one run of a target showed. `crashes` are the files of inputs that it stopped at."""

    target: str
    executions: int
    edges: int  # of this project's code; what it covered of them cannot be told from outside
    features: int
    corpus: int
    cpu_seconds: float
    crashes: tuple[str, ...]
    failed: bool  # with or without a crash file


def read_log(text: str) -> tuple[int, int, int, int]:
    """Executions, edges, features and corpus of libFuzzer's report. Zeros for what it does not say."""
    executed = _EXECUTED.findall(text) or _COUNTED.findall(text)
    edges, features, corpus = (int(value) for value in (_COVERAGE.findall(text) or [(0, 0, 0)])[-1])
    return int(executed[-1]) if executed else 0, edges, features, corpus


def fuzz(name: str, seconds: int, work: Path) -> Found:
    target = load(name)
    grown, log = work / "corpus" / name, work / f"{name}.log"
    crashes = work / "crashes" / name
    grown.mkdir(parents=True, exist_ok=True)
    crashes.mkdir(parents=True, exist_ok=True)
    before = set(os.listdir(crashes))
    words = work / f"{name}.dict"
    words.write_text("".join(f'"{escaped(word)}"\n' for word in target.words))
    command = [
        *(sys.executable, "-m", "tests.fuzz.engine", name),
        *(f"-max_total_time={seconds}", f"-rss_limit_mb={RSS_MIB}", f"-timeout={HANG_SECONDS}"),
        *(f"-max_len={target.longest}", "-print_final_stats=1", f"-dict={words}"),
        *(f"-artifact_prefix={crashes}/", str(grown), str(CORPUS / name)),
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    executions, edges, features, corpus = read_log(log.read_text(errors="replace"))
    return Found(
        name,
        executions,
        edges,
        features,
        corpus,
        round(used.ru_utime + used.ru_stime, 1),
        tuple(str(crashes / one) for one in sorted(set(os.listdir(crashes)) - before)),
        code != 0,
    )


def escaped(word: bytes) -> str:
    """As libFuzzer's dictionaries want it."""
    return "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in word
    )


def table(rows: list[Found]) -> str:
    lines = [
        f"{'target':<14}{'executions':>12}{'edges':>8}{'features':>10}{'corpus':>8}{'CPU s':>8}{'crashes':>9}"
    ]
    for row in rows:
        crashed = len(row.crashes) or ("failed" if row.failed else 0)
        lines.append(
            f"{row.target:<14}{row.executions:>12,}{row.edges:>8,}{row.features:>10,}{row.corpus:>8,}"
            f"{row.cpu_seconds:>8.1f}{crashed:>9}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=NAMES, action="append", help="only this one; may be repeated")
    parser.add_argument("--work", type=Path, help="where the grown corpus, logs and crashes are kept")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit(MISSING)
    work = (options.work or Path(tempfile.mkdtemp(prefix="bursar-fuzz-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    failed = False
    for _ in range(options.rounds):
        rows = []
        for name in options.target or NAMES:
            print(f"{name}: {options.seconds} s …", file=sys.stderr, flush=True)
            row = fuzz(name, options.seconds, work)
            rows.append(row)
            failed = failed or row.failed
            with (work / "runs.jsonl").open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")
        print(table(rows), flush=True)
    print(f"corpus, logs and crashes: {work}")
    if failed:
        sys.exit("something was found: see above; `python -m tests.fuzz.engine TARGET FILE` shows it again")


if __name__ == "__main__":
    main()
