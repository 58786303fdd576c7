"""What a payee reads in a credential's payload, and the problems that it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from proxy_addon.methods.abi import parse_bytes32, to_bytes
from proxy_addon.methods.tempo_tx import SignedTransaction, decode
from store.amounts import UINT96_MAX, parse_wire

T = TypeVar("T")

PROBLEMS: Final[Mapping[str, tuple[int, str]]] = {
    "payment-required": (402, "Payment Required"),
    "malformed-credential": (402, "Malformed Credential"),
    "invalid-challenge": (402, "Invalid Challenge"),
    "payment-expired": (402, "Payment Expired"),
    "invalid-payload": (402, "Invalid Payload"),
    "verification-failed": (402, "Verification Failed"),
    "internal-payment-error": (500, "Internal Payment Error"),
    "session/insufficient-balance": (402, "Insufficient Balance"),
    "session/invalid-signature": (402, "Invalid Signature"),
    "session/amount-exceeds-deposit": (402, "Amount Exceeds Deposit"),
    "session/delta-too-small": (402, "Delta Too Small"),
    "session/channel-not-found": (410, "Channel Not Found"),
    "session/channel-finalized": (410, "Channel Closed"),
}


class PaymentProblem(Exception):
    """Why a request is not served: a problem type of the Payment scheme, with its status."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.status, self.title = PROBLEMS[kind]


class Payload:
    """The fields of a credential's payload, read one by one. Raises `PaymentProblem` naming the field."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.fields = fields
        self.channel_id = self._parse(lambda: parse_bytes32(fields.get("channelId"), "channelId"))

    def amount(self, name: str) -> int:
        return self._parse(lambda: parse_wire(self.fields.get(name), name, limit=UINT96_MAX))

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if not isinstance(value, str):
            raise PaymentProblem("verification-failed", f"{name} is missing or no string")
        return value

    def data(self, name: str) -> bytes:
        text = self.text(name)
        return self._parse(lambda: to_bytes(text))

    def transaction(self) -> SignedTransaction:
        if self.fields.get("type") != "transaction":
            raise PaymentProblem("verification-failed", "type is not transaction")
        raw = self.data("transaction")
        return self._parse(lambda: decode(raw))

    @staticmethod
    def _parse(read: Callable[[], T]) -> T:
        try:
            return read()
        except ValueError as error:
            raise PaymentProblem("verification-failed", str(error)) from error
