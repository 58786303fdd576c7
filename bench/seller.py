"""A payee that checks every voucher for real, and is not what a benchmark measures.

Openings, top-ups and closes go to the demo's `Payee` on a simulated chain. A voucher of a known channel takes a
shorter way through the same checks: a challenge made here and not expired, the channel's own descriptor, an amount
that does not fall and that the deposit covers, a signature that gives the payer's public key. Whatever is not plainly
right goes to the `Payee` as well, which says what is wrong.
"""

from __future__ import annotations

import time
from base64 import urlsafe_b64decode
from typing import Any, Final

import orjson
from coincurve import PublicKey

from proxy_addon.core.headers import format_challenge
from proxy_addon.core.messages import PROBLEM_BASE, Receipt, format_receipt
from proxy_addon.demo.chain import SimulatedChain
from proxy_addon.demo.challenges import iso_time
from proxy_addon.demo.payee import Account, Payee
from proxy_addon.demo.payload import PaymentProblem
from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_session.voucher import V2

PRICE: Final = 1  # base units
DEPOSIT: Final = 1_000_000_000
_EXPIRES_S: Final = 3000  # nobody pays for a challenge that is good for more than an hour
_PREFIX: Final = len("Payment ")

Fields = tuple[tuple[str, str], ...]


class Seller:
    """Sells requests at `PRICE` each. `vouchers` are all amounts that came, by channel: one signature each."""

    def __init__(self) -> None:
        self.chain = SimulatedChain()
        self.payee = Payee(self.chain, suggested_deposit=DEPOSIT, expires_s=_EXPIRES_S)
        self.chain.fund(self.payee.address, DEPOSIT)
        self.opened = 0
        self.vouchers: set[tuple[str, int]] = set()
        self._live: dict[
            str, tuple[dict[str, str], int]
        ] = {}  # challenges by id: as given, and until when (ms)
        self._keys: dict[str, bytes] = {}  # payers' public keys by channel
        self._sample: str | None = None  # the last credential that was taken

    # -- what it says

    def refuse(self, problem: PaymentProblem) -> tuple[int, Fields, bytes]:
        challenge = self.payee.challenges.make(PRICE)
        assert challenge.expires_at is not None
        self._live[challenge.id] = (challenge.echo(), challenge.expires_at)
        body = {
            "type": PROBLEM_BASE + problem.kind,
            "title": problem.title,
            "status": problem.status,
            "detail": str(problem),
            "challengeId": challenge.id,
        }
        fields = (
            ("WWW-Authenticate", format_challenge(challenge.echo())),
            ("Cache-Control", "no-store"),
            ("Content-Type", "application/problem+json"),
        )
        return problem.status, fields, orjson.dumps(body)

    def forget_challenges(self) -> None:
        """Every challenge given so far is refused from now on."""
        self._live.clear()
        self.payee.challenges.forget()

    # -- what it takes

    def take(self, credential: str, *, content: bool = True) -> str:
        """The receipt's field. Raises `PaymentProblem`; then nothing was charged."""
        return format_receipt(self.receipt(*self.accept(credential, content=content)))

    def accept(self, credential: str, *, content: bool) -> tuple[Account, str, str | None]:
        """Account, challenge and transaction of a credential; `content` is charged for. Raises `PaymentProblem`."""
        found = self._voucher(credential)
        if found is not None:
            account, challenge_id, amount, signature = found
            if amount >= account.accepted and (not content or amount - account.spent >= PRICE):
                account.accepted, account.signature = amount, signature
                self.vouchers.add((account.channel_id, amount))
                self._sample = credential
                if content:
                    account.spent += PRICE
                    account.units += 1
                return account, challenge_id, None
        taken = self.payee.take(credential, PRICE, content=content)
        receipt = taken.receipt
        assert receipt.channel_id is not None
        assert receipt.challenge_id is not None
        account = self.payee.accounts[receipt.channel_id]
        if taken.action == "open":
            self.opened += 1
        if taken.action in ("open", "voucher"):
            self.vouchers.add((account.channel_id, account.accepted))
        return account, receipt.challenge_id, receipt.tx_hash

    def check_a_sample(self) -> None:
        """The work that a voucher makes, for a request that brings none: what an unpaid comparison is to cost here."""
        if self._sample is None or self._voucher(self._sample) is None:
            raise LookupError("nothing was paid yet, so there is no credential to check")

    @staticmethod
    def receipt(account: Account, challenge_id: str, tx_hash: str | None = None) -> Receipt:
        return Receipt(
            method="tempo",
            intent="session",
            timestamp=iso_time(time.time()),
            reference=account.channel_id,
            challenge_id=challenge_id,
            channel_id=account.channel_id,
            accepted_cumulative=account.accepted,
            spent=account.spent,
            units=account.units,
            tx_hash=tx_hash,
        )

    def _voucher(self, credential: str) -> tuple[Account, str, int, bytes] | None:
        """Account, challenge, amount and signature of a voucher that is good by itself; None: the `Payee` decides."""
        try:
            text = credential[_PREFIX:]
            content: dict[str, Any] = orjson.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            challenge, payload = content["challenge"], content["payload"]
            if payload["action"] != "voucher":
                return None
            given, expires = self._live[challenge["id"]]
            account = self.payee.accounts[payload["channelId"]]
            amount = int(payload["cumulativeAmount"])
            signature = to_bytes(payload["signature"])
            good = (
                given == challenge
                and time.time() * 1000 < expires
                and payload["descriptor"] == account.descriptor
                and amount <= account.deposit
                and not account.finalized
                and self._signed(account, amount, signature)
            )
        except (KeyError, TypeError, ValueError):
            return None
        return (account, challenge["id"], amount, signature) if good else None

    def _signed(self, account: Account, amount: int, signature: bytes) -> bool:
        channel = account.channel_id
        digest = V2.digest(chain_id=self.chain.chain_id, escrow=RESERVE, channel_id=channel, amount=amount)
        known = self._keys.get(channel)
        if known is None:
            first = V2.digest(
                chain_id=self.chain.chain_id, escrow=RESERVE, channel_id=channel, amount=account.accepted
            )
            known = self._keys[channel] = _recover(first, account.signature)  # the Payee has checked that one
        return _recover(digest, signature) == known

    # -- what it knows

    def books(self) -> dict[str, Any]:
        """By payer: what was charged, for how many requests, on how many channels, over how many vouchers."""
        found: dict[str, dict[str, int]] = {}
        for account in self.payee.accounts.values():
            one = found.setdefault(
                account.descriptor["payer"], {"spent": 0, "units": 0, "channels": 0, "vouchers": 0}
            )
            one["spent"] += account.spent
            one["units"] += account.units
            one["channels"] += 1
        for channel, _ in self.vouchers:
            found[self.payee.accounts[channel].descriptor["payer"]]["vouchers"] += 1
        return found


def _recover(digest: bytes, signature: bytes) -> bytes:
    """The public key. Raises ``ValueError``."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise ValueError("no signature of a voucher")
    compact = signature[:64] + bytes([signature[64] - 27])
    try:
        return PublicKey.from_signature_and_message(compact, digest, hasher=None).format()
    except Exception as error:  # coincurve raises bare exceptions
        raise ValueError(str(error)) from error
