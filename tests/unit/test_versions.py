"""That an environment is what it is taken for: each Python with the mitmproxy that belongs to it."""

from __future__ import annotations

import os
import sys

from mitmproxy import version

from proxy_addon.mitm import compat

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def test_the_matrix_runs_on_the_python_that_it_names() -> None:
    """``make test-python PY=…`` says which; plain ``make test`` takes the newest that is there."""
    assert os.environ.get("BURSAR_EXPECT_PYTHON", HERE) == HERE


def test_each_python_has_its_mitmproxy() -> None:
    """Without the split in pyproject, pip on 3.12 silently takes 11.1 with an old h11."""
    expected = "11.0." if sys.version_info < (3, 12) else "12.2."
    assert version.VERSION.startswith(expected), f"mitmproxy {version.VERSION} on Python {HERE}"
    assert compat.why_unsupported(version.VERSION) is None
