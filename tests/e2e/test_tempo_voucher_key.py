"""Vouchers signed by another key than the payer's, for the unmodified servers of both versions."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
from eth_account import Account

from proxy_addon.chain import ChainClient
from proxy_addon.methods.registry import resolve
from proxy_addon.signer import Signer, SignerRefused
from store.lifecycle import ChannelStatus
from tests.e2e.tempo import DEPOSIT, as_open, ask, credential, opening, sign
from tests.peers.devnet import Devnet, Seller

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["v1", "v2"])
def seller(net: Devnet, request: pytest.FixtureRequest) -> Seller:
    if request.param == "v1":
        return net.start_server({"protocol": "v1"}, "server-v1")
    return net.seller


async def test_the_server_takes_vouchers_of_the_authorised_signer(
    net: Devnet, seller: Seller, chain: ChainClient, http: httpx.AsyncClient
) -> None:
    payer, delegate = Account.create(), Account.create()
    net.fund(payer.address, 1_000_000)
    both = Signer(bytes(payer.key), bytes(delegate.key))
    delegated = Signer.of_vouchers(bytes(delegate.key), payer=payer.address)
    assert both.voucher_signer == delegated.voucher_signer == delegate.address.lower()

    url = f"{seller.http}/req"
    challenge = await ask(http, url)
    method = resolve(challenge)
    price = method.terms(challenge).price
    scope = method.scope(
        method.terms(challenge), payer=both.address, voucher_signer=both.voucher_signer, origin=seller.http
    )
    plan, record = await opening(method, chain, both, scope)
    assert plan.descriptor["authorizedSigner"] == both.voucher_signer
    first = method.open_payload(record, price, sign(method, both, record, price))
    answer = await http.get(url, headers=credential(challenge, record, first))
    assert answer.status_code == 200, answer.text

    # From here on the payer's key is not needed, and could not be used.
    record = as_open(record, authorised=2 * price)
    with pytest.raises(SignerRefused):
        delegated.topping_up(record, amount=1)
    second = method.voucher_payload(record, 2 * price, sign(method, delegated, record, 2 * price))
    answer = await http.get(url, headers=credential(challenge, record, second))
    assert answer.status_code == 200, answer.text
    book = seller.channel(plan.channel_id)
    assert (book["spent"], book["accepted"]) == (str(2 * price), str(2 * price))

    # A voucher that the payer signs itself is none for this channel.
    payer_alone = Signer(bytes(payer.key))
    as_if_own = replace(
        record, authorised=3 * price, scope=replace(scope, voucher_signer=payer_alone.voucher_signer)
    )
    wrong = method.voucher_payload(record, 3 * price, sign(method, payer_alone, as_if_own, 3 * price))
    answer = await http.get(url, headers=credential(challenge, record, wrong))
    assert answer.status_code == 402

    record = replace(record, status=ChannelStatus.CLOSING, close_amount=2 * price)
    last = method.close_payload(record, 2 * price, sign(method, delegated, record, 2 * price))
    answer = await http.post(url, headers=credential(challenge, record, last))
    assert answer.status_code == 204, answer.text
    state = await method.read_channel(chain, record)
    closing = await method.read_closing(chain, record, state.block)
    assert closing is not None
    assert (closing.captured, closing.refunded) == (2 * price, DEPOSIT - 2 * price)
