"""For every test. ``HYPOTHESIS_PROFILE=nightly pytest tests/properties`` searches for hours instead of seconds."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests import forked
from tests.properties.steps import taken

# A shell without job control starts what it puts in the background with SIGINT ignored, and that is inherited:
# the programs that these tests interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = os.environ.get("BURSAR_LONG") == "1"

_HERE = Path(__file__).parent
# Where whole programs of ours are started: they are forked, see `forked`, but for tests that are marked `fresh`.
PROGRAMS = ("clients", "e2e", "peers", "unit/cli", "unit/demo", "unit/mitm")
# Where tests wait more than they compute: for programs, blocks of a chain, timers.
WAITING = (*PROGRAMS, "crash", "hostile", "soak", "unit/bench")
# These take ten seconds and more.
LONGEST = (
    "crash/test_crash.py",
    "peers/test_testbed.py",
    "e2e/test_streams.py",
    "unit/demo/test_books.py",
    "e2e/test_vault.py",
    "unit/mitm/test_faults.py",
    "e2e/test_first_steps.py",
    "e2e/test_websocket.py",
    "e2e/test_concurrency.py",
    "hostile/test_attacks.py",
    "clients/test_clients.py",
    "e2e/test_recovery.py",
    "properties/test_account_machine.py",
    "properties/test_payment_scheme.py",
    "e2e/test_retries.py",
    "e2e/test_secrets.py",
    "e2e/test_stopping.py",
    "e2e/test_many_clients.py",
    "e2e/test_main_job.py",
    "e2e/test_workers.py",
    "unit/cli/test_key.py",
    "e2e/test_bad_input.py",
    "e2e/test_bodies.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long has a short share in every run, and is whole in ``make long``."""
    for item in items:
        if not LONG and item.get_closest_marker("long") is not None:
            item.add_marker(pytest.mark.skip(reason="long: `make long` runs it"))
    if hasattr(config, "workerinput"):
        items[:] = in_turn(items)


def in_turn(items: list[pytest.Item]) -> list[pytest.Item]:
    """For several processes, which take file after file: the longest first, so that none is left over at the end, and
    beside each that waits one that computes."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    longest = {_HERE / name: index for index, name in enumerate(LONGEST)}
    ordered = sorted(files, key=lambda file: (longest.get(file, len(longest)), -len(files[file])))
    waiting = [file for file in ordered if _among(file, WAITING)]
    computing = [file for file in ordered if not _among(file, WAITING)]
    places = [(index / len(some), file) for some in (waiting, computing) for index, file in enumerate(some)]
    return [item for _, file in sorted(places, key=lambda one: one[0]) for item in files[file]]


def _among(file: Path, rooms: tuple[str, ...]) -> bool:
    return any(file.is_relative_to(_HERE / room) for room in rooms)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    fresh = item.get_closest_marker("fresh") is not None
    forked.switch(not fresh and _among(item.path, PROGRAMS))


_COMMON = settings(deadline=None, suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much))

# A run of 120 steps is large for Hypothesis, and is meant to be.
_LARGE = (HealthCheck.large_base_example, HealthCheck.data_too_large)

settings.register_profile("default", _COMMON, max_examples=100)
# The same examples on every run: what fails there fails here too.
settings.register_profile("ci", _COMMON, max_examples=100, derandomize=True, print_blob=True)
settings.register_profile(
    "nightly",
    _COMMON,
    max_examples=int(os.environ.get("BURSAR_EXAMPLES", "20000")),
    stateful_step_count=120,
    suppress_health_check=(*_COMMON.suppress_health_check, *_LARGE),
    print_blob=True,
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Without worker processes: the steps are counted here."""
    for machine, steps in sorted(taken.items()):
        terminalreporter.write_line(f"{machine}: {steps} steps, the invariants after each")
