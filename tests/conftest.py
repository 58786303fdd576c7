"""Hypothesis profiles: ``HYPOTHESIS_PROFILE=nightly pytest tests/properties`` searches for hours instead of seconds."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_COMMON = settings(deadline=None, suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much))

settings.register_profile("default", _COMMON, max_examples=100)
# The same examples on every run: what fails there fails here too.
settings.register_profile("ci", _COMMON, max_examples=100, derandomize=True, print_blob=True)
settings.register_profile("nightly", _COMMON, max_examples=20_000, stateful_step_count=120, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "default"))
