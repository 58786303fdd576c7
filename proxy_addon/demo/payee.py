"""The payee's side of a tempo/session v2: challenges, credentials, and an account for each channel.

The checks, their order and the problems they end in are those of the server that people run (mppx 0.11): the same
voucher again is fine, a lower one is not, a challenge is good until it expires. All of it runs without a pause, so
that an account never sees half a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from coincurve import PrivateKey

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import Challenge, Credential, Receipt, parse_credential
from proxy_addon.demo import reserve
from proxy_addon.demo.chain import PATH_USD, Mined, SimulatedChain, TransactionRefused
from proxy_addon.demo.challenges import Challenges, iso_time
from proxy_addon.demo.payload import Payload, PaymentProblem
from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.tempo_session.calls import ReserveState, channel_id, parse_descriptor, parse_open
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_session.voucher import V2
from proxy_addon.methods.tempo_tx import (
    VALIDITY_S,
    Call,
    SignedTransaction,
    TempoTransaction,
    address_of,
    max_fee_for,
)

Action = Literal["open", "voucher", "topUp", "close"]

_CLOSE_GAS: Final = 300_000


@dataclass(slots=True)
class Account:
    """What the payee knows of one channel. Amounts are base units."""

    channel_id: str
    descriptor: Mapping[str, str]
    opened_by: str  # hash of the opening transaction
    deposit: int
    settled: int
    accepted: int  # highest voucher
    signature: bytes  # of that voucher
    spent: int = 0
    units: int = 0
    finalized: bool = False
    captured: int = 0
    refunded: int = 0
    closed_by: str = ""  # hash of the closing transaction

    @property
    def available(self) -> int:
        return self.accepted - self.spent


@dataclass(frozen=True, slots=True)
class Taken:
    """A credential that was accepted: what it did, and whether content is to be served for it."""

    action: Action
    receipt: Receipt
    charged: int
    serve: bool


class Payee:
    """Sells units at a price each, and is paid over channels of the simulated chain's reserve.

    `key` signs its own transactions; without one it has a random wallet. `terms` are those of `Challenges`.
    Nothing survives the process.
    """

    def __init__(
        self,
        chain: SimulatedChain,
        *,
        key: bytes | None = None,
        token: str = PATH_USD,
        clock: Callable[[], float] = time.time,
        **terms: Any,
    ) -> None:
        self._key = PrivateKey(key)
        self._clock = clock
        self.address = to_hex(address_of(self._key.public_key))
        self.chain = chain
        self.token = token
        self.challenges = Challenges(
            clock=clock, chain_id=chain.chain_id, payee=self.address, token=token, **terms
        )
        self.accounts: dict[str, Account] = {}

    def take(self, authorization: str, price: int, *, content: bool) -> Taken:
        """Checks a credential, moves the account, and charges `price` if `content` is asked for.

        Raises `PaymentProblem`; then nothing was charged, though a voucher or an opening may have been taken.
        """
        try:
            credential = parse_credential(authorization)
        except RemoteProtocolError as error:
            raise PaymentProblem("malformed-credential", str(error)) from error
        self.challenges.check(credential.challenge, price)
        action, payload = credential.payload.get("action"), Payload(credential.payload)
        match action:
            case "open":
                account = self._open(payload, price)
                tx_hash = account.opened_by
            case "voucher":
                account, tx_hash = self._voucher(payload, credential), ""
            case "topUp":
                account, tx_hash = self._top_up(payload)
                content = False
            case "close":
                account = self._close(payload)
                tx_hash = account.closed_by
                content = False
            case _:
                raise PaymentProblem("invalid-payload", f"{ascii(action)[:40]} is no action of a session")
        if content:
            _charge(account, price)
        receipt = self._receipt(credential.challenge, account, tx_hash)
        return Taken(action, receipt, price if content else 0, content)

    def _open(self, payload: Payload, price: int) -> Account:
        descriptor = self._descriptor(payload)
        amount = payload.amount("cumulativeAmount")
        signer = payload.fields.get("authorizedSigner")
        if signer is not None and str(signer).lower() != descriptor["authorizedSigner"]:
            raise PaymentProblem("verification-failed", "authorizedSigner differs from the descriptor's")
        signed = payload.transaction()
        deposit = self._check_opening(signed, descriptor)
        if deposit < price or amount < price:
            raise PaymentProblem("verification-failed", f"deposit and voucher must cover the price, {price}")
        if amount > deposit:
            raise PaymentProblem("session/amount-exceeds-deposit", f"{amount} is over the deposit, {deposit}")
        signature = self._check_signature(payload, descriptor, amount)
        mined = self._broadcast(payload.text("transaction"))
        state = self._active_state(payload.channel_id)
        account = self.accounts[payload.channel_id] = Account(
            channel_id=payload.channel_id,
            descriptor=descriptor,
            opened_by=mined.hash,
            deposit=state.deposit,
            settled=state.settled,
            accepted=amount,
            signature=signature,
        )
        return account

    def _check_opening(self, signed: SignedTransaction, descriptor: Mapping[str, str]) -> int:
        """The deposit. The transaction must open exactly the channel of this descriptor, paid by its payer."""
        calls = signed.transaction.calls
        if len(calls) != 1 or to_hex(calls[0].to) != RESERVE:
            raise PaymentProblem("verification-failed", "the transaction is not one call of the reserve")
        try:
            call = parse_open(calls[0].data)
        except ValueError as error:
            raise PaymentProblem("verification-failed", str(error)) from error
        opened = {
            "payer": to_hex(signed.sender),
            "payee": call.payee,
            "operator": call.operator,
            "token": call.token,
            "salt": call.salt,
            "authorizedSigner": call.authorized_signer,
            "expiringNonceHash": to_hex(signed.expiring_nonce_hash),
        }
        for name, value in opened.items():
            if descriptor[name] != value:
                raise PaymentProblem(
                    "verification-failed", f"the transaction's {name} is not the descriptor's"
                )
        return call.deposit

    def _voucher(self, payload: Payload, credential: Credential) -> Account:
        account = self._account(payload)
        _check_source(credential.source, self.chain.chain_id, account.descriptor)
        if account.finalized:
            raise PaymentProblem("session/channel-finalized", "this channel is closed")
        amount = payload.amount("cumulativeAmount")
        state = self._active_state(payload.channel_id)
        if amount > state.deposit:
            raise PaymentProblem(
                "session/amount-exceeds-deposit", f"{amount} is over the deposit, {state.deposit}"
            )
        if amount < account.accepted:
            raise PaymentProblem(
                "verification-failed", f"a voucher of {account.accepted} was accepted before"
            )
        signature = self._check_signature(payload, account.descriptor, amount)
        if amount <= state.settled:
            raise PaymentProblem("verification-failed", f"{state.settled} were settled already")
        if 0 < amount - account.accepted < self.challenges.min_voucher_delta:
            raise PaymentProblem(
                "session/delta-too-small",
                f"a voucher adds at least {self.challenges.min_voucher_delta}, this one {amount - account.accepted}",
            )
        account.deposit, account.settled = state.deposit, state.settled
        account.accepted, account.signature = amount, signature
        return account

    def _top_up(self, payload: Payload) -> tuple[Account, str]:
        account = self._account(payload)
        amount = payload.amount("additionalDeposit")
        calls = payload.transaction().transaction.calls
        try:
            topped_up = reserve.parse_top_up(calls[0].data)
        except ValueError as error:
            raise PaymentProblem("verification-failed", str(error)) from error
        if len(calls) != 1 or to_hex(calls[0].to) != RESERVE or topped_up != (account.descriptor, amount):
            raise PaymentProblem("verification-failed", "the transaction is not this top-up")
        self._active_state(payload.channel_id)
        mined = self._broadcast(payload.text("transaction"))
        account.deposit = self._active_state(payload.channel_id).deposit
        return account, mined.hash

    def _close(self, payload: Payload) -> Account:
        account = self._account(payload)
        if account.finalized:
            raise PaymentProblem("session/channel-finalized", "this channel is closed")
        amount = payload.amount("cumulativeAmount")
        state = self._active_state(payload.channel_id)
        capture = max(account.spent, state.settled)
        if amount < capture:
            raise PaymentProblem("verification-failed", f"the closing voucher must reach {capture}")
        signature = self._check_signature(payload, account.descriptor, amount)
        if capture > state.deposit:
            raise PaymentProblem("session/amount-exceeds-deposit", f"{capture} is over {state.deposit}")
        mined = self._transact(reserve.encode_close(account.descriptor, amount, capture, signature))
        account.finalized, account.closed_by = True, mined.hash
        account.captured, account.refunded = capture, state.deposit - capture
        account.accepted = max(account.accepted, amount)
        return account

    def settle(self, channel: str) -> Mined:
        """Takes what the highest voucher allows; the channel stays open. Raises `PaymentProblem`."""
        account = self.accounts[channel]
        data = reserve.encode_settle(account.descriptor, account.accepted, account.signature)
        mined = self._transact(data)
        account.settled = account.accepted
        return mined

    # --- Parts ---------------------------------------------------------------------------------------

    def _account(self, payload: Payload) -> Account:
        account = self.accounts.get(payload.channel_id)
        if account is not None and payload.fields.get("descriptor") == account.descriptor:
            return account  # of this id by its opening
        self._descriptor(payload)
        if account is None:
            raise PaymentProblem("session/channel-not-found", "no such channel here")
        return account

    def _descriptor(self, payload: Payload) -> dict[str, str]:
        """The payload's descriptor, after checking that it is of this id, this payee and this token."""
        found = payload.fields.get("descriptor")
        try:
            descriptor = parse_descriptor(found if isinstance(found, Mapping) else {})
        except ValueError as error:
            raise PaymentProblem("verification-failed", str(error)) from error
        if channel_id(descriptor, escrow=RESERVE, chain_id=self.chain.chain_id) != payload.channel_id:
            raise PaymentProblem("verification-failed", "the descriptor is not that of channelId")
        expected = {"payee": self.address, "token": self.token, "operator": "0x" + "00" * 20}
        for name, value in expected.items():
            if descriptor[name] != value:
                raise PaymentProblem("verification-failed", f"descriptor.{name} is not {value}")
        return descriptor

    def _active_state(self, channel: str) -> ReserveState:
        state = self.chain.channel(channel)
        if state.deposit == 0:
            raise PaymentProblem("session/channel-not-found", "no such channel on the chain")
        if state.close_requested_at:
            raise PaymentProblem("session/channel-finalized", "the payer has asked for this channel's close")
        return state

    def _check_signature(self, payload: Payload, descriptor: Mapping[str, str], amount: int) -> bytes:
        signature = payload.data("signature")
        digest = V2.digest(
            chain_id=self.chain.chain_id, escrow=RESERVE, channel_id=payload.channel_id, amount=amount
        )
        if not reserve.signed_by(reserve.voucher_signer(descriptor), digest, signature):
            raise PaymentProblem("session/invalid-signature", "the voucher is not signed by the payer")
        return signature

    def _broadcast(self, raw: str) -> Mined:
        try:
            tx_hash = self.chain.send(to_bytes(raw))
        except TransactionRefused as error:
            raise PaymentProblem("internal-payment-error", f"the chain refused it: {error}") from error
        mined = self.chain.transactions.get(tx_hash)
        if mined is None:
            raise PaymentProblem("internal-payment-error", "the transaction is not in a block yet")
        if not mined.succeeded:
            raise PaymentProblem("internal-payment-error", f"the transaction failed: {mined.reason}")
        return mined

    def _transact(self, data: bytes) -> Mined:
        head = self.chain.head()
        transaction = TempoTransaction(
            chain_id=self.chain.chain_id,
            gas_limit=_CLOSE_GAS,
            max_fee_per_gas=max_fee_for(self.chain.base_fee),
            calls=(Call(to_bytes(RESERVE), data),),
            valid_before=head.timestamp + VALIDITY_S,
            fee_token=to_bytes(self.token),
        )
        signature = self._key.sign_recoverable(transaction.signing_hash(), hasher=None)
        raw = transaction.encode_signed(signature[:64] + bytes([27 + signature[64]]))
        return self._broadcast(to_hex(raw))

    def _receipt(self, challenge: Challenge, account: Account, tx_hash: str) -> Receipt:
        return Receipt(
            method="tempo",
            intent="session",
            timestamp=iso_time(self._clock()),
            reference=account.channel_id,
            challenge_id=challenge.id,
            channel_id=account.channel_id,
            accepted_cumulative=account.accepted,
            spent=account.spent,
            units=account.units,
            tx_hash=tx_hash or None,
        )


def _check_source(source: str | None, chain_id: int, descriptor: Mapping[str, str]) -> None:
    signers = (descriptor["payer"], reserve.voucher_signer(descriptor))
    if (source or "").lower() not in {f"did:pkh:eip155:{chain_id}:{address}" for address in signers}:
        raise PaymentProblem("verification-failed", "the credential's source is not the channel's payer")


def _charge(account: Account, price: int) -> None:
    if account.available < price:
        raise PaymentProblem(
            "session/insufficient-balance", f"the price is {price}, available are {account.available}"
        )
    account.spent += price
    account.units += 1
