"""That ``make crash PROXY_KILLS=300`` works; proxies are killed in ``tests/e2e/test_concurrency.py``, too."""

from __future__ import annotations

import shutil

import pytest

from tests.crash.proxies import kill_proxies


@pytest.mark.skipif(
    shutil.which("curl") is None, reason="the clients are an unmodified curl, and there is none here"
)
async def test_a_proxy_is_killed_under_load() -> None:
    found = await kill_proxies(seed=1, kills=1)
    assert found.violations == []
    assert found.paid > 0
    assert found.heard <= found.units
