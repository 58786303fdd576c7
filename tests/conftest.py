"""For every test. ``HYPOTHESIS_PROFILE=nightly pytest tests/properties`` searches for hours instead of seconds."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

from tests.properties.steps import taken

# A shell without job control starts what it puts in the background with SIGINT ignored, and that is inherited:
# the programs that these tests interrupt would never hear of it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONG = os.environ.get("BURSAR_LONG") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long has a short share in every run, and is whole in ``make long``."""
    for item in items:
        if not LONG and item.get_closest_marker("long") is not None:
            item.add_marker(pytest.mark.skip(reason="long: `make long` runs it"))


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
