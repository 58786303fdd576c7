"""What a transaction must do to be signed, read back from the very bytes that are signed.

A guard knows from the record what was meant; it decodes the payload on its own and compares everything that
moves money: who is called, how often, with which arguments, and in which token the fee is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.tempo_tx import EXPIRING_NONCE_KEY, TempoTransaction, decode_for_signing
from store.records import Channel, PaymentScope

Finding: TypeAlias = tuple[str, object, object]
"""What it is about, what was found, what was meant."""


@dataclass(frozen=True, slots=True)
class CallGuard:
    """One call: whom it goes to, and what its data must say."""

    target: str
    read: Callable[[bytes], Sequence[Finding]]  # raises ValueError for the data of any other call


@dataclass(frozen=True, slots=True)
class Guard:
    """One transaction of the scope's payer: exactly these calls, in this order."""

    what: str  # "an opening", for the message
    scope: PaymentScope
    calls: tuple[CallGuard, ...]
    sponsored: bool = False

    def check(self, payload: bytes) -> None:
        """Raises ``ValueError`` unless `payload` is the signing payload of such a transaction."""
        transaction = decode_for_signing(payload)
        findings = self._envelope(transaction)
        for call, expected in zip(transaction.calls, self.calls, strict=False):
            findings += [*expected.read(call.data)]
            findings += [("target", to_hex(call.to), expected.target), ("value", call.value, 0)]
        for name, found, meant in findings:
            if found != meant:
                raise ValueError(f"{self.what} whose {name} is {found}, not {meant}")

    def _envelope(self, transaction: TempoTransaction) -> list[Finding]:
        fee_token = None if self.sponsored else to_bytes(self.scope.token)
        return [
            ("chain", transaction.chain_id, self.scope.chain_id),
            ("number of calls", len(transaction.calls), len(self.calls)),
            ("nonce key", transaction.nonce_key, EXPIRING_NONCE_KEY),
            ("sponsorship", transaction.sponsored, self.sponsored),
            ("fee token", transaction.fee_token, fee_token),
        ]


@dataclass(frozen=True, slots=True)
class Guards:
    """How the transactions of one version's channels are read."""

    opening: Callable[[PaymentScope, int, bool], Guard]  # scope, deposit, sponsored
    top_up: Callable[[Channel, int, bool], Guard]  # channel, amount, sponsored
    request_close: Callable[[Channel], Guard]
    withdraw: Callable[[Channel], Guard]
