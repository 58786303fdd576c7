"""Makes a payee's challenges, and knows them again: a challenge's id is a MAC over all the rest of it."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from proxy_addon.core.messages import Challenge
from proxy_addon.core.strict_json import b64url_encode
from proxy_addon.demo.payload import PaymentProblem
from proxy_addon.methods.tempo_session.v2 import RESERVE

_PINNED: Final = ("amount", "currency", "recipient", "unitType")
_PINNED_DETAILS: Final = ("chainId", "sessionProtocol", "operator", "escrowContract")


@dataclass(slots=True, kw_only=True)
class Challenges:
    """Of one payee, on the same terms but for the price. `header` is the field a credential is asked in."""

    clock: Callable[[], float]
    chain_id: int
    payee: str
    token: str
    realm: str = "demo"
    unit_type: str = "request"
    suggested_deposit: int | None = 100_000  # base units
    min_voucher_delta: int = 0  # base units
    expires_s: int = 300
    header: str | None = None
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def make(self, price: int) -> Challenge:
        request = b64url_encode(orjson.dumps(self._request(price), option=orjson.OPT_SORT_KEYS))
        unsigned = Challenge(
            id="unsigned",
            realm=self.realm,
            method="tempo",
            intent="session",
            request=request,
            expires=iso_time(self.clock() + self.expires_s),
            header=self.header,
        )
        return Challenge(**{**unsigned.echo(), "id": self._id(unsigned)})

    def check(self, challenge: Challenge, price: int) -> None:
        """Raises `PaymentProblem` unless it was made here, for this price, and has not expired."""
        if not hmac.compare_digest(challenge.id.encode(), self._id(challenge).encode()):
            raise PaymentProblem("invalid-challenge", "this challenge was not made here")
        request, expected = challenge.request_json, self._request(price)
        details, expected_details = request["methodDetails"], expected["methodDetails"]
        wrong = [name for name in _PINNED if request.get(name) != expected.get(name)]
        wrong += [name for name in _PINNED_DETAILS if details.get(name) != expected_details.get(name)]
        if wrong:
            raise PaymentProblem("invalid-challenge", f"{wrong[0]} is not what this resource asks for")
        if challenge.expires_at is None or challenge.expires_at <= self.clock() * 1000:
            raise PaymentProblem("payment-expired", f"this challenge was good until {challenge.expires}")

    def forget(self) -> None:
        """As after a restart with another secret: no challenge made so far is good any more."""
        self._secret = secrets.token_bytes(32)

    def _request(self, price: int) -> dict[str, Any]:
        details: dict[str, Any] = {
            "chainId": self.chain_id,
            "escrowContract": RESERVE,
            "sessionProtocol": "v2",
        }
        if self.min_voucher_delta:
            details["minVoucherDelta"] = str(self.min_voucher_delta)
        request: dict[str, Any] = {
            "amount": str(price),
            "currency": self.token,
            "recipient": self.payee,
            "unitType": self.unit_type,
            "methodDetails": details,
        }
        if self.suggested_deposit is not None:
            request["suggestedDeposit"] = str(self.suggested_deposit)
        return request

    def _id(self, challenge: Challenge) -> str:
        slots = [challenge.realm, challenge.method, challenge.intent, challenge.request]
        slots += [challenge.expires or "", challenge.digest or ""]
        if challenge.header is not None and challenge.header != "Authorization":
            slots.append(challenge.header)
        slots.append(challenge.opaque or "")
        return b64url_encode(hmac.digest(self._secret, "|".join(slots).encode(), "sha256"))


def iso_time(seconds: float) -> str:
    """RFC 3339, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
