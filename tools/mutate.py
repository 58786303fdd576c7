"""Change the code one small step at a time, and see whether a test notices.

``python tools/mutate.py --sample 15`` works on a copy of the tree. The tests run once, unchanged, which tells which
of them touch which line. Then, for each mutant: fork a process that has imported and collected everything, put the
changed function in place of the real one, run the tests that touch it (those of the module's own test file first),
stop at the first that fails. What takes effect at import (constants, defaults, class bodies) gets a new session
in a fork with nothing of ours imported. The copy on disk is changed too, for the processes that tests start.

Not changed: strings, annotations, decorators, and the texts of errors. A mutant that no test can tell from the real
code stands in ``tools/mutants_accepted.toml``, with the reason.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType
from typing import Final

import coverage
import hypothesis
import pytest
from mutants import Mutant, mutants

ROOT: Final = Path(__file__).resolve().parents[1]
ACCEPTED: Final = ROOT / "tools/mutants_accepted.toml"
COLD: Final = 77  # of a process: this mutant needs a session of its own
HANGS: Final = 20
PACKAGES: Final = ("store", "proxy_addon/core")
TESTS: Final = ("tests/unit/store", "tests/unit/core", "tests/properties", "tests/contract")
SKIPPED: Final = {
    *(".git", ".venv*", "node_modules", "__pycache__"),
    *(".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"),
}
ALSO: Final = {  # tests of a module beside those in the file of its name
    **dict.fromkeys(("store/lmdb_env.py", "store/lmdb_store.py"), "tests/contract/test_lmdb_faults.py"),
    **dict.fromkeys(
        ("store/anchors.py", "store/commits.py", "store/lineage.py"), "tests/unit/store/test_presence.py"
    ),
    "store/journal.py": "tests/unit/store/test_ledger_files.py",
    "proxy_addon/core/members.py": "tests/unit/core/test_snapshot.py",
}
HEAVY: Final = ("mitmproxy.http", "pydantic", "lmdb", "eth_account", "coincurve", "httpx", "orjson")


class Mapped:
    """A plugin for the first run: how long each test takes, and which lines it touches."""

    def __init__(self) -> None:
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, source=list(PACKAGES), messages=False
        )
        self.took: dict[str, float] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        started = time.monotonic()
        yield
        self.took[item.nodeid] = time.monotonic() - started
        self.coverage.switch_context("")

    def run(self, to: Path) -> int:
        self.coverage.start()
        status = session(TESTS, [self])
        self.coverage.stop()
        data, touched = self.coverage.get_data(), {}
        for path in modules():
            by_line = data.contexts_by_lineno(str(Path.cwd() / path))
            touched[path] = {line: sorted(contexts) for line, contexts in by_line.items()}
        if not status:
            to.write_text(json.dumps({"took": self.took, "touched": touched}))
        return status


class Chosen:
    """A plugin that runs the tests that may notice a mutant, and no other."""

    def __init__(self, run: Run, mutant: Mutant) -> None:
        self.run, self.mutant = run, mutant

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        by_name = {item.nodeid: item for item in items}
        items[:] = [by_name[test] for test in self.run.tests(self.mutant, by_name)]


def session(arguments: Sequence[str], plugins: Sequence[object]) -> int:
    """0 if all passed. A test that hangs is one that fails."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", f"timeout={HANGS}"]
    return int(pytest.main([*options, *arguments], plugins=list(plugins)))


def modules() -> list[str]:
    found = (path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).glob("*.py")))
    return [str(path) for path in found if path.name != "__init__.py"]


def forked(work: Callable[[], int], limit: float) -> str:
    """Run `work` in a process group of its own: what became of the mutant."""
    child = os.fork()
    if not child:
        os.setsid()
        status = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            status = work()
        finally:
            os._exit(status)
    ends, pause = time.monotonic() + limit, 0.002
    found = (0, 0)
    while not found[0] and time.monotonic() < ends:
        time.sleep(pause)
        pause = min(pause * 1.3, 0.1)
        found = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if not found[0]:
        os.waitpid(child, 0)
        return "timeout"
    return {0: "survived", COLD: "cold"}.get(os.waitstatus_to_exitcode(found[1]), "killed")


class Warm:
    """A plugin that collects once, and forks for each mutant of a function."""

    def __init__(self, run: Run, wanted: Sequence[Mutant]) -> None:
        self.run, self.wanted = run, wanted

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        gc.collect()
        live = [one for one in gc.get_objects() if isinstance(one, FunctionType)]
        gc.freeze()
        control = partial(attempt, session, None, live, sorted(session.items, key=self.run.time_of))
        if self.run.is_new and forked(control, 1800) != "survived":
            os.write(self.run.told, b"mutate: the tests do not pass in this order, with nothing changed\n")
            return True
        for mutant in self.wanted:
            chosen = [items[test] for test in self.run.tests(mutant, items)]
            self.run.judge(mutant, partial(attempt, session, mutant, live, chosen))
        return True


