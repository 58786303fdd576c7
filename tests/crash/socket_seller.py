"""The server's half of a paid WebSocket: it takes credentials as frames, sells units, and asks for what it lacks.

It says what the server that people run (mppx 0.11) says, in that order: a receipt for each credential that it took,
the units, a need-voucher where one is not covered yet, and at most ends its last words on what was spent.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from proxy_addon.demo.paid_api import PRICE
from proxy_addon.demo.payee import Account, Payee
from tests.crash.jobs import Said


@dataclass(eq=False)
class Line:
    """One connection. It outlives the process at its other end: what was charged over it is looked at in the end."""

    payee: Payee
    random: random.Random
    channel_id: str | None = None  # once a credential was taken
    first: int = 0  # voucher
    highest: int = 0
    units: int = 0  # that were charged over it
    gone: bool = False

    @property
    def _account(self) -> Account:
        assert self.channel_id is not None
        return self.payee.accounts[self.channel_id]

    def take(self, payload: Mapping[str, Any]) -> bool:
        """A credential has come. Was it taken, whatever its sender will hear of that?"""
        amount, channel_id = int(payload["cumulativeAmount"]), str(payload["channelId"])
        account = self.payee.accounts.get(channel_id)
        if account is None or account.accepted != amount or self.channel_id not in (None, channel_id):
            return False
        if self.channel_id is None:
            self.channel_id, self.first = channel_id, amount
        self.highest = max(self.highest, amount)
        return True

    def receive(self) -> Said:
        return Said((_frame("receipt", self._receipt()),))

    def refuse(self, status: int) -> Said:
        """Its words may be too long for a close; then nothing but them arrives, and the payer has to hang up."""
        self.gone = True
        text = json.dumps({"mpp": "payment-error", "status": status, "message": "no"})
        return Said((text,), cut=status != 402, needs=True)

    def next(self, units: int) -> Said:
        """What it says without being asked; `units` is what it has to sell over this connection."""
        if self.units >= units:
            last = (_frame("close-ready", self._receipt()),) if self.random.random() < 0.7 else ()
            self.gone = True
            return Said(last, cut=True)
        if self._tick():
            return Said((json.dumps({"mpp": "message", "data": f"unit {self.units}"}),))
        account = self._account
        need = {
            "channelId": self.channel_id,
            "requiredCumulative": str(account.spent + PRICE),
            "acceptedCumulative": str(account.accepted),
            "deposit": str(account.deposit),
        }
        return Said((_frame("need-voucher", need),), needs=True)

    def hang_up(self) -> None:
        """The payer is gone. Until it hears of that, a server sells what it has the money for.

        Not what somebody else has paid since, on the same channel: that would be theft.
        """
        while not self.gone and self.channel_id is not None:
            if self._account.accepted > self.highest or not self._tick():
                break
        self.gone = True

    def _tick(self) -> bool:
        account = self._account
        if account.available < PRICE or account.finalized:
            return False
        account.spent += PRICE
        account.units += 1
        self.units += 1
        return True

    def _receipt(self) -> Mapping[str, object]:
        account = self._account
        return {
            "method": "tempo",
            "intent": "session",
            "status": "success",
            "timestamp": "2026-01-01T00:00:00Z",
            "reference": account.channel_id,
            "challengeId": "c",
            "channelId": account.channel_id,
            "acceptedCumulative": str(account.accepted),
            "spent": str(account.spent),
            "units": account.units,
        }


def _frame(name: str, data: Mapping[str, object]) -> str:
    return json.dumps({"mpp": f"payment-{name}", "data": data})
