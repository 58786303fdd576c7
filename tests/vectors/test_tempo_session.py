"""What we make of the committed vectors, which others wrote (see generate_tempo.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.contract import ChainHead, Method
from proxy_addon.methods.tempo_session.calls import parse_open
from proxy_addon.methods.tempo_session.v1 import TempoSessionV1
from proxy_addon.methods.tempo_session.v2 import TempoSessionV2
from proxy_addon.methods.tempo_session.voucher import V1, V2
from proxy_addon.methods.tempo_tx import decode, decode_for_signing, recover
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from tests.unit.methods.samples import OTHER_KEY, channel, scope, v1_scope

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("tempo_session.json").read_text())
METHOD = TempoSessionV2()
METHODS: dict[str, Method] = {"v1": TempoSessionV1(), "v2": METHOD}
HEAD = ChainHead(
    number=1,
    timestamp=VECTORS["valid_before"] - 25,
    base_fee=(VECTORS["max_fee_per_gas"] - VECTORS["max_priority_fee_per_gas"]) // 2,
)


@pytest.fixture
def signer() -> Signer:
    return Signer.from_hex(VECTORS["key"])


@pytest.mark.parametrize("vector", VECTORS["openings"], ids=lambda vector: vector["channel_id"][:10])
def test_an_opening_is_byte_for_byte_what_others_make(vector: dict[str, Any], signer: Signer) -> None:
    our_scope = scope(chain=f"eip155:{vector['chain_id']}", discriminator=vector["operator"])
    plan = METHOD.plan_open(
        our_scope,
        deposit=vector["deposit"],
        salt=to_bytes(VECTORS["salt"]),
        head=HEAD,
        fee_payer=vector["sponsored"],
        signer=signer.opening(our_scope, deposit=vector["deposit"], sponsored=vector["sponsored"]),
    )
    assert plan.transaction == vector["transaction"]
    assert plan.tx_hash == vector["transaction_hash"]
    assert plan.descriptor == vector["descriptor"]
    assert plan.channel_id == vector["channel_id"]
    assert plan.valid_before == VECTORS["valid_before"]


@pytest.mark.parametrize("vector", VECTORS["openings"], ids=lambda vector: vector["channel_id"][:10])
def test_an_opening_made_by_others_is_read(vector: dict[str, Any]) -> None:
    signed = decode(to_bytes(vector["transaction"]))
    assert to_hex(signed.sender) == VECTORS["payer"]
    assert to_hex(signed.expiring_nonce_hash) == vector["descriptor"]["expiringNonceHash"]
    assert to_hex(signed.transaction.encode_for_signing()) == vector["signing_payload"]
    assert decode_for_signing(to_bytes(vector["signing_payload"])) == signed.transaction
    call = parse_open(signed.transaction.calls[0].data)
    assert to_hex(call.encode()) == vector["call"]
    assert (call.deposit, call.operator) == (vector["deposit"], vector["operator"])


@pytest.mark.parametrize("vector", VECTORS["v1_openings"], ids=lambda vector: vector["channel_id"][:10])
def test_an_opening_of_v1_is_byte_for_byte_what_others_make(vector: dict[str, Any]) -> None:
    signer = Signer.from_hex(VECTORS["key"])
    our_scope = v1_scope(chain=f"eip155:{vector['chain_id']}", voucher_signer=vector["voucher_signer"])
    if vector["voucher_signer"] != signer.address:
        signer = Signer(to_bytes(VECTORS["key"]), to_bytes(OTHER_KEY))
    plan = METHODS["v1"].plan_open(
        our_scope,
        deposit=vector["deposit"],
        salt=to_bytes(VECTORS["salt"]),
        head=HEAD,
        fee_payer=False,
        signer=signer.opening(our_scope, deposit=vector["deposit"]),
    )
    assert plan.transaction == vector["transaction"]
    assert plan.tx_hash == vector["transaction_hash"]
    assert plan.descriptor == vector["descriptor"]
    assert plan.channel_id == vector["channel_id"]


@pytest.mark.parametrize(
    "vector",
    VECTORS["on_channels"],
    ids=lambda vector: f"{vector['version']}-{vector['action']}-{vector['sponsored']}",
)
def test_a_transaction_on_a_channel_is_byte_for_byte_what_others_make(
    vector: dict[str, Any], signer: Signer
) -> None:
    method = METHODS[vector["version"]]
    record = channel(
        channel_id=vector["channel_id"],
        scope=(scope if vector["version"] == "v2" else v1_scope)(chain=f"eip155:{vector['chain_id']}"),
        descriptor=vector["descriptor"],
    )
    match vector["action"]:
        case "topUp":
            plan = method.plan_top_up(
                record,
                amount=vector["amount"],
                head=HEAD,
                fee_payer=vector["sponsored"],
                signer=signer.topping_up(record, amount=vector["amount"], sponsored=vector["sponsored"]),
            )
        case "requestClose":
            plan = method.plan_request_close(record, HEAD, signer.requesting_close(record))
        case _:
            plan = method.plan_withdraw(record, HEAD, signer.withdrawing(record))
    assert plan.transaction == vector["transaction"]
    assert plan.tx_hash == vector["transaction_hash"]


@pytest.mark.parametrize(
    "vector", VECTORS["vouchers"], ids=lambda vector: f"{vector['version']}-{vector['cumulativeAmount']}"
)
def test_a_voucher_is_byte_for_byte_what_others_make(vector: dict[str, Any], signer: Signer) -> None:
    codec = {"v1": V1, "v2": V2}[vector["version"]]
    amount = int(vector["cumulativeAmount"])
    digest = codec.digest(
        chain_id=vector["chainId"], escrow=vector["escrow"], channel_id=vector["channelId"], amount=amount
    )
    assert to_hex(digest) == vector["digest"]
    record = channel(
        channel_id=vector["channelId"],
        scope=scope(version=vector["version"], chain=f"eip155:{vector['chainId']}", escrow=vector["escrow"]),
        status=ChannelStatus.OPEN,
        authorised=amount,
        deposit=amount,
    )
    signature = signer.sign_voucher(digest, record, amount)
    assert to_hex(signature) == vector["signature"]
    assert to_hex(recover(digest, signature)) == VECTORS["payer"]


@pytest.mark.e2e
def test_the_vectors_are_what_the_installed_peers_say() -> None:
    from tests.vectors.generate_tempo import generate

    assert generate() == VECTORS
