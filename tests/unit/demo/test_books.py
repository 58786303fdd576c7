"""The demo's last word: a base unit of difference is found, and said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxy_addon.demo import books, run
from proxy_addon.demo.books import Row
from proxy_addon.demo.chain import SimulatedChain
from proxy_addon.demo.failure import DemoFailed
from proxy_addon.demo.paid_api import PRICE, PaidApi
from proxy_addon.demo.run import FAILED, NO_CURL, TOKEN, run_demo
from proxy_addon.demo.run import FUNDS as STORY_FUNDS
from tests.unit.demo.conftest import FUNDS
from tests.unit.demo.wallet import Wallet, challenge_of, read


class Paid:
    """A channel that was opened, used once and closed; and what bursar's commands would say of it."""

    def __init__(self, chain: SimulatedChain, wallet: Wallet, api: PaidApi) -> None:
        self.chain, self.wallet, self.api = chain, wallet, api
        (account,) = api.payee.accounts.values()
        fees = sum(mined.fee for mined in chain.transactions.values() if mined.sender == wallet.address)
        self.channel = {
            "channel": account.channel_id,
            "deposit": "100000",
            "paid": "10000",
            "uncertain": "0",
            "captured": "10000",
            "refunded": "90000",
            "fees": str(fees),
        }
        self.lines: dict[str, dict[str, Any]] = {
            "start": {"kind": "start"},
            "opened": {"kind": "opened", "amount": "100000", "fee": str(fees)},
            "ended": {"kind": "ended", "outcome": "paid", "amount": "10000"},
            "free": {"kind": "ended", "outcome": "free", "amount": "10000"},
            "closed": {"kind": "closed", "captured": "10000", "refunded": "90000", "adjustment": "0"},
        }

    def audit(self) -> list[Row]:
        return books.audit(
            self.chain,
            self.api.payee,
            payer=self.wallet.address,
            funded={self.wallet.address: FUNDS, self.api.payee.address: FUNDS},
            expected=self.api.charged,
            channels=[self.channel],
            lines=list(self.lines.values()),
        )


@pytest.fixture
async def paid(chain: SimulatedChain, wallet: Wallet, api: PaidApi, http: httpx.AsyncClient) -> Paid:
    challenge = challenge_of(await http.get("/quote"))
    channel = wallet.plan(challenge, 100_000)
    opened = wallet.credential(challenge, wallet.open_payload(channel, PRICE))
    assert read(await http.get("/quote", headers=opened)).status == 200
    closed = wallet.credential(challenge, wallet.close_payload(channel, PRICE))
    assert read(await http.post("/quote", headers=closed)).status == 204
    return Paid(chain, wallet, api)


async def test_all_agree(paid: Paid) -> None:
    rows = paid.audit()
    assert books.differences(rows) == []
    assert all(len(row.said) >= 2 for row in rows)
    lines = books.table(rows, TOKEN)
    assert lines[0].split() == ["chain", "api", "store", "ledger"]
    assert lines[1].split() == ["deposit", "0.10", "0.10", "0.10", "0.10"]


@pytest.mark.parametrize(
    ("name", "value", "row"),
    [
        ("paid", "10001", "paid"),
        ("deposit", "99999", "deposit"),
        ("captured", None, "captured by the payee"),
        ("refunded", "89999", "refunded to the payer"),
        ("fees", "1", "network fees of the payer"),
        ("uncertain", "1", "still uncertain"),
    ],
)
async def test_one_unit_off_in_the_store_is_said(paid: Paid, name: str, value: Any, row: str) -> None:
    paid.channel[name] = value
    _differs(paid, row)


@pytest.mark.parametrize(
    ("kind", "name", "value", "row"),
    [
        ("ended", "amount", "9999", "paid"),
        ("ended", "outcome", "uncertain", "paid"),
        ("free", "outcome", "paid", "paid"),
        ("opened", "amount", "0", "deposit"),
        ("opened", "fee", None, "network fees of the payer"),
        ("closed", "adjustment", "-1", "paid"),
        ("closed", "captured", "9999", "captured by the payee"),
        ("closed", "refunded", "90001", "refunded to the payer"),
    ],
)
async def test_one_unit_off_in_the_ledger_is_said(
    paid: Paid, kind: str, name: str, value: Any, row: str
) -> None:
    paid.lines[kind][name] = value
    _differs(paid, row)


def _differs(paid: Paid, row: str) -> None:
    found = books.differences(paid.audit())
    assert found[0].startswith(f"{row}: ")
    marked = [line for line in books.table(paid.audit(), TOKEN) if line.endswith("<- differs")]
    assert len(marked) == len(found)


async def test_what_the_close_proves_is_paid(paid: Paid) -> None:
    """An answer that was not booked when the proxy was killed."""
    del paid.lines["ended"]
    paid.lines["closed"]["adjustment"] = "10000"
    assert books.differences(paid.audit()) == []


async def test_money_that_appears_is_said(paid: Paid) -> None:
    paid.chain.fund(paid.wallet.address, 1)
    assert [line.partition(":")[0] for line in books.differences(paid.audit())] == [
        "payer's balance",
        "all money there is",
    ]


async def test_another_channel_is_said(paid: Paid) -> None:
    paid.channel["channel"] = "0x00"
    with pytest.raises(DemoFailed, match="the store has channel 0x00"):
        paid.audit()


async def test_nothing_paid_is_said(chain: SimulatedChain, wallet: Wallet, api: PaidApi) -> None:
    with pytest.raises(DemoFailed, match="expected one channel of the API, found 0"):
        books.audit(chain, api.payee, payer=wallet.address, funded={}, expected=0, channels=[], lines=[])


async def test_without_curl(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    lines: list[str] = []
    assert await run_demo(lines.append) == NO_CURL
    assert "install curl" in lines[-1]


async def test_books_that_differ_end_in_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def tell(_: object) -> list[Row]:
        return [Row("paid", {"chain": 10_000, "store": 9_999}), Row("deposit", {"chain": 5, "store": 5})]

    monkeypatch.setattr(run._Story, "tell", tell)
    lines: list[str] = []
    assert await run_demo(lines.append) == FAILED
    assert lines == [
        "demo failed: the books do not agree (base units)",
        "  paid: chain 10000, store 9999",
    ]


@pytest.mark.slow
async def test_a_proxy_that_does_not_pay_ends_in_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_CONFIG", run._CONFIG.replace('max_price = "0.02"', 'max_price = "0.001"'))
    lines: list[str] = []
    assert await run_demo(lines.append) == FAILED
    assert any("expected status 200, got HTTP/1.1 402" in line for line in lines)
    assert any("max_price" in line for line in lines[lines.index("the proxy's log ends:") :])


@pytest.mark.slow
async def test_the_whole_story() -> None:
    lines: list[str] = []
    assert await run_demo(lines.append) == 0, "\n".join(lines)
    assert lines[-1].startswith("demo ok: 7 requests, 0.07 pathUSD paid")
    assert sum("upstream saw 1 request" in line for line in lines) == 5
    assert any(TOKEN.show(STORY_FUNDS) in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_demo_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    environ = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-m", "proxy_addon.demo.run"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        started = next(line for line in process.stdout if "pid " in line)
        process.send_signal(number)
        process.stdout.read()
        assert process.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.rpartition("pid ")[2]), 0)
    assert list(tmp_path.iterdir()) == []
