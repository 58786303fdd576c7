"""A share of the kills; ``make crash`` has the many. What a violation is, is in `books`."""

from __future__ import annotations

import pytest

from tests.crash import sabotage
from tests.crash.books import Kind
from tests.crash.campaign import End, Tally, every_point, random_kills, wallet
from tests.crash.jobs import Kill
from tests.crash.points import BY_NAME, TABLE, Point
from tests.crash.zygote import Zygote

RANDOM = 12


@pytest.mark.parametrize("point", TABLE, ids=lambda point: point.name)
def test_a_point_is_where_the_table_says(point: Point) -> None:
    """Whoever renames a step, or takes it away, has to say where its kill falls now."""
    _, method = point.resolve()
    assert callable(method) or isinstance(method, (classmethod, staticmethod))


def test_every_point_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(TABLE)


@pytest.mark.timeout(300)
async def test_killed_at_every_point_and_at_random() -> None:
    tally = Tally()
    async with Zygote() as zygote:
        await every_point(zygote, "1/0", tally)
        await random_kills(zygote, "1/1", RANDOM, tally)
    assert tally.violations == []
    assert set(tally.at) == set(BY_NAME)
    assert tally.killed >= len(TABLE) + RANDOM
    assert tally.resumed > tally.killed * 0.8  # the others were killed before it came to that
    assert tally.paid > tally.killed
    assert min(tally.seen[action] for action in ("open", "voucher", "topUp", "close")) > 10
    assert tally.sockets > 10
    assert tally.units > tally.sockets
    assert tally.home > 1_000_000


BROKEN = (
    ("raise-not-durable", "pay", "credential.write.after", Kind.REGRESSION),
    ("opening-not-durable", "open", "open.write.after", Kind.LOST),
    ("unknown-is-failed", "open-unknown", "open.failed.after", Kind.LOST),
    ("no-line", "pay", "credential.write.after", Kind.UNCOUNTED),
    ("raise-not-durable", "socket", "socket.voucher.write.after", Kind.REGRESSION),
    ("no-line-of-growth", "socket", "socket.voucher.write.after", Kind.UNCOUNTED),
    ("unknown-is-free", "pay", "credential.write.after", Kind.UNCOUNTED),
)


async def test_a_broken_promise_is_noticed() -> None:
    assert {broken for broken, *_ in BROKEN} == set(sabotage.WAYS)
    async with Zygote() as zygote:
        for broken, act, point, noticed in BROKEN:
            tally = Tally()
            async with wallet(zygote, f"{broken}/0", tally, broken) as one:
                await one.live(End("point", Kill(point, 1)), ((act,),))
                await one.live(End("point", Kill("grant.before", 1, from_start=True)))
                await one.live(End("point", Kill("grant.before", 1, from_start=True)))
            assert tally.by_kind[noticed] > 0, (broken, tally.violations)
