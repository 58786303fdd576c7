from __future__ import annotations

from dataclasses import replace

import pytest
from eth_abi.abi import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.contract import Closing, Method
from proxy_addon.methods.tempo_session import v1_calls as calls
from proxy_addon.methods.tempo_session.events import closed_topic
from proxy_addon.methods.tempo_session.transactions import SPONSOR_LIMIT
from proxy_addon.methods.tempo_session.v1 import TempoSessionV1
from proxy_addon.methods.tempo_tx import EXPIRING_NONCE_KEY, Call, decode
from proxy_addon.rpc_answers import Log
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from tests.unit.methods.samples import (
    ADDRESS,
    HEAD,
    KEY,
    OTHER_ADDRESS,
    PAYEE,
    SALT,
    TOKEN,
    V1_ESCROW,
    ZERO,
    challenge,
    details,
    pending,
    request,
    v1_descriptor,
    v1_ours,
    v1_scope,
)
from tests.unit.methods.tempo_session.chains import Answers, History

METHOD: Method = TempoSessionV1()  # typed so that mypy holds it to the contract
SIGNER = Signer.from_hex(KEY)
SIGNATURE = bytes(range(65))


def approval(amount: int) -> Call:
    return Call(to_bytes(TOKEN), calls.encode_approve(V1_ESCROW, amount))


def test_a_challenge_that_names_no_version_is_v1() -> None:
    asked = request(methodDetails=details(escrowContract=V1_ESCROW, sessionProtocol=None))
    terms = METHOD.terms(challenge(asked))
    found = METHOD.scope(terms, payer=ADDRESS, voucher_signer=ADDRESS, origin="https://api.example.com:443")
    assert found == v1_scope()
    assert METHOD.escrows[terms.chain] == V1_ESCROW
    assert terms.amount_limit == 2**128 - 1


def test_only_known_contracts_are_escrows() -> None:
    assert METHOD.escrows == {
        "eip155:4217": "0x33b901018174DDabE4841042ab76ba85D4e24f25".lower(),
        "eip155:42431": V1_ESCROW,
    }
    assert METHOD.close_takes_voucher


