"""A share of what ``make crash BUDGET=32x1000`` runs."""

from __future__ import annotations

from tests.crash.budgets import spend_all


async def test_processes_that_are_killed_share_a_limit_to_the_base_unit() -> None:
    found = await spend_all(seed=1, processes=4, payments=30)
    assert found.violations == []
    assert found.counted == found.authorised == found.limit
    assert found.answers["limit-reached"] > 0
    assert found.answers["200"] > 60
    assert found.kills > 4
