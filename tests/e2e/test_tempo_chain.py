"""Openings, vouchers and closes of ours against the dev chain and the unmodified server."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import httpx
import pytest

from proxy_addon.chain import ChainClient, RpcRefused, fee_of
from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import bytes32_word, selector, to_bytes, to_hex, uint_word
from proxy_addon.methods.registry import resolve
from proxy_addon.methods.tempo_session.calls import descriptor_words
from proxy_addon.methods.tempo_session.v2 import TempoSessionV2
from proxy_addon.methods.tempo_tx import decode
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from tests.e2e.tempo import DEPOSIT, as_open, ask, credential, opening, sign, v2_scope
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

METHOD = TempoSessionV2()


async def test_a_channel_that_we_open_ourselves(net: Devnet, chain: ChainClient, signer: Signer) -> None:
    scope = v2_scope(net, signer)
    plan, record = await opening(METHOD, chain, signer, scope)
    assert not (await METHOD.read_channel(chain, record)).exists
    assert await chain.receipt(plan.tx_hash) is None
    before = await chain.balance(net.token, signer.address)

    assert await chain.send_raw(plan.transaction) == plan.tx_hash
    net.receipt(plan.tx_hash)

    state = await METHOD.read_channel(chain, record)
    assert (state.exists, state.deposit, state.settled, state.close_requested_at) == (True, DEPOSIT, 0, None)
    receipt = await chain.receipt(plan.tx_hash)
    assert receipt is not None
    assert receipt.succeeded
    assert receipt.gas_used < METHOD.gas.open * 3 // 4
    assert receipt.fee_payer == signer.address
    after = await chain.balance(net.token, signer.address)
    assert before - after == DEPOSIT + fee_of(receipt)
    assert 0 < fee_of(receipt) <= plan.max_fee
    logs = await chain.logs(
        net.escrow, [None, plan.channel_id], from_block=receipt.block_number, to_block=receipt.block_number
    )
    assert [log.tx_hash for log in logs] == [plan.tx_hash]

    with contextlib.suppress(RpcRefused):  # a node may or may not say that it is known
        assert await chain.send_raw(plan.transaction) == plan.tx_hash
    assert await chain.balance(net.token, signer.address) == after


async def test_the_contract_computes_the_same_id_and_digest(
    net: Devnet, chain: ChainClient, signer: Signer
) -> None:
    plan, record = await opening(METHOD, chain, signer, v2_scope(net, signer))
    types = "address,address,address,address,bytes32,address,bytes32"
    computed = await chain.call(
        net.escrow, selector(f"computeChannelId({types})") + descriptor_words(plan.descriptor)
    )
    assert to_hex(computed) == plan.channel_id
    digest = await chain.call(
        net.escrow,
        selector("getVoucherDigest(bytes32,uint96)") + bytes32_word(plan.channel_id) + uint_word(7),
    )
    assert digest == METHOD.voucher_digest(record, 7)


@pytest.mark.parametrize("route", ["/req", "/reqfp"])
async def test_the_server_takes_our_open_voucher_and_close(
    net: Devnet, chain: ChainClient, http: httpx.AsyncClient, signer: Signer, route: str
) -> None:
    url = net.http + route
    challenge = await ask(http, url)
    method = resolve(challenge)
    terms = method.terms(challenge)
    assert terms.fee_payer == (route == "/reqfp")
    scope = method.scope(terms, payer=signer.address, voucher_signer=signer.voucher_signer, origin=net.http)
    assert scope == v2_scope(net, signer)
    plan, record = await opening(METHOD, chain, signer, scope, fee_payer=terms.fee_payer)
    before = await chain.balance(net.token, signer.address)

    first = method.open_payload(record, terms.price, sign(method, signer, record, terms.price))
    answer = await http.get(url, headers=credential(challenge, record, first))
    assert answer.status_code == 200, answer.text
    state = await method.read_channel(chain, record)
    assert (state.exists, state.deposit) == (True, DEPOSIT)
    assert net.channel(plan.channel_id)["channelId"] == plan.channel_id
    if terms.fee_payer:
        assert await chain.receipt(plan.tx_hash) is None  # the sponsor's signature makes it another hash
        assert before - await chain.balance(net.token, signer.address) == DEPOSIT

    record = as_open(record, authorised=2 * terms.price)
    second = method.voucher_payload(record, 2 * terms.price, sign(method, signer, record, 2 * terms.price))
    answer = await http.get(url, headers=credential(challenge, record, second))
    assert answer.status_code == 200, answer.text

    record = replace(record, status=ChannelStatus.CLOSING, close_amount=2 * terms.price)
    last = method.close_payload(record, 2 * terms.price, sign(method, signer, record, 2 * terms.price))
    answer = await http.post(url, headers=credential(challenge, record, last))
    assert answer.status_code == 204, answer.text
    state = await method.read_channel(chain, record)
    assert not state.exists
    closing = await method.read_closing(chain, record, state.block)
    assert closing is not None
    assert (closing.captured, closing.refunded) == (2 * terms.price, DEPOSIT - 2 * terms.price)
    receipt = await chain.receipt(closing.tx_hash)
    assert receipt is not None
    assert receipt.succeeded


async def test_an_opening_that_is_too_late_never_lands(
    net: Devnet, chain: ChainClient, signer: Signer
) -> None:
    plan, record = await opening(METHOD, chain, signer, v2_scope(net, signer))
    net.warp(60)
    head = await chain.head()
    assert head.timestamp > plan.valid_before
    with pytest.raises(ChainUnavailable):
        await chain.send_raw(plan.transaction)
    state = await METHOD.read_channel(chain, record)
    assert not state.exists
    assert state.block.timestamp > plan.valid_before

    fresh, record = await opening(
        METHOD, chain, signer, v2_scope(net, signer)
    )  # follows the chain's clock, not ours
    await chain.send_raw(fresh.transaction)
    net.receipt(fresh.tx_hash)
    assert (await METHOD.read_channel(chain, record)).exists


async def test_what_a_sponsor_is_handed_names_its_sender(
    net: Devnet, chain: ChainClient, signer: Signer
) -> None:
    plan, _ = await opening(METHOD, chain, signer, v2_scope(net, signer), fee_payer=True)
    signed = decode(to_bytes(plan.transaction))
    assert signed.transaction.sponsored
    assert "0x" + signed.sender.hex() == signer.address


@pytest.mark.parametrize("mode", ["error", "http", "drop"])
async def test_a_failing_endpoint_is_only_unavailable(net: Devnet, chain: ChainClient, mode: str) -> None:
    await chain.chain_id()
    net.fault("eth_getBlockByNumber", mode, n=1, path="/proxy")
    with pytest.raises(ChainUnavailable, match=r"127\.0\.0\.1"):
        await chain.head()
    assert (await chain.head()).number > 0