@pytest.mark.parametrize("fee_payer", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    deposit=st.integers(1, 2**128 - 1),
    salt=st.binary(min_size=32, max_size=32),
    base_fee=st.integers(0, 2**50),
)
def test_an_opening_approves_and_opens(fee_payer: bool, deposit: int, salt: bytes, base_fee: int) -> None:
    scope = v1_scope(voucher_signer=ADDRESS)
    made = METHOD.plan_open(
        scope,
        deposit=deposit,
        salt=salt,
        head=replace(HEAD, base_fee=base_fee),
        fee_payer=fee_payer,
        signer=SIGNER.opening(scope, deposit=deposit, sponsored=fee_payer),
    )
    signed = decode(to_bytes(made.transaction))
    tx = signed.transaction
    assert to_hex(signed.sender) == ADDRESS
    assert (tx.chain_id, tx.nonce_key, tx.nonce, tx.sponsored) == (42431, EXPIRING_NONCE_KEY, 0, fee_payer)
    assert tx.valid_before == made.valid_before == HEAD.timestamp + 25
    assert tx.max_fee_per_gas > base_fee
    opening = calls.OpenCall(PAYEE, TOKEN, deposit, to_hex(salt), ZERO)
    assert tx.calls == (approval(deposit), Call(to_bytes(V1_ESCROW), opening.encode()))
    assert made.descriptor == v1_descriptor(salt=to_hex(salt))
    assert made.channel_id == METHOD.channel_id(scope, made.descriptor)
    assert made.max_fee == (0 if fee_payer else -(-tx.gas_limit * tx.max_fee_per_gas // 10**12))


@pytest.mark.parametrize("base_fee", [10**9, 15 * 10**9, 20 * 10**9])
def test_a_sponsor_is_never_asked_for_more_than_it_grants(base_fee: int) -> None:
    head = replace(HEAD, base_fee=base_fee)
    opening = METHOD.plan_open(
        v1_scope(),
        deposit=5,
        salt=SALT,
        head=head,
        fee_payer=True,
        signer=SIGNER.opening(v1_scope(), deposit=5, sponsored=True),
    )
    tx = decode(to_bytes(opening.transaction)).transaction
    assert tx.gas_limit * tx.max_fee_per_gas <= SPONSOR_LIMIT
    assert tx.gas_limit <= 2_000_000
    assert tx.max_fee_per_gas >= base_fee + tx.max_priority_fee_per_gas


@pytest.mark.parametrize("name", ["payer", "payee", "token", "authorizedSigner"])
def test_a_descriptor_of_another_scope_has_no_id_here(name: str) -> None:
    with pytest.raises(ValueError, match=f"descriptor.{name}"):
        METHOD.channel_id(v1_scope(), v1_descriptor(**{name: "0x" + "99" * 20}))


def test_a_signer_of_its_own_goes_into_the_descriptor() -> None:
    scope = v1_scope(voucher_signer=OTHER_ADDRESS)
    METHOD.channel_id(scope, v1_descriptor(authorizedSigner=OTHER_ADDRESS))
    with pytest.raises(ValueError, match="authorizedSigner"):
        METHOD.channel_id(scope, v1_descriptor())


def test_deposits_and_top_ups_that_no_channel_holds() -> None:
    for deposit in (0, 2**128):
        with pytest.raises(ValueError, match="deposit"):
            METHOD.plan_open(
                v1_scope(),
                deposit=deposit,
                salt=SALT,
                head=HEAD,
                fee_payer=False,
                signer=SIGNER.opening(v1_scope(), deposit=deposit),
            )
    for amount in (0, 2**128 - 50_000):
        with pytest.raises(ValueError, match="top-up"):
            METHOD.plan_top_up(
                v1_ours(),
                amount=amount,
                head=HEAD,
                fee_payer=False,
                signer=SIGNER.topping_up(v1_ours(), amount=1),
            )


@pytest.mark.parametrize("fee_payer", [False, True])
def test_a_top_up_approves_and_tops_up(fee_payer: bool) -> None:
    record = v1_ours()
    made = METHOD.plan_top_up(
        record,
        amount=7,
        head=HEAD,
        fee_payer=fee_payer,
        signer=SIGNER.topping_up(record, amount=7, sponsored=fee_payer),
    )
    tx = decode(to_bytes(made.transaction)).transaction
    assert tx.calls == (
        approval(7),
        Call(to_bytes(V1_ESCROW), calls.encode_top_up(record.channel_id, 7)),
    )
    assert (tx.sponsored, made.max_fee == 0) == (fee_payer, fee_payer)


def test_a_forced_close_is_two_transactions() -> None:
    record = v1_ours()
    request_close = METHOD.plan_request_close(record, HEAD, SIGNER.requesting_close(record))
    withdrawal = METHOD.plan_withdraw(record, HEAD, SIGNER.withdrawing(record))
    for made, data in (
        (request_close, calls.encode_request_close(record.channel_id)),
        (withdrawal, calls.encode_withdraw(record.channel_id)),
    ):
        tx = decode(to_bytes(made.transaction)).transaction
        assert tx.calls == (Call(to_bytes(V1_ESCROW), data),)
        assert (tx.sponsored, tx.fee_token) == (False, to_bytes(TOKEN))


def test_payloads_name_the_channel_by_its_id_alone() -> None:
    record = v1_ours(status=ChannelStatus.SENT, pending=pending(raw="0x76c0"))
    who = {"channelId": record.channel_id}
    signed = {"cumulativeAmount": "10000", "signature": to_hex(SIGNATURE)}
    assert METHOD.open_payload(record, 10_000, SIGNATURE) == {
        "action": "open",
        "type": "transaction",
        "transaction": "0x76c0",
        "authorizedSigner": ZERO,
        **who,
        **signed,
    }
    assert METHOD.voucher_payload(record, 10_000, SIGNATURE) == {"action": "voucher", **who, **signed}
    assert METHOD.close_payload(record, 10_000, SIGNATURE) == {"action": "close", **who, **signed}
    assert METHOD.top_up_payload(record, amount=7, transaction="0x76c0") == {
        "action": "topUp",
        "type": "transaction",
        "transaction": "0x76c0",
        "additionalDeposit": "7",
        **who,
    }


def stored(
    *,
    finalized: bool = False,
    requested: int = 0,
    payer: str = ADDRESS,
    deposit: int = 50_000,
    settled: int = 3,
) -> bytes:
    types = ["bool", "uint64", "address", "address", "address", "address", "uint128", "uint128"]
    return bytes(encode(types, [finalized, requested, payer, PAYEE, TOKEN, ZERO, deposit, settled]))


async def test_a_channel_is_read_at_one_block() -> None:
    chain = Answers(stored(requested=1_795_420_001))
    found = await METHOD.read_channel(chain, v1_ours())
    assert (found.exists, found.deposit, found.settled) == (True, 50_000, 3)
    assert found.close_requested_at == 1_795_420_001
    assert chain.asked == [(V1_ESCROW, calls.encode_get_channel(v1_ours().channel_id), hex(HEAD.number))]


async def test_a_channel_that_is_absent_or_finalized_does_not_exist() -> None:
    absent = await METHOD.read_channel(Answers(bytes(256)), v1_ours())
    assert (absent.exists, absent.deposit, absent.close_requested_at) == (False, 0, None)
    over = await METHOD.read_channel(Answers(stored(finalized=True)), v1_ours())
    assert (over.exists, over.deposit, over.settled) == (False, 50_000, 3)


@pytest.mark.parametrize("data", [b"", bytes(96), stored(payer=OTHER_ADDRESS), stored(settled=50_001)])
async def test_nonsense_is_no_state(data: bytes) -> None:
    with pytest.raises(ChainUnavailable, match=r"nonsense.*right one"):
        await METHOD.read_channel(Answers(data), v1_ours())


def closed(captured: int, refunded: int) -> Log:
    topics = (closed_topic(256), v1_ours().channel_id)
    return Log(V1_ESCROW, topics, bytes(encode(["uint256"] * 2, [captured, refunded])), 5, "0x" + "ee" * 32)


async def test_the_end_is_found() -> None:
    chain = History(V1_ESCROW, closed_topic(256), v1_ours().channel_id, closed(20_000, 30_000))
    found = await METHOD.read_closing(chain, v1_ours(), HEAD)
    assert found == Closing(captured=20_000, refunded=30_000, tx_hash="0x" + "ee" * 32)


@pytest.mark.parametrize("log", [closed(20_000, 29_999), closed(2**128, 0), closed(2**128 - 1, 1)])
async def test_an_end_that_cannot_be_is_not_believed(log: Log) -> None:
    chain = History(V1_ESCROW, closed_topic(256), v1_ours().channel_id, log)
    with pytest.raises(ChainUnavailable, match="nonsensical"):
        await METHOD.read_closing(chain, v1_ours(), HEAD)
