"""A payer for tests of the demo's chain and API: the project's own method and signer, and HTTP by httpx."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass, replace
from typing import Any

import httpx
from coincurve import PrivateKey

from proxy_addon.core.messages import Challenge, Receipt, build_credential, parse_challenges, parse_receipt
from proxy_addon.demo.chain import SimulatedChain
from proxy_addon.methods.abi import keccak256, to_bytes, to_hex, uint_word
from proxy_addon.methods.contract import ChainHead
from proxy_addon.methods.tempo_session.calls import (
    REQUEST_CLOSE,
    TOP_UP,
    WITHDRAW,
    descriptor_words,
)
from proxy_addon.methods.tempo_session.v2 import RESERVE, TempoSessionV2
from proxy_addon.methods.tempo_tx import VALIDITY_S, Call, TempoTransaction, max_fee_for
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from store.records import Channel, PaymentScope, PendingTransaction

METHOD = TempoSessionV2()
KEY = bytes.fromhex("11" * 32)


class Wallet:
    """Signs whatever it is asked to: what the real signer would refuse, too."""

    def __init__(self, chain: SimulatedChain, key: bytes = KEY) -> None:
        self.chain = chain
        self.signer = Signer(key)
        self.address = self.signer.address
        self._key = PrivateKey(key)
        self._sent = itertools.count(400_000)

    def sign(self, digest: bytes) -> bytes:
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([signature[64] + 27])

    def scope(self, challenge: Challenge) -> PaymentScope:
        return METHOD.scope(
            METHOD.terms(challenge),
            payer=self.address,
            voucher_signer=self.address,
            origin="http://127.0.0.1:1",
        )

    def plan(self, challenge: Challenge, deposit: int) -> Channel:
        """A channel whose opening is signed and not sent."""
        scope = self.scope(challenge)
        block = self.chain.head()
        plan = METHOD.plan_open(
            scope,
            deposit=deposit,
            salt=secrets.token_bytes(32),
            head=ChainHead(block.number, block.timestamp, self.chain.base_fee),
            fee_payer=False,
            signer=self.signer.opening(scope, deposit=deposit),
        )
        return Channel(
            channel_id=plan.channel_id,
            scope=scope,
            descriptor=plan.descriptor,
            resource="",
            status=ChannelStatus.OPEN,
            deposit=deposit,
            pending=PendingTransaction("open", plan.transaction, plan.tx_hash, plan.valid_before, deposit),
        )

    def voucher(self, channel: Channel, amount: int) -> bytes:
        return self.sign(METHOD.voucher_digest(channel, amount))

    def open_payload(self, channel: Channel, amount: int) -> dict[str, Any]:
        return METHOD.open_payload(channel, amount, self.voucher(channel, amount))

    def voucher_payload(self, channel: Channel, amount: int) -> dict[str, Any]:
        return METHOD.voucher_payload(channel, amount, self.voucher(channel, amount))

    def close_payload(self, channel: Channel, amount: int) -> dict[str, Any]:
        return METHOD.close_payload(channel, amount, self.voucher(channel, amount))

    def top_up_payload(self, channel: Channel, amount: int) -> dict[str, Any]:
        data = TOP_UP + descriptor_words(channel.descriptor) + uint_word(amount)
        return {
            "action": "topUp",
            "type": "transaction",
            "channelId": channel.channel_id,
            "transaction": to_hex(self.transaction(data)),
            "descriptor": dict(channel.descriptor),
            "additionalDeposit": str(amount),
        }

    def request_close(self, channel: Channel) -> bytes:
        return self.transaction(REQUEST_CLOSE + descriptor_words(channel.descriptor))

    def withdraw(self, channel: Channel) -> bytes:
        return self.transaction(WITHDRAW + descriptor_words(channel.descriptor))

    def transaction(self, data: bytes, to: str = RESERVE, **changes: Any) -> bytes:
        """A signed transaction of one call."""
        plain = TempoTransaction(
            chain_id=self.chain.chain_id,
            gas_limit=next(self._sent),  # two of the same call are two transactions
            max_fee_per_gas=max_fee_for(self.chain.base_fee),
            calls=(Call(to_bytes(to), data),),
            valid_before=self.chain.head().timestamp + VALIDITY_S,
        )
        changed = replace(plain, **changes)
        return changed.encode_signed(self.sign(keccak256(changed.encode_for_signing())))

    def credential(self, challenge: Challenge, payload: dict[str, Any]) -> dict[str, str]:
        """The request field that carries it."""
        source = f"did:pkh:eip155:{self.chain.chain_id}:{self.address}"
        return {challenge.credential_header: build_credential(challenge, payload, source)}


@dataclass(frozen=True)
class Answer:
    status: int
    receipt: Receipt | None
    problem: str | None
    response: httpx.Response


def read(response: httpx.Response) -> Answer:
    value = response.headers.get("payment-receipt")
    kind = None
    if response.headers.get("content-type") == "application/problem+json" and response.content:
        problem = response.json()
        assert problem["status"] == response.status_code
        kind = problem["type"].removeprefix("https://paymentauth.org/problems/")
    return Answer(response.status_code, parse_receipt(value) if value else None, kind, response)


def challenge_of(response: httpx.Response) -> Challenge:
    parsed = parse_challenges(response.headers.get_list("www-authenticate"))
    assert not parsed.problems
    (challenge,) = parsed.challenges
    return challenge
