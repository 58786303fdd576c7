"""F6: whatever breaks under a method that changes something, it leaves once: never again on our account."""

from __future__ import annotations

import itertools

import h2.errors  # type: ignore[import-untyped, unused-ignore]  # typed since 4.2
import pytest

from proxy_addon.mitm.gate import Outcome
from tests.unit.mitm.fake_gate import PAY, FakeGate
from tests.unit.mitm.servers import Exchange, Exchange2
from tests.unit.mitm.wires import WIRES, Wiring

METHODS = ("POST", "PUT", "PATCH", "DELETE", "MKCOL")
BODIES = {"empty": b"", "short": b"x" * 100, "streamed": b"y" * 300_000}


async def _after_the_header(x: Exchange | Exchange2) -> None:
    x.close()


async def _after_the_body(x: Exchange | Exchange2) -> None:
    await x.body()
    x.close()


async def _within_the_answers_header(x: Exchange | Exchange2) -> None:
    await x.body()
    if isinstance(x, Exchange):
        x.write(b"HTTP/1.1 200 O")
        await x.writer.drain()
    x.close()


async def _reset(x: Exchange | Exchange2) -> None:
    await x.body()
    if isinstance(x, Exchange2):
        await x.rst(h2.errors.ErrorCodes.INTERNAL_ERROR)
    else:
        x.writer.transport.abort()
        x.keep = False


async def _cancelled(x: Exchange | Exchange2) -> None:
    await x.body()
    if isinstance(x, Exchange2):
        await x.rst(h2.errors.ErrorCodes.CANCEL)
    else:
        x.close()


async def _goodbye(x: Exchange | Exchange2) -> None:
    """HTTP/2: the connection ends, and this stream may have been processed."""
    await x.body()
    if isinstance(x, Exchange2):
        await x.goaway(x.request.stream)
    x.close()


BREAKS = {
    one.__name__.strip("_"): one
    for one in (
        _after_the_header,
        _after_the_body,
        _within_the_answers_header,
        _reset,
        _cancelled,
        _goodbye,
    )
}


async def breaking(x: Exchange | Exchange2) -> None:
    how = x.request.path.rpartition("/")[2]
    if how in BREAKS:
        await BREAKS[how](x)
    else:
        await x.body()
        await x.respond(200, b"served")


async def asking(x: Exchange | Exchange2) -> None:
    if x.request.paid:
        await breaking(x)
    else:
        await x.body()
        await x.respond(402, b"pay")


@pytest.mark.parametrize("wiring", [WIRES[0], WIRES[2]], ids=lambda wire: wire.name, indirect=True)
async def test_nor_is_a_payment_that_a_402_asked_for(wiring: Wiring, gate: FakeGate) -> None:
    async with wiring.line(asking, gate) as line:
        for how in BREAKS:
            await line.curl(f"/{how}", "-d", "x")
        await gate.all_finished()
        seen = [(one.path, one.paid) for one in line.upstream.requests]
    assert seen == [(f"/{how}", paid) for how in BREAKS for paid in (False, True)]
    assert {one.outcome for one in gate.tickets} == {Outcome.LOST}
    assert not any("lost" in one.calls for one in gate.tickets)


@pytest.mark.parametrize("wiring", [WIRES[0], WIRES[2]], ids=lambda wire: wire.name, indirect=True)
async def test_it_leaves_once(wiring: Wiring, gate: FakeGate) -> None:
    """On a fresh connection, and on one that was used before: where a GET would go out once more."""
    gate.now = PAY
    async with wiring.line(breaking, gate) as line:
        expected = []
        methods = itertools.cycle(METHODS)
        for how, (size, body) in itertools.product(BREAKS, BODIES.items()):
            method = next(methods)
            before, path = f"/{method}/{size}/before", f"/{method}/{size}/{how}"
            options = ("-X", method, "--data-binary", "@-", line.upstream.url(before))
            await line.curl(path, *options, stdin=body)
            expected += [before, path]
        await gate.all_finished()
        assert [one.path for one in line.upstream.requests if one.paid] == expected
    broken = [one for one, path in zip(gate.tickets, expected, strict=True) if not path.endswith("before")]
    assert {one.outcome for one in broken} == {Outcome.LOST}
    assert not any("lost" in one.calls for one in gate.tickets)  # the gate is not even asked
