"""Whatever fails inside while a secret is in its hands, no secret is in the log or the ledger."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from proxy_addon.mitm.guard import describe, guard_logs
from tests.sabotage import Sabotage, secrets_of
from tests.unit.payer.shop import Payer, Shop

log = logging.getLogger("proxy_addon.mitm.replay")
LONGEST_S = 2.0


class Written(logging.Handler):
    """What a handler of the proxy's would have written."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def written() -> Iterator[Written]:
    handler, root = Written(), logging.getLogger()
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.DEBUG)
    guard_logs()
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
    for other in root.handlers:
        other.filters.clear()


async def live(shop: Shop, payer: Payer, over: Callable[[], bool] = lambda: False) -> None:
    """Openings, vouchers, a repair, an upload, an end, until it is `over`; each is told as the proxy tells it."""

    async def tell(work: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(LONGEST_S):  # some wait for an opening that never left
                await work
        except Exception as error:
            log.error("Deciding on a 402 answer failed, it passes: %s", describe(error))

    for number in range(4):
        if over():
            break
        if number == 2:
            shop.refuses_once("verification-failed")
        await tell(payer.get(method="POST" if number == 3 else "GET", body=b"x"))
    await tell(asyncio.gather(*(till.release() for till in payer.tills)))
    await tell(payer.gate.close())


async def test_no_exception_tells_a_secret(
    tmp_path: Path, written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each function fails once, with an exception that holds all that it was handed."""
    rooms = ("payer", "signer", "methods", "core.messages", "outbound", "audit")
    sabotage = Sabotage(rooms, lambda owner, name, value: monkeypatch.setattr(owner, name, value))
    await live(shop := Shop(), Payer(shop, tmp_path / "first"))
    holders = tuple(sabotage.holders)
    assert len(holders) > 50
    keys = set()
    for number, name in enumerate(holders):
        shop = Shop()
        payer = Payer(shop, tmp_path / str(number))
        keys.add(payer.key.hex())
        sabotage.armed = name
        await live(shop, payer, lambda: not sabotage.armed)
    assert set(sabotage.fired) >= set(holders)

    secrets = {one for text in sabotage.fired.values() for one in secrets_of(text)} | keys
    assert len(secrets) > 2 * len(holders)
    text = "\n".join(written.lines)
    ledgers = all_ledgers(tmp_path)
    assert text.count("RuntimeError") >= 0.8 * len(holders)
    assert len(ledgers) > 10_000
    for place in (text, ledgers):
        assert [one for one in secrets if one in place] == []


def all_ledgers(directory: Path) -> str:
    return "\n".join(file.read_text() for file in directory.rglob("*.jsonl"))