def attempt(
    session: pytest.Session, mutant: Mutant | None, live: Sequence[FunctionType], chosen: list[pytest.Item]
) -> int:
    if mutant is not None and not put(mutant, live):
        return COLD
    for item, following in zip(chosen, [*chosen[1:], None], strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


def put(mutant: Mutant, live: Sequence[FunctionType]) -> bool:
    """Give the functions that are in memory the changed code; False where that cannot be."""
    path = str(Path.cwd() / mutant.path)
    old, new = codes(mutant.whole, path), codes(mutant.source(), path)
    changed = [name for name in old if name == mutant.owner or name.startswith(f"{mutant.owner}.")]
    places = {
        (name, code.co_firstlineno): new.get(name, [])[at : at + 1]
        for name in changed
        for at, code in enumerate(old[name])
    }
    done = False
    for function in live:
        code = function.__code__
        if code.co_filename == path and (found := places.get((code.co_qualname, code.co_firstlineno))):
            if found[0].co_freevars != code.co_freevars:
                return False
            function.__code__ = found[0]
            done = True
    return done


def codes(source: bytes, path: str) -> dict[str, list[CodeType]]:
    """The code of every function in a module by its qualified name."""
    found: dict[str, list[CodeType]] = defaultdict(list)
    left = [compile(source, path, "exec", dont_inherit=True)]
    while left:
        code = left.pop(0)
        found[code.co_qualname].append(code)
        left += [one for one in code.co_consts if isinstance(one, CodeType)]
    return found


class Run:
    """The mutants of one call, and where their ends are written down."""

    def __init__(self, results: Path, known: Path, budget: float) -> None:
        facts = json.loads(known.read_text())
        self.took: dict[str, float] = facts["took"]
        self.touched: dict[str, dict[str, list[str]]] = facts["touched"]
        self.results, self.budget = results, budget
        self.is_new = not results.exists()
        self.told = os.dup(1)

    def tests(self, mutant: Mutant, present: Iterable[str]) -> list[str]:
        """Those of `present` that may notice: the module's own and fast ones first, as many as fit the budget."""
        by_line, own = self.touched[mutant.path], own_tests(mutant.path)
        lines = range(mutant.lines[0], mutant.lines[1] + 1)
        found = {test for line in lines for test in by_line.get(str(line), ())}
        if not found or "" in found:  # at import, or in another process only
            found = {test for tests in by_line.values() for test in tests}
        rows, places = Counter[str](), dict[str, tuple[bool, int, bool, float]]()
        for test in present:
            took = self.took.get(test, 0.0)  # 0: it is newer than what is known
            if test in found or test.startswith(own):  # what runs in another process is not known to touch it
                rows[name := test.partition("[")[0]] += 1
                unlikely = test in self.took and test not in found
                places[test] = unlikely, min(rows[name], 4), not test.startswith(own), took
        kept, left = list[str](), self.budget
        for test in sorted(places, key=places.__getitem__):
            if places[test][3] <= left:
                kept.append(test)
                left -= places[test][3]
        return kept

    def time_of(self, item: pytest.Item) -> float:
        return self.took.get(item.nodeid, 0.0)

    def is_cold(self, mutant: Mutant) -> bool:
        lines = range(mutant.lines[0], mutant.lines[1] + 1)
        by_line = self.touched[mutant.path]
        return not mutant.owner or any("" in by_line.get(str(line), ()) for line in lines)

    def judge(self, mutant: Mutant, work: Callable[[], int]) -> None:
        """Change the copy on disk, run, change it back, write down what became of it."""
        there = Path.cwd() / mutant.path
        there.write_bytes(mutant.source())
        started = time.monotonic()
        try:
            end = forked(work, 30 + 5 * min(self.budget, sum(self.took.values())))
        finally:
            there.write_bytes(mutant.whole)
        took = time.monotonic() - started
        with self.results.open("a") as file:
            file.write(json.dumps({"key": mutant.key, "end": end}) + "\n")
        os.write(self.told, f"{end:9} {took:6.2f} s  {mutant.key}\n".encode())

    def cold(self, mutant: Mutant) -> None:
        files = {test.partition("::")[0] for test in self.tests(mutant, self.took)}
        own = {one for one in own_tests(mutant.path) if Path(one).exists()}
        self.judge(mutant, lambda: session(sorted(files | own), [Chosen(self, mutant)]))


def own_tests(path: str) -> tuple[str, ...]:
    """The files of the tests that are about this module."""
    mirrored = f"tests/unit/{path.removeprefix('proxy_addon/').replace('/', '/test_')}"
    return (mirrored, ALSO[path]) if path in ALSO else (mirrored,)


def ends(results: Path) -> dict[str, str]:
    """The last end of each mutant that was tried."""
    lines = results.read_text().splitlines() if results.exists() else []
    return {one["key"]: one["end"] for one in map(json.loads, lines)}


def report(found: dict[str, str], every: dict[str, list[Mutant]]) -> int:
    """A table by module, and every mutant that no test noticed and that nobody explained."""
    accepted = tomllib.loads(ACCEPTED.read_text()) if ACCEPTED.exists() else {}
    sums, left = Counter[str](), list[str]()
    print(f"{'module':36} {'mutants':>8} {'run':>6} {'killed':>7} {'accepted':>9} {'left':>5}")
    for path, mutants_of_it in every.items():
        mine = {one.key: found[one.key] for one in mutants_of_it if one.key in found}
        survivors = [key for key, end in mine.items() if end not in ("killed", "timeout")]
        told = {one.key: f"{one.path}:{one.line}: {one.shown}" for one in mutants_of_it}
        reasons = accepted.get(path, {})
        known = [one.key for one in mutants_of_it if one.key in survivors and one.shown in reasons]
        left += [told[key] for key in survivors if key not in known]
        numbers = {"mutants": len(mutants_of_it), "run": len(mine), "killed": len(mine) - len(survivors)}
        numbers |= {"accepted": len(known), "left": len(survivors) - len(known)}
        sums.update(numbers)
        if mine:
            print(_row(path, numbers))
    print(_row("", sums), f" {100 * sums['killed'] / max(1, sums['run']):.1f} % killed", *left, sep="\n")
    return 1 if left else 0


def _row(name: str, numbers: Mapping[str, int]) -> str:
    columns = zip(("mutants", "run", "killed", "accepted", "left"), (8, 6, 7, 9, 5), strict=True)
    return f"{name:36} " + " ".join(f"{numbers[column]:{width}}" for column, width in columns)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=0, help="so many mutants of each module (all)")
    parser.add_argument("--seed", type=int, default=1, help="another sample")
    parser.add_argument("--only", action="append", default=[], help="a module, as store/account.py")
    parser.add_argument("--work", type=Path, help="keep there what was found, and go on from it")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of tests for each mutant")
    parser.add_argument("--survivors", action="store_true", help="those of WORK once more")
    parser.add_argument("--report", action="store_true", help="only the table of what is in WORK")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bursar-mutants-") as place:
        tree, work = Path(place) / "tree", (chosen.work or Path(place) / "work").resolve()
        work.mkdir(parents=True, exist_ok=True)
        if not chosen.report:
            shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(*SKIPPED))
        every = {path: mutants(ROOT if chosen.report else tree, path) for path in modules()}
        if not chosen.report:
            prepare(tree)
            run_all(chosen, work, every)
        return report(ends(work / "results.jsonl"), every)


