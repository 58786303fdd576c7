"""Top-ups and forced closes of ours on the dev chain, with and without the unmodified server."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from proxy_addon.chain import ChainClient, fee_of
from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.registry import resolve
from proxy_addon.methods.tempo_session.v2 import TempoSessionV2
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from tests.e2e.tempo import DEPOSIT, as_open, ask, credential, opened, opening, sign, v2_scope
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e

METHOD = TempoSessionV2()
GRACE_S = 15 * 60


@pytest.mark.parametrize("route", ["/req", "/reqfp"])
async def test_the_server_takes_our_top_up(
    net: Devnet, chain: ChainClient, http: httpx.AsyncClient, signer: Signer, route: str
) -> None:
    url = net.http + route
    challenge = await ask(http, url)
    method = resolve(challenge)
    terms = method.terms(challenge)
    scope = method.scope(terms, payer=signer.address, voucher_signer=signer.voucher_signer, origin=net.http)
    _, record = await opening(method, chain, signer, scope, fee_payer=terms.fee_payer)
    first = method.open_payload(record, terms.price, sign(method, signer, record, terms.price))
    answer = await http.get(url, headers=credential(challenge, record, first))
    assert answer.status_code == 200, answer.text
    record = as_open(record, authorised=terms.price)

    plan = method.plan_top_up(
        record,
        amount=30_000,
        head=await chain.head(),
        fee_payer=terms.fee_payer,
        signer=signer.topping_up(record, amount=30_000, sponsored=terms.fee_payer),
    )
    assert (plan.max_fee == 0) == terms.fee_payer
    before = await chain.balance(net.token, signer.address)
    payload = method.top_up_payload(record, amount=30_000, transaction=plan.transaction)
    answer = await http.post(url, headers=credential(challenge, record, payload))
    assert answer.status_code == 204, answer.text

    state = await method.read_channel(chain, record)
    assert state.deposit == DEPOSIT + 30_000
    assert net.channel(record.channel_id)["deposit"] == str(DEPOSIT + 30_000)
    fee = 0
    if not terms.fee_payer:
        receipt = await chain.receipt(plan.tx_hash)
        assert receipt is not None
        assert receipt.gas_used < METHOD.gas.top_up * 3 // 4
        fee = fee_of(receipt)
    assert fee <= plan.max_fee
    assert before - await chain.balance(net.token, signer.address) == 30_000 + fee

    # The voucher may now go over the first deposit.
    record = replace(record, deposit=state.deposit, authorised=state.deposit)
    more = method.voucher_payload(record, state.deposit, sign(method, signer, record, state.deposit))
    answer = await http.get(url, headers=credential(challenge, record, more))
    assert answer.status_code == 200, answer.text


async def test_two_top_ups_of_one_amount_are_two(net: Devnet, chain: ChainClient, signer: Signer) -> None:
    record = await opened(METHOD, net, chain, signer, v2_scope(net, signer))
    head = await chain.head()
    for times in (1, 2):
        plan = METHOD.plan_top_up(
            record,
            amount=7,
            head=head,
            fee_payer=False,
            signer=signer.topping_up(record, amount=7),
        )
        await chain.send_raw(plan.transaction)
        assert net.receipt(plan.tx_hash)["status"] == "0x1"
        assert (await METHOD.read_channel(chain, record)).deposit == DEPOSIT + times * 7
        record = replace(record, transactions=(*record.transactions, plan.tx_hash))


async def test_a_forced_close_brings_the_deposit_back_to_the_unit(
    net: Devnet, chain: ChainClient, signer: Signer
) -> None:
    started_with = await chain.balance(net.token, signer.address)
    record = await opened(METHOD, net, chain, signer, v2_scope(net, signer))
    opening_receipt = await chain.receipt(record.transactions[0])
    assert opening_receipt is not None
    fees = fee_of(opening_receipt)

    plan = METHOD.plan_request_close(record, await chain.head(), signer.requesting_close(record))
    await chain.send_raw(plan.transaction)
    requested = net.receipt(plan.tx_hash)
    assert int(requested["gasUsed"], 16) < METHOD.gas.request_close * 3 // 4
    receipt = await chain.receipt(plan.tx_hash)
    assert receipt is not None
    assert 0 < fee_of(receipt) <= plan.max_fee
    fees += fee_of(receipt)
    state = await METHOD.read_channel(chain, record)
    assert state.exists
    assert state.close_requested_at == state.block.timestamp

    # Too early: the reserve reverts it, and nothing comes back.
    record = replace(record, status=ChannelStatus.ASIDE, transactions=(*record.transactions, plan.tx_hash))
    early = METHOD.plan_withdraw(record, await chain.head(), signer.withdrawing(record))
    try:
        await chain.send_raw(early.transaction)
        assert net.receipt(early.tx_hash)["status"] == "0x0"
        receipt = await chain.receipt(early.tx_hash)
        assert receipt is not None
        fees += fee_of(receipt)
    except ChainUnavailable:
        pass  # a node may try it first, and not take it
    assert (await METHOD.read_channel(chain, record)).exists

    net.warp(GRACE_S + 60)
    record = replace(record, transactions=(*record.transactions, early.tx_hash))
    plan = METHOD.plan_withdraw(record, await chain.head(), signer.withdrawing(record))
    await chain.send_raw(plan.transaction)
    assert net.receipt(plan.tx_hash)["status"] == "0x1"
    receipt = await chain.receipt(plan.tx_hash)
    assert receipt is not None
    assert receipt.gas_used < METHOD.gas.withdraw * 3 // 4
    fees += fee_of(receipt)

    state = await METHOD.read_channel(chain, record)
    assert not state.exists
    closing = await METHOD.read_closing(chain, record, state.block)
    assert closing is not None
    assert (closing.captured, closing.refunded, closing.tx_hash) == (0, DEPOSIT, plan.tx_hash)
    assert await chain.balance(net.token, signer.address) == started_with - fees


async def test_a_forced_close_leaves_the_payee_what_it_has_settled(
    net: Devnet, chain: ChainClient, http: httpx.AsyncClient, signer: Signer
) -> None:
    url = net.http + "/req"
    challenge = await ask(http, url)
    scope = v2_scope(net, signer)
    _, record = await opening(METHOD, chain, signer, scope)
    payload = METHOD.open_payload(record, 10_000, sign(METHOD, signer, record, 10_000))
    answer = await http.get(url, headers=credential(challenge, record, payload))
    assert answer.status_code == 200, answer.text
    net.admin("settle", channelId=record.channel_id)
    record = as_open(record, authorised=10_000)
    assert (await METHOD.read_channel(chain, record)).settled == 10_000

    for step in ("request", "withdraw"):
        if step == "request":
            plan = METHOD.plan_request_close(record, await chain.head(), signer.requesting_close(record))
        else:
            net.warp(GRACE_S + 60)
            plan = METHOD.plan_withdraw(record, await chain.head(), signer.withdrawing(record))
        await chain.send_raw(plan.transaction)
        assert net.receipt(plan.tx_hash)["status"] == "0x1"
    state = await METHOD.read_channel(chain, record)
    closing = await METHOD.read_closing(chain, record, state.block)
    assert closing is not None
    assert (closing.captured, closing.refunded) == (10_000, DEPOSIT - 10_000)
