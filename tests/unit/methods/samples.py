"""Values that the tests of methods, signer and chain share. The keys are anvil's well-known development keys."""

from __future__ import annotations

import base64
import json
from typing import Any

from proxy_addon.core.messages import Challenge
from proxy_addon.methods.contract import ChainHead
from proxy_addon.methods.tempo_session import v1_calls
from proxy_addon.methods.tempo_session.calls import channel_id
from store.lifecycle import ChannelStatus
from store.records import Channel, PaymentScope, PendingTransaction

KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
ADDRESS = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
OTHER_KEY = "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"
OTHER_ADDRESS = "0x70997970c51812dc3a010c7d01b50e0d17dc79c8"
PAYEE = "0x3c44cdddb6a900fa2b585dd299e03d12fa4293bc"
TOKEN = "0x20c0000000000000000000000000000000000000"
RESERVE = "0x4d50500000000000000000000000000000000000"
ZERO = "0x" + "00" * 20
SALT = bytes(range(32))
HEAD = ChainHead(number=7, timestamp=1_795_420_000, base_fee=20_000_000_000)


def scope(**changes: str) -> PaymentScope:
    fields = {
        "family": "tempo-session",
        "version": "v2",
        "chain": "eip155:42431",
        "escrow": RESERVE,
        "token": TOKEN,
        "payee": PAYEE,
        "payer": ADDRESS,
        "voucher_signer": ADDRESS,
        "discriminator": ZERO,
        "origin": "https://api.example.com:443",
    }
    return PaymentScope(**(fields | changes))


def descriptor(**changes: str) -> dict[str, str]:
    fields = {
        "payer": ADDRESS,
        "payee": PAYEE,
        "operator": ZERO,
        "token": TOKEN,
        "salt": "0x" + SALT.hex(),
        "authorizedSigner": ZERO,
        "expiringNonceHash": "0x" + "ab" * 32,
    }
    return fields | changes


V1_ESCROW = "0xe1c4d3dce17bc111181ddf716f75bae49e61a336"


def v1_scope(**changes: str) -> PaymentScope:
    return scope(**({"version": "v1", "escrow": V1_ESCROW, "discriminator": ""} | changes))


def v1_descriptor(**changes: str) -> dict[str, str]:
    fields = {
        "payer": ADDRESS,
        "payee": PAYEE,
        "token": TOKEN,
        "salt": "0x" + SALT.hex(),
        "authorizedSigner": ZERO,
    }
    return fields | changes


def channel(**changes: Any) -> Channel:
    fields: dict[str, Any] = {
        "channel_id": "0x" + "c1" * 32,
        "scope": scope(),
        "descriptor": descriptor(),
        "resource": "https://api.example.com/data",
        "status": ChannelStatus.OPEN,
        "authorised": 10_000,
        "deposit": 50_000,
    }
    return Channel(**(fields | changes))


def ours(**changes: Any) -> Channel:
    """A channel whose id is that of its descriptor."""
    fields: dict[str, Any] = {"scope": scope(), "descriptor": descriptor()} | changes
    own_id = channel_id(fields["descriptor"], escrow=RESERVE, chain_id=fields["scope"].chain_id)
    return channel(**({"channel_id": own_id} | fields))


def v1_ours(**changes: Any) -> Channel:
    """The same of session v1."""
    fields: dict[str, Any] = {"scope": v1_scope(), "descriptor": v1_descriptor()} | changes
    own_id = v1_calls.channel_id(fields["descriptor"], escrow=V1_ESCROW, chain_id=fields["scope"].chain_id)
    return channel(**({"channel_id": own_id} | fields))


def pending(**changes: Any) -> PendingTransaction:
    fields: dict[str, Any] = {
        "kind": "open",
        "raw": "0x76c0",
        "tx_hash": "0x" + "ee" * 32,
        "valid_before": 1_795_420_025,
        "deposit": 50_000,
    }
    return PendingTransaction(**(fields | changes))


def request(**changes: Any) -> dict[str, Any]:
    """A v2 request; a change to None takes the field away."""
    fields: dict[str, Any] = {
        "amount": "10000",
        "currency": TOKEN,
        "recipient": PAYEE,
        "suggestedDeposit": "50000",
        "unitType": "request",
        "methodDetails": details(),
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def details(**changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"chainId": 42431, "escrowContract": RESERVE, "sessionProtocol": "v2"}
    return {name: value for name, value in (fields | changes).items() if value is not None}


def challenge(content: object, *, method: str = "tempo", intent: str = "session") -> Challenge:
    raw = base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()
    return Challenge(id="id-1", realm="api.example.com", method=method, intent=intent, request=raw)
