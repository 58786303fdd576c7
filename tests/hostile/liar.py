"""A server in this process that answers anything: what the hostile model plays against the real gate.

It keeps every voucher that left. Whatever is drawn from `Random` comes from the scene's seed.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import orjson
from mitmproxy import http

from proxy_addon.core.headers import format_challenge
from proxy_addon.core.messages import PROBLEM_BASE
from proxy_addon.core.strict_json import b64url_encode
from proxy_addon.demo import reserve
from proxy_addon.demo.chain import PATH_USD, SimulatedChain, TransactionRefused
from proxy_addon.demo.challenges import iso_time
from proxy_addon.methods.abi import ZERO_ADDRESS, to_bytes, to_hex
from proxy_addon.methods.tempo_session.calls import channel_id, parse_descriptor
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_session.voucher import V2
from proxy_addon.mitm.gate import Fields

PRICE: Final = 10_000
KINDS: Final = (
    "payment-required",
    "payment-expired",
    "invalid-challenge",
    "verification-failed",
    "verification-failed",
    "payment-insufficient",
    "internal-payment-error",
    "session/delta-too-small",
    "session/delta-too-small",
    "session/insufficient-balance",
    "session/insufficient-balance",
    "session/amount-exceeds-deposit",
    "session/channel-not-found",
    "session/channel-finalized",
    "session/invalid-signature",
    "session/signer-mismatch",
    "session/never-heard-of",
    "x\r\n\x1b[2J",
    None,
)
STATUSES: Final = (200, 200, 200, 200, 204, 206, 301, 304, 404, 500, 502)
PRICES: Final = (*(PRICE,) * 12, 2 * PRICE, 3 * PRICE, 5 * PRICE, 9 * PRICE, 1, 12_345)
UNITS: Final = (*("request",) * 8, "token", "")
_PROBLEM: Final = (b"content-type", b"application/problem+json")


@dataclass
class Book:
    """What is known of one channel from the vouchers that left for it. Base units."""

    channel: str
    descriptor: Mapping[str, str]
    highest: int = 0
    signature: bytes = b""
    opening: str = ""  # the raw transaction
    charged: int = 0  # by its own words


@dataclass
class Liar:
    """One origin. `payees` are all in its hands."""

    chain: SimulatedChain
    origin: str
    payees: tuple[str, ...]
    random: Random
    temper: float  # how often it is just what it should be
    books: dict[str, Book] = field(default_factory=dict)
    top_ups: list[str] = field(default_factory=list)
    highest: int = 0  # the sum over all channels: what it could settle, if all deposits landed
    _requests: dict[tuple[Any, ...], str] = field(default_factory=dict)

    # -- what reaches it

    def note(self, sets: Fields) -> Mapping[str, Any]:
        """A credential has left: its payload, checked as the chain will check it. Empty without one."""
        for name, value in sets:
            if name.lower() in ("authorization", "payment-authorization"):
                token = value.split(" ", 1)[1]
                payload = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))["payload"]
                self._keep(payload)
                found: Mapping[str, Any] = payload
                return found
        return {}

    def _keep(self, payload: Mapping[str, Any]) -> None:
        channel = payload["channelId"]
        book = self.books.get(channel)
        if book is None:
            descriptor = parse_descriptor(payload["descriptor"])
            assert channel_id(descriptor, escrow=RESERVE, chain_id=self.chain.chain_id) == channel
            assert descriptor["payee"] in self.payees, "a channel for somebody who never asked"
            book = self.books[channel] = Book(channel, descriptor)
        match payload["action"]:
            case "open":
                book.opening = payload["transaction"]
            case "topUp":
                self.top_ups.append(payload["transaction"])
                return
        amount, signature = int(payload["cumulativeAmount"]), to_bytes(payload["signature"])
        if amount <= book.highest:
            return
        digest = V2.digest(chain_id=self.chain.chain_id, escrow=RESERVE, channel_id=channel, amount=amount)
        assert reserve.signed_by(reserve.voucher_signer(book.descriptor), digest, signature), (
            "a bad signature"
        )
        self.highest += amount - book.highest
        book.highest, book.signature = amount, signature

    # -- what it does on the chain

    def land(self, payload: Mapping[str, Any]) -> None:
        if "transaction" in payload:
            self.broadcast(payload["transaction"])

    def broadcast(self, raw: str) -> None:
        with contextlib.suppress(TransactionRefused):  # too late, or there already
            self.chain.send(to_bytes(raw))

    def land_something(self) -> None:
        """Something that it kept back, if it is still good."""
        kept = [one.opening for one in self.books.values() if one.opening] + self.top_ups
        if kept:
            self.broadcast(self.random.choice(kept))

    # -- what it says

    def challenge(self, **fixed: Any) -> str:
        """A WWW-Authenticate value; mostly payable."""
        draw = self.random.random
        choice = self.random.choice
        if draw() < self.temper:
            return self._plain(choice(UNITS))
        price = fixed.get("price") or choice(PRICES)
        payee = self.payees[0] if draw() < 0.93 else choice(self.payees)
        delta = "" if draw() < 0.9 else choice(("1", "100", "2500", "12500", "20000", str(2**90)))
        operator = ZERO_ADDRESS if draw() < 0.98 else "0x" + "0e" * 20
        suggested = choice(("", "200000", "200000", "50000", "1", str(2**96 - 1)))
        unit = choice(UNITS)
        hint = "" if draw() < 0.95 else "0x" + "cd" * 32
        snapshot = draw() < 0.08
        key = (price, payee, delta, operator, suggested, unit, hint)
        request = None if snapshot else self._requests.get(key)
        if request is None:
            request = self._request(*key, self.snapshot() if snapshot else None)
            if not snapshot:
                self._requests[key] = request
        life = 300 if draw() < 0.9 else choice((6, 20, 3_599, -5, 90_000))
        params = {
            "id": f"c{self.random.getrandbits(32):x}",
            "realm": "liar",
            "method": "tempo" if draw() < 0.99 else "barter",
            "intent": "session",
            "request": request,
        }
        if draw() < 0.97:
            params["expires"] = iso_time(self.chain.clock() + life)
        if draw() < 0.05:
            params["header"] = choice(("Payment-Authorization", "Authorization", "Cookie"))
        return format_challenge(params)

    def _plain(self, unit: str) -> str:
        key = (PRICE, self.payees[0], "", ZERO_ADDRESS, "200000", unit, "")
        request = self._requests.get(key)
        if request is None:
            request = self._requests[key] = self._request(*key, None)
        number = self.random.getrandbits(32)
        params = {
            "id": f"c{number:x}",
            "realm": "liar",
            "method": "tempo",
            "intent": "session",
            "request": request,
        }
        return format_challenge({**params, "expires": iso_time(self.chain.clock() + 300)})

    def _request(
        self,
        price: int,
        payee: str,
        delta: str,
        operator: str,
        suggested: str,
        unit: str,
        hint: str,
        snapshot: Mapping[str, Any] | None,
    ) -> str:
        details = {"chainId": self.chain.chain_id, "escrowContract": RESERVE, "sessionProtocol": "v2"}
        optional = {"minVoucherDelta": delta, "channelId": hint, "sessionSnapshot": snapshot}
        details |= {name: value for name, value in optional.items() if value}
        if operator != ZERO_ADDRESS:
            details["operator"] = operator
        request = {"amount": str(price), "currency": PATH_USD, "recipient": payee, "methodDetails": details}
        request |= {
            name: value for name, value in (("suggestedDeposit", suggested), ("unitType", unit)) if value
        }
        return b64url_encode(orjson.dumps(request))

    def amount(self, near: int) -> str:
        """Some amount, honest or not."""
        choice = self.random.choice
        found = choice((near, near, near, 0, near + PRICE, near - PRICE, 2 * near, 2**96 - 1, 2**128, -1))
        return str(found)

    def snapshot(self) -> dict[str, Any]:
        book = self.random.choice(list(self.books.values())) if self.books else None
        channel = book.channel if book is not None else "0x" + "cd" * 32
        near = book.highest if book is not None else PRICE
        told: dict[str, Any] = {
            "channelId": channel,
            "chainId": self.chain.chain_id,
            "escrow": RESERVE,
            "descriptor": dict(book.descriptor) if book is not None else {},
            "acceptedCumulative": self.amount(near),
            "requiredCumulative": self.amount(near),
            "deposit": self.amount(near),
            "settled": self.amount(near),
            "spent": self.amount(near),
        }
        if book is not None and book.signature and self.random.random() < 0.6:
            forged = self.random.random() < 0.5
            told["highestVoucher"] = {
                "channelId": channel,
                "cumulativeAmount": str(near + PRICE if forged else near),
                "signature": to_hex(book.signature),
            }
        return told

    def receipt(self, payload: Mapping[str, Any]) -> str:
        """For a payment: what it charged by its own word, or a lie."""
        draw = self.random.random
        book = self.books.get(payload.get("channelId", ""))
        offered = int(payload.get("cumulativeAmount", "0"))
        spent = str(offered)
        if book is not None:
            book.charged = min(book.charged + PRICE, offered) if draw() < 0.8 else offered
            spent = str(book.charged) if draw() < 0.75 else self.amount(book.charged)
        told: dict[str, Any] = {
            "method": "tempo",
            "intent": "session",
            "status": "success" if draw() < 0.98 else "failure",
            "timestamp": "2026-01-01T00:00:00Z",
            "reference": "r",
            "channelId": payload.get("channelId") if draw() < 0.97 else "0x" + "cd" * 32,
            "acceptedCumulative": str(offered) if draw() < 0.9 else self.amount(offered),
            "spent": spent if draw() < 0.97 else self.random.choice((1.5, -1, None, [spent], 10**18, "1e30")),
            "units": 1,
        }
        return b64url_encode(orjson.dumps(told)) if draw() < 0.98 else "???"

    def refusal(self, kind: str | None, status: int = 402) -> tuple[http.Response, bytes]:
        """An answer that asks for money."""
        draw = self.random.random
        fields: list[tuple[bytes, bytes]] = []
        if draw() < 0.95:
            fields.append((b"www-authenticate", self.challenge().encode()))
        if draw() < 0.03:
            fields.append((b"www-authenticate", self.challenge().encode()))
        if draw() < 0.02:
            fields.append((b"retry-after", self.random.choice((b"1", b"30", b"9" * 40, b"x"))))
        if draw() < 0.05:
            fields.append(
                (b"payment-session-snapshot", b64url_encode(orjson.dumps(self.snapshot())).encode())
            )
        if draw() < 0.02:
            fields.append((b"payment-receipt", self.receipt({}).encode()))
        body = b"pay"
        if kind is not None:
            fields.append(_PROBLEM)
            body = orjson.dumps(
                {"type": PROBLEM_BASE + kind, "title": "t", "requiredTopUp": self.amount(PRICE)}
            )
        return http.Response.make(status, body, fields), body

    def served(self, payload: Mapping[str, Any], *, stream: bool) -> http.Response:
        """An answer that is none to ask for money."""
        draw = self.random.random
        fields: list[tuple[bytes, bytes]] = []
        if payload and draw() < 0.9:
            fields.append((b"payment-receipt", self.receipt(payload).encode()))
        if stream:
            fields.append((b"content-type", b"text/event-stream"))
            return http.Response.make(200, b"", fields)
        return http.Response.make(self.random.choice(STATUSES), b"goods", fields)

    def need(self, channel: str) -> bytes:
        """An event that asks for a voucher: by some step, or greedily."""
        book = self.books.get(channel)
        have = book.highest if book is not None else 0
        choice = self.random.choice
        required = choice(
            (have + PRICE, have + PRICE, have + PRICE, have + 1, have, 0, have + 3 * PRICE, 2**90)
        )
        data = {
            "channelId": channel if self.random.random() < 0.95 else "0x" + "cd" * 32,
            "requiredCumulative": str(required),
            "acceptedCumulative": str(have),
            "deposit": self.amount(have),
        }
        return b"event: payment-need-voucher\ndata: " + orjson.dumps(data) + b"\n\n"

    def last_words(self, payload: Mapping[str, Any]) -> bytes:
        receipt = (
            base64.urlsafe_b64decode(self.receipt(payload) + "==") if self.random.random() < 0.9 else b"{}"
        )
        return b"event: payment-receipt\ndata: " + receipt + b"\n\n"