def prepare(tree: Path) -> None:
    """What each session has, and what each of them would import for itself."""
    os.chdir(tree)
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_PROFILE": "mutation"}
    sys.path[:0] = [str(tree)]
    # No shrinking: it is enough to know that an example is there. The same ones each time.
    hypothesis.settings.register_profile(
        "mutation",
        hypothesis.settings(
            deadline=None,
            database=None,
            derandomize=True,
            max_examples=60,
            phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
    for name in HEAVY:
        importlib.import_module(name)


def run_all(chosen: argparse.Namespace, work: Path, every: dict[str, list[Mutant]]) -> None:
    known, results = work / "tests.json", work / "results.jsonl"
    if not known.exists() and forked(lambda: Mapped().run(known), 1800) != "survived":
        raise SystemExit("mutate: the tests do not pass as they are")
    run = Run(results, known, chosen.budget)
    again, wanted = ("survived", "cold") if chosen.survivors else ("", "cold"), list[Mutant]()
    before = ends(results)
    for path, found in every.items():
        chance = random.Random(f"{chosen.seed} {path}")  # noqa: S311 - no secret
        picked = chance.sample(found, len(found))[: chosen.sample or None]
        if not chosen.only or path in chosen.only:
            wanted += [one for one in picked if before.get(one.key, "") in again]
    if warm := [one for one in wanted if not run.is_cold(one)]:
        forked(lambda: session(TESTS, [Warm(run, warm)]), 86_400)
    for mutant in wanted:
        if run.is_cold(mutant) or ends(results).get(mutant.key) == "cold":
            run.cold(mutant)


if __name__ == "__main__":
    sys.exit(main())
