"""What tests of our transactions and vouchers against the dev chain and the servers have in common."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import replace
from typing import Any

import httpx

from proxy_addon.chain import ChainClient
from proxy_addon.core.messages import Challenge, parse_challenges
from proxy_addon.methods.contract import Method, OpenPlan
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from store.records import Channel, PaymentScope, PendingTransaction
from tests.peers.devnet import Devnet
from tests.unit.methods.samples import ZERO

DEPOSIT = 50_000


def v2_scope(net: Devnet, signer: Signer) -> PaymentScope:
    return PaymentScope(
        family="tempo-session",
        version="v2",
        chain=f"eip155:{net.chain_id}",
        escrow=net.escrow,
        token=net.token,
        payee=net.payee.address.lower(),
        payer=signer.address,
        voucher_signer=signer.voucher_signer,
        discriminator=ZERO,
        origin=net.http,
    )


async def opening(
    method: Method, chain: ChainClient, signer: Signer, scope: PaymentScope, *, fee_payer: bool = False
) -> tuple[OpenPlan, Channel]:
    """A planned opening, and the record that would be durable before it leaves."""
    plan = method.plan_open(
        scope,
        deposit=DEPOSIT,
        salt=secrets.token_bytes(32),
        head=await chain.head(),
        fee_payer=fee_payer,
        signer=signer.opening(scope, deposit=DEPOSIT, sponsored=fee_payer),
    )
    pending = PendingTransaction(
        kind="open",
        raw=plan.transaction,
        tx_hash=plan.tx_hash,
        valid_before=plan.valid_before,
        deposit=DEPOSIT,
        fee_sponsored=fee_payer,
    )
    record = Channel(
        channel_id=plan.channel_id,
        scope=scope,
        descriptor=plan.descriptor,
        resource=f"{scope.origin}/req",
        status=ChannelStatus.SENT,
        authorised=10_000,
        pending=pending,
        transactions=(plan.tx_hash,),
    )
    return plan, record


async def opened(
    method: Method, net: Devnet, chain: ChainClient, signer: Signer, scope: PaymentScope
) -> Channel:
    """An open channel, without any server's help."""
    plan, record = await opening(method, chain, signer, scope)
    await chain.send_raw(plan.transaction)
    net.receipt(plan.tx_hash)
    return as_open(record, authorised=0)


def as_open(record: Channel, *, authorised: int) -> Channel:
    """The record once the chain says that the opening landed."""
    return replace(record, status=ChannelStatus.OPEN, pending=None, deposit=DEPOSIT, authorised=authorised)


def sign(method: Method, signer: Signer, record: Channel, amount: int) -> bytes:
    return signer.sign_voucher(method.voucher_digest(record, amount), record, amount)


def credential(challenge: Challenge, record: Channel, payload: dict[str, Any]) -> dict[str, str]:
    content = {
        "challenge": challenge.echo(),
        "payload": payload,
        "source": f"did:pkh:{record.scope.chain}:{record.scope.payer}",
    }
    token = base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")
    return {"authorization": f"Payment {token}"}


async def ask(http: httpx.AsyncClient, url: str) -> Challenge:
    answer = await http.get(url)
    assert answer.status_code == 402
    parsed = parse_challenges(answer.headers.get_list("www-authenticate"))
    assert not parsed.problems
    return parsed.challenges[0]
