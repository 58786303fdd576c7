"""The demo's last word: the same amounts, as four parties know them. They agree to the base unit, or it fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from proxy_addon.demo import reserve
from proxy_addon.demo.chain import SimulatedChain
from proxy_addon.demo.failure import DemoFailed
from proxy_addon.demo.payee import Payee
from proxy_addon.methods.abi import keccak256, to_hex
from proxy_addon.methods.tempo_session.v2 import RESERVE
from store.amounts import Token

T = TypeVar("T")
SOURCES: Final = ("chain", "api", "store", "ledger")


@dataclass(frozen=True, slots=True)
class Row:
    """One amount in base units, by who says so; who cannot know it is left out."""

    name: str
    said: Mapping[str, int] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        return len(set(self.said.values())) == 1


def audit(
    chain: SimulatedChain,
    payee: Payee,
    *,
    payer: str,
    funded: Mapping[str, int],
    expected: int,
    channels: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
) -> list[Row]:
    """The rows to compare.

    `channels` and the ledger's `lines` are what bursar's own commands write, `expected` is the sum of the prices of
    what was served, `funded` what each address was given before the first payment. Raises `DemoFailed` if anyone
    knows of no payment, or of another channel.
    """
    opened, closed = _event(chain, reserve.OPENED), _event(chain, reserve.CLOSED)
    account = _only(list(payee.accounts.values()), "channel of the API")
    record = _only(channels, "channel in the store")
    ledger = _ledger(lines)
    if record["channel"] != account.channel_id:
        raise DemoFailed(f"the store has channel {record['channel']}, the API {account.channel_id}")
    deposit = sum(words[-1] for words in opened)
    captured = sum(words[0] for words in closed)
    refunded = sum(words[1] for words in closed)
    payer_fees, payee_fees = _fees(chain, payer), _fees(chain, payee.address)
    return [
        Row(
            "deposit",
            {
                "chain": deposit,
                "api": account.captured + account.refunded,
                "store": int(record["deposit"]),
                "ledger": ledger["deposit"],
            },
        ),
        Row(
            "paid",
            {
                "chain": captured,
                "api": account.spent,
                "store": int(record["paid"]),
                "ledger": ledger["paid"],
            },
        ),
        Row("price of what was served", {"chain": captured, "api": expected}),
        Row(
            "captured by the payee",
            {
                "chain": captured,
                "api": account.captured,
                "store": _number(record["captured"]),
                "ledger": ledger["captured"],
            },
        ),
        Row(
            "refunded to the payer",
            {
                "chain": refunded,
                "api": account.refunded,
                "store": _number(record["refunded"]),
                "ledger": ledger["refunded"],
            },
        ),
        Row(
            "network fees of the payer",
            {"chain": payer_fees, "store": int(record["fees"]), "ledger": ledger["fees"]},
        ),
        Row("still uncertain", {"api": 0, "store": int(record["uncertain"])}),
        Row(
            "payer's balance",
            {"chain": chain.balance(payer), "store": funded[payer] - _spent(record)},
        ),
        Row(
            "payee's balance",
            {
                "chain": chain.balance(payee.address),
                "api": funded[payee.address] + account.captured - payee_fees,
            },
        ),
        Row("left in the escrow", {"chain": chain.balance(RESERVE), "api": 0, "store": 0}),
        Row("all money there is", {"chain": chain.supply(), "api": sum(funded.values())}),
    ]


def table(rows: Sequence[Row], token: Token) -> list[str]:
    """Lines to print; a row that does not agree is marked."""
    name_width = max(len(row.name) for row in rows)
    cells = [
        [row.name.ljust(name_width), *(_shown(row.said.get(source), token) for source in SOURCES)]
        for row in rows
    ]
    width = max(len(cell) for line in cells for cell in line[1:])
    header = "  ".join(["".ljust(name_width), *(source.rjust(width) for source in SOURCES)])
    lines = [header]
    for row, line in zip(rows, cells, strict=True):
        mark = "" if row.agrees else "   <- differs"
        lines.append("  ".join([line[0], *(cell.rjust(width) for cell in line[1:])]) + mark)
    return lines


def differences(rows: Sequence[Row]) -> list[str]:
    """What does not agree, in base units."""
    return [
        f"{row.name}: " + ", ".join(f"{source} {amount}" for source, amount in row.said.items())
        for row in rows
        if not row.agrees
    ]


def _shown(amount: int | None, token: Token) -> str:
    return "" if amount is None else token.show(amount).partition(" ")[0]


def _event(chain: SimulatedChain, signature: str) -> list[list[int]]:
    """The data words of every such event of the reserve."""
    topic = to_hex(keccak256(signature.encode()))
    found = chain.logs(RESERVE, [topic], 0, chain.head().number)
    return [
        [int.from_bytes(event.data[at : at + 32], "big") for at in range(0, len(event.data), 32)]
        for _, _, event in found
    ]


def _fees(chain: SimulatedChain, sender: str) -> int:
    return sum(mined.fee for mined in chain.transactions.values() if mined.sender == sender)


def _spent(record: Mapping[str, Any]) -> int:
    return _number(record["captured"]) + int(record["fees"])


def _ledger(lines: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What the lines add up to.

    Paid is what receipts prove, and what the close has shown besides: an answer that was not booked yet when its
    proxy was killed stays uncertain until then.
    """
    sums = dict.fromkeys(("deposit", "paid", "captured", "refunded", "fees"), 0)
    for line in lines:
        match line["kind"]:
            case "opened":
                sums["deposit"] += int(line["amount"])
            case "ended" if line["outcome"] == "paid":
                sums["paid"] += int(line["amount"])
            case "closed":
                sums["paid"] += int(line["adjustment"])
                sums["captured"] += int(line["captured"])
                sums["refunded"] += int(line["refunded"])
            case _:
                pass
        sums["fees"] += int(line.get("fee") or 0)
    return sums


def _only(found: Sequence[T], what: str) -> T:
    if len(found) != 1:
        raise DemoFailed(f"expected one {what}, found {len(found)}")
    return found[0]


def _number(value: str | None) -> int:
    return -1 if value is None else int(value)
