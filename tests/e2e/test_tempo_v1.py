"""Session v1 of ours (contract escrow) against the dev chain and the unmodified mppx 0.7 server."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from proxy_addon.chain import ChainClient, fee_of
from proxy_addon.core.messages import Challenge
from proxy_addon.methods.abi import ZERO_ADDRESS, bytes32_word, selector, to_bytes, to_hex, uint_word
from proxy_addon.methods.contract import Method
from proxy_addon.methods.registry import resolve
from proxy_addon.methods.tempo_session.v1 import ESCROWS, TempoSessionV1
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from store.records import Channel, PaymentScope
from tests.e2e.tempo import DEPOSIT, as_open, ask, credential, opened, opening, sign
from tests.peers.devnet import Devnet, Seller

pytestmark = pytest.mark.e2e

METHOD = TempoSessionV1()
GRACE_S = 15 * 60


@pytest.fixture(scope="module")
def seller(net: Devnet) -> Seller:
    return net.start_server({"protocol": "v1"}, "server-v1")


def v1_scope(net: Devnet, seller: Seller, signer: Signer) -> PaymentScope:
    return PaymentScope(
        family="tempo-session",
        version="v1",
        chain=f"eip155:{net.chain_id}",
        escrow=net.v1_escrow,
        token=net.token,
        payee=seller.payee.lower(),
        payer=signer.address,
        voucher_signer=signer.voucher_signer,
        discriminator="",
        origin=seller.http,
    )


async def paid_opening(
    net: Devnet,
    seller: Seller,
    chain: ChainClient,
    http: httpx.AsyncClient,
    signer: Signer,
    url: str,
) -> tuple[Challenge, Method, Channel, int]:
    """An opening that rode on a request which was served; the channel allows ten requests."""
    challenge = await ask(http, url)
    method = resolve(challenge)
    terms = method.terms(challenge)
    assert method.escrows[terms.chain] == terms.escrow
    scope = method.scope(
        terms, payer=signer.address, voucher_signer=signer.voucher_signer, origin=seller.http
    )
    assert scope == v1_scope(net, seller, signer)
    _, record = await opening(method, chain, signer, scope, fee_payer=terms.fee_payer)
    payload = method.open_payload(record, terms.price, sign(method, signer, record, terms.price))
    answer = await http.get(url, headers=credential(challenge, record, payload))
    assert answer.status_code == 200, answer.text
    return challenge, method, as_open(record, authorised=DEPOSIT), terms.price


async def test_the_contract_computes_the_same_id_and_digest(
    net: Devnet, seller: Seller, chain: ChainClient, signer: Signer
) -> None:
    plan, record = await opening(METHOD, chain, signer, v1_scope(net, seller, signer))
    parties = [record.scope.payer, record.scope.payee, record.scope.token]
    data = b"".join(bytes(12) + to_bytes(party) for party in parties)
    data += to_bytes(plan.descriptor["salt"]) + bytes(12) + to_bytes(ZERO_ADDRESS)
    types = "address,address,address,bytes32,address"
    computed = await chain.call(net.v1_escrow, selector(f"computeChannelId({types})") + data)
    assert to_hex(computed) == plan.channel_id
    digest = await chain.call(
        net.v1_escrow,
        selector("getVoucherDigest(bytes32,uint128)") + bytes32_word(plan.channel_id) + uint_word(7),
    )
    assert digest == METHOD.voucher_digest(record, 7)
    assert ESCROWS[f"eip155:{net.chain_id}"] == net.v1_escrow


@pytest.mark.parametrize("route", ["/req", "/reqfp"])
async def test_the_server_takes_our_open_top_up_voucher_and_close(
    net: Devnet,
    seller: Seller,
    chain: ChainClient,
    http: httpx.AsyncClient,
    signer: Signer,
    route: str,
) -> None:
    url = seller.http + route
    before = await chain.balance(net.token, signer.address)
    challenge, method, record, price = await paid_opening(net, seller, chain, http, signer, url)
    fee_payer = route == "/reqfp"
    fees = 0
    if not fee_payer:
        receipt = await chain.receipt(record.transactions[0])
        assert receipt is not None
        fees += fee_of(receipt)
    state = await method.read_channel(chain, record)
    assert (state.exists, state.deposit, state.settled) == (True, DEPOSIT, 0)
    assert seller.channel(record.channel_id)["spent"] == str(price)

    plan = method.plan_top_up(
        record,
        amount=30_000,
        head=await chain.head(),
        fee_payer=fee_payer,
        signer=signer.topping_up(record, amount=30_000, sponsored=fee_payer),
    )
    payload = method.top_up_payload(record, amount=30_000, transaction=plan.transaction)
    answer = await http.post(url, headers=credential(challenge, record, payload))
    assert answer.status_code == 204, answer.text
    state = await method.read_channel(chain, record)
    assert state.deposit == DEPOSIT + 30_000
    if not fee_payer:
        receipt = await chain.receipt(plan.tx_hash)
        assert receipt is not None
        assert receipt.gas_used < METHOD.gas.top_up
        assert fee_of(receipt) <= plan.max_fee
        fees += fee_of(receipt)

    # No approval is left behind for the escrow.
    data = selector("allowance(address,address)")
    data += b"".join(bytes(12) + to_bytes(one) for one in (signer.address, net.v1_escrow))
    assert int.from_bytes(await chain.call(net.token, data), "big") == 0

    record = replace(record, deposit=state.deposit, authorised=2 * price)
    voucher = method.voucher_payload(record, 2 * price, sign(method, signer, record, 2 * price))
    answer = await http.get(url, headers=credential(challenge, record, voucher))
    assert answer.status_code == 200, answer.text

    assert method.close_takes_voucher
    record = replace(record, status=ChannelStatus.CLOSING, close_amount=2 * price)
    last = method.close_payload(record, 2 * price, sign(method, signer, record, 2 * price))
    answer = await http.post(url, headers=credential(challenge, record, last))
    assert answer.status_code == 204, answer.text
    state = await method.read_channel(chain, record)
    assert not state.exists
    closing = await method.read_closing(chain, record, state.block)
    assert closing is not None
    assert (closing.captured, closing.refunded) == (2 * price, DEPOSIT + 30_000 - 2 * price)
    assert await chain.balance(net.token, signer.address) == before - 2 * price - fees


async def test_the_contract_pays_the_close_vouchers_whole_amount(
    net: Devnet, seller: Seller, chain: ChainClient, http: httpx.AsyncClient, signer: Signer
) -> None:
    """Why `close_takes_voucher` says so: more than was spent is gone."""
    url = seller.http + "/req"
    challenge, method, record, price = await paid_opening(net, seller, chain, http, signer, url)
    record = replace(record, status=ChannelStatus.CLOSING, close_amount=3 * price)
    last = method.close_payload(record, 3 * price, sign(method, signer, record, 3 * price))
    answer = await http.post(url, headers=credential(challenge, record, last))
    assert answer.status_code == 204, answer.text
    state = await method.read_channel(chain, record)
    closing = await method.read_closing(chain, record, state.block)
    assert closing is not None
    assert (closing.captured, closing.refunded) == (3 * price, DEPOSIT - 3 * price)


async def test_a_forced_close_brings_the_deposit_back_to_the_unit(
    net: Devnet, seller: Seller, chain: ChainClient, signer: Signer
) -> None:
    before = await chain.balance(net.token, signer.address)
    assert not (
        await METHOD.read_channel(
            chain, (await opening(METHOD, chain, signer, v1_scope(net, seller, signer)))[1]
        )
    ).exists
    record = await opened(METHOD, net, chain, signer, v1_scope(net, seller, signer))
    receipt = await chain.receipt(record.transactions[0])
    assert receipt is not None
    assert receipt.gas_used < METHOD.gas.open
    fees = fee_of(receipt)

    plan = METHOD.plan_request_close(record, await chain.head(), signer.requesting_close(record))
    await chain.send_raw(plan.transaction)
    assert net.receipt(plan.tx_hash)["status"] == "0x1"
    receipt = await chain.receipt(plan.tx_hash)
    assert receipt is not None
    fees += fee_of(receipt)
    state = await METHOD.read_channel(chain, record)
    assert (state.exists, state.close_requested_at) == (True, state.block.timestamp)

    net.warp(GRACE_S + 60)
    plan = METHOD.plan_withdraw(record, await chain.head(), signer.withdrawing(record))
    await chain.send_raw(plan.transaction)
    assert net.receipt(plan.tx_hash)["status"] == "0x1"
    receipt = await chain.receipt(plan.tx_hash)
    assert receipt is not None
    assert receipt.gas_used < METHOD.gas.withdraw
    fees += fee_of(receipt)

    state = await METHOD.read_channel(chain, record)
    assert not state.exists
    closing = await METHOD.read_closing(chain, record, state.block)
    assert closing is not None
    assert (closing.captured, closing.refunded, closing.tx_hash) == (0, DEPOSIT, plan.tx_hash)
    assert await chain.balance(net.token, signer.address) == before - fees
