from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.contract import (
    ChainHead,
    Closing,
    Method,
    OpenPlan,
    TransactionPlan,
    TransactionSigner,
)
from proxy_addon.methods.tempo_session.calls import (
    encode_get_state,
    parse_open,
    parse_request_close,
    parse_top_up,
    parse_withdraw,
)
from proxy_addon.methods.tempo_session.events import closed_topic
from proxy_addon.methods.tempo_session.history import FEWEST_BLOCKS, MOST_BLOCKS
from proxy_addon.methods.tempo_session.v2 import RESERVE, TempoSessionV2
from proxy_addon.methods.tempo_tx import EXPIRING_NONCE_KEY, decode
from proxy_addon.rpc_answers import Log
from proxy_addon.signer import Signer
from store.lifecycle import ChannelStatus
from store.records import Channel, PaymentScope
from tests.unit.methods.samples import (
    ADDRESS,
    HEAD,
    KEY,
    OTHER_ADDRESS,
    SALT,
    TOKEN,
    ZERO,
    challenge,
    channel,
    descriptor,
    details,
    ours,
    pending,
    request,
    scope,
)
from tests.unit.methods.tempo_session.chains import Answers, History

METHOD: Method = TempoSessionV2()  # typed so that mypy holds it to the contract
SIGNER = Signer.from_hex(KEY)
SIGNATURE = bytes(range(65))


def plan(
    our_scope: PaymentScope,
    *,
    deposit: int = 50_000,
    salt: bytes = SALT,
    head: ChainHead = HEAD,
    fee_payer: bool = False,
) -> OpenPlan:
    signer: TransactionSigner = SIGNER.opening(our_scope, deposit=deposit, sponsored=fee_payer)
    return METHOD.plan_open(
        our_scope, deposit=deposit, salt=salt, head=head, fee_payer=fee_payer, signer=signer
    )


def test_a_scope_takes_everything_that_two_requests_must_share() -> None:
    terms = METHOD.terms(challenge(request(methodDetails=details(operator="0x" + "0A" * 20))))
    found = METHOD.scope(
        terms, payer=ADDRESS.upper().replace("0X", "0x"), voucher_signer=OTHER_ADDRESS, origin="https://a:443"
    )
    assert found == scope(
        voucher_signer=OTHER_ADDRESS, discriminator="0x" + "0a" * 20, origin="https://a:443"
    )
    with pytest.raises(ValueError, match="payer"):
        METHOD.scope(terms, payer="me", voucher_signer=ADDRESS, origin="https://a:443")


def test_the_canonical_escrow_is_the_reserve() -> None:
    assert METHOD.escrows == {"*": RESERVE}
    assert bytes.fromhex(RESERVE[2:])[:3] == b"MPP"


@pytest.mark.parametrize("fee_payer", [False, True])
@settings(max_examples=40, deadline=None)
@given(
    deposit=st.integers(1, 2**96 - 1),
    salt=st.binary(min_size=32, max_size=32),
    timestamp=st.integers(1, 2**40),
    base_fee=st.integers(0, 2**50),
)
def test_an_opening_does_what_the_scope_says(
    fee_payer: bool, deposit: int, salt: bytes, timestamp: int, base_fee: int
) -> None:
    our_scope = scope(discriminator=OTHER_ADDRESS)
    head = ChainHead(number=1, timestamp=timestamp, base_fee=base_fee)
    made = plan(our_scope, deposit=deposit, salt=salt, head=head, fee_payer=fee_payer)
    signed = decode(to_bytes(made.transaction))
    tx = signed.transaction
    assert to_hex(signed.sender) == our_scope.payer
    assert (tx.chain_id, tx.nonce_key, tx.nonce, tx.sponsored) == (42431, EXPIRING_NONCE_KEY, 0, fee_payer)
    assert tx.fee_token == (None if fee_payer else to_bytes(TOKEN))
    assert tx.valid_before == made.valid_before == timestamp + 25
    assert tx.max_fee_per_gas > base_fee
    assert [to_hex(call.to) for call in tx.calls] == [our_scope.escrow]
    call = parse_open(tx.calls[0].data)
    assert (call.payee, call.operator, call.token) == (our_scope.payee, OTHER_ADDRESS, TOKEN)
    assert (call.deposit, call.salt, call.authorized_signer) == (deposit, to_hex(salt), ZERO)
    assert made.descriptor["expiringNonceHash"] == to_hex(signed.expiring_nonce_hash)
    assert made.channel_id == METHOD.channel_id(our_scope, made.descriptor)
    assert made.max_fee == (0 if fee_payer else -(-tx.gas_limit * tx.max_fee_per_gas // 10**12))


def test_the_same_opening_gives_the_same_bytes_and_another_salt_another_channel() -> None:
    assert plan(scope()) == plan(scope())
    assert plan(scope()).channel_id != plan(scope(), salt=bytes(32)).channel_id


@pytest.mark.parametrize("deposit", [0, -1, 2**96])
def test_a_deposit_that_no_channel_holds(deposit: int) -> None:
    with pytest.raises(ValueError, match="deposit"):
        plan(scope(), deposit=deposit)


def test_a_salt_has_32_bytes() -> None:
    with pytest.raises(ValueError, match="salt"):
        plan(scope(), salt=b"short")


@pytest.mark.parametrize("name", ["payer", "payee", "operator", "token", "authorizedSigner"])
def test_a_descriptor_of_another_scope_has_no_id_here(name: str) -> None:
    with pytest.raises(ValueError, match=f"descriptor.{name}"):
        METHOD.channel_id(scope(), descriptor(**{name: "0x" + "99" * 20}))


def test_a_channel_that_names_the_payer_as_its_signer_is_ours_too() -> None:
    zero = METHOD.channel_id(scope(), descriptor())
    named = METHOD.channel_id(scope(), descriptor(authorizedSigner=ADDRESS))
    assert zero != named


def test_a_signer_of_its_own_goes_into_the_descriptor() -> None:
    our_scope = scope(voucher_signer=OTHER_ADDRESS)
    METHOD.channel_id(our_scope, descriptor(authorizedSigner=OTHER_ADDRESS))
    with pytest.raises(ValueError, match="authorizedSigner"):
        METHOD.channel_id(our_scope, descriptor())


def test_the_open_payload_is_what_the_server_reads() -> None:
    record = channel(status=ChannelStatus.SENT, pending=pending(raw="0x76c0"))
    assert METHOD.open_payload(record, 10_000, SIGNATURE) == {
        "action": "open",
        "type": "transaction",
        "channelId": record.channel_id,
        "transaction": "0x76c0",
        "signature": to_hex(SIGNATURE),
        "descriptor": descriptor(),
        "cumulativeAmount": "10000",
        "authorizedSigner": ZERO,
    }


def test_a_digest_is_what_the_signer_recomputes() -> None:
    assert len(SIGNER.sign_voucher(METHOD.voucher_digest(channel(), 7), channel(), 7)) == 65
    with pytest.raises(ValueError, match="uint96"):
        METHOD.voucher_digest(channel(), 2**96)


@pytest.mark.parametrize("record", [channel(), channel(pending=pending(kind="top_up"))])
def test_nothing_to_open(record: Channel) -> None:
    with pytest.raises(ValueError, match="no opening"):
        METHOD.open_payload(record, 1, SIGNATURE)


@pytest.mark.parametrize(
    ("action", "build"), [("voucher", METHOD.voucher_payload), ("close", METHOD.close_payload)]
)
def test_a_voucher_payload_is_what_the_server_reads(
    action: str, build: Callable[[Channel, int, bytes], dict[str, Any]]
) -> None:
    assert build(channel(), 10_000, SIGNATURE) == {
        "action": action,
        "channelId": channel().channel_id,
        "descriptor": descriptor(),
        "cumulativeAmount": "10000",
        "signature": to_hex(SIGNATURE),
    }


def top_up(record: Channel, *, amount: int = 7, fee_payer: bool = False) -> TransactionPlan:
    signer = SIGNER.topping_up(record, amount=amount, sponsored=fee_payer)
    return METHOD.plan_top_up(record, amount=amount, head=HEAD, fee_payer=fee_payer, signer=signer)


@pytest.mark.parametrize("fee_payer", [False, True])
@settings(max_examples=30, deadline=None)
@given(amount=st.integers(1, 2**96 - 1 - 50_000), base_fee=st.integers(0, 2**50))
def test_a_top_up_does_what_it_says(fee_payer: bool, amount: int, base_fee: int) -> None:
    record = ours()
    made = METHOD.plan_top_up(
        record,
        amount=amount,
        head=replace(HEAD, base_fee=base_fee),
        fee_payer=fee_payer,
        signer=SIGNER.topping_up(record, amount=amount, sponsored=fee_payer),
    )
    signed = decode(to_bytes(made.transaction))
    tx = signed.transaction
    assert to_hex(signed.sender) == ADDRESS
    assert (tx.chain_id, tx.nonce_key, tx.nonce, tx.sponsored) == (42431, EXPIRING_NONCE_KEY, 0, fee_payer)
    assert tx.fee_token == (None if fee_payer else to_bytes(TOKEN))
    assert tx.valid_before == made.valid_before == HEAD.timestamp + 25
    assert [(to_hex(call.to), call.value) for call in tx.calls] == [(RESERVE, 0)]
    assert parse_top_up(tx.calls[0].data) == (dict(record.descriptor), amount)
    assert made.max_fee == (0 if fee_payer else -(-tx.gas_limit * tx.max_fee_per_gas // 10**12))
    assert made.tx_hash == to_hex(tx.tx_hash(signed.signature))


@pytest.mark.parametrize("amount", [0, -1, 2**96 - 50_000])
def test_a_top_up_that_no_channel_holds(amount: int) -> None:
    record = ours()
    signer = SIGNER.topping_up(record, amount=1)
    with pytest.raises(ValueError, match="top-up"):
        METHOD.plan_top_up(record, amount=amount, head=HEAD, fee_payer=False, signer=signer)


def test_the_top_up_payload_is_what_the_server_reads() -> None:
    assert METHOD.top_up_payload(channel(), amount=7, transaction="0x76c0") == {
        "action": "topUp",
        "type": "transaction",
        "channelId": channel().channel_id,
        "transaction": "0x76c0",
        "descriptor": descriptor(),
        "additionalDeposit": "7",
    }


def test_a_forced_close_is_two_calls_at_our_own_cost() -> None:
    record = ours()
    request = METHOD.plan_request_close(record, HEAD, SIGNER.requesting_close(record))
    withdrawal = METHOD.plan_withdraw(record, HEAD, SIGNER.withdrawing(record))
    for made, parse in ((request, parse_request_close), (withdrawal, parse_withdraw)):
        signed = decode(to_bytes(made.transaction))
        tx = signed.transaction
        assert to_hex(signed.sender) == ADDRESS
        assert (tx.sponsored, tx.fee_token, len(tx.calls)) == (False, to_bytes(TOKEN), 1)
        assert to_hex(tx.calls[0].to) == RESERVE
        assert parse(tx.calls[0].data) == record.descriptor
        assert made.max_fee > 0
        assert made.valid_before == HEAD.timestamp + 25


def test_the_same_transaction_again_is_the_same_until_one_is_on_record() -> None:
    record = ours()
    first = top_up(record)
    assert top_up(record) == first
    again = top_up(replace(record, transactions=(first.tx_hash,)))
    assert again.tx_hash != first.tx_hash
    assert again.valid_before == first.valid_before


def history(*logs: Log) -> History:
    return History(RESERVE, closed_topic(96), channel().channel_id, *logs)


def state(settled: int, deposit: int, requested: int) -> bytes:
    return bytes(encode(["uint96", "uint96", "uint32"], [settled, deposit, requested]))


async def test_a_channel_is_read_at_one_block() -> None:
    chain = Answers(state(3, 50_000, 0))
    found = await METHOD.read_channel(chain, channel())
    assert (found.exists, found.deposit, found.settled, found.close_requested_at) == (True, 50_000, 3, None)
    assert found.block == HEAD
    assert chain.asked == [(RESERVE, encode_get_state(channel().channel_id), hex(HEAD.number))]


async def test_a_close_request_is_seen_and_an_absent_channel_too() -> None:
    closing = await METHOD.read_channel(Answers(state(0, 1, 1_795_420_001)), channel())
    assert closing.close_requested_at == 1_795_420_001
    absent = await METHOD.read_channel(Answers(state(0, 0, 0)), channel())
    assert (absent.exists, absent.deposit) == (False, 0)


@pytest.mark.parametrize("data", [b"", bytes(64), b"\xff" * 96, state(2, 1, 0)])
async def test_nonsense_is_no_state(data: bytes) -> None:
    with pytest.raises(ChainUnavailable, match=r"nonsense.*right one"):
        await METHOD.read_channel(Answers(data), channel())


def closed(captured: int, refunded: int, block: int, tx: str = "0x" + "ee" * 32) -> Log:
    data = bytes(encode(["uint96", "uint96"], [captured, refunded]))
    return Log(RESERVE, (closed_topic(96), channel().channel_id), data, block, tx)


HIGH = replace(HEAD, number=25_000)


async def test_the_end_is_found_in_the_newest_blocks_first() -> None:
    chain = history(closed(20_000, 30_000, 24_000))
    found = await METHOD.read_closing(chain, channel(), HIGH)
    assert found == Closing(captured=20_000, refunded=30_000, tx_hash="0x" + "ee" * 32)
    assert chain.looks == [(15_001, 25_000)]


async def test_the_search_goes_back_without_gaps_to_the_first_block() -> None:
    chain = history(closed(50_000, 0, 0))
    assert await METHOD.read_closing(chain, channel(), HIGH) is not None
    assert chain.looks == [(15_001, 25_000), (0, 15_000)]
    empty = history()
    assert await METHOD.read_closing(empty, channel(), HIGH) is None
    assert empty.looks == chain.looks


async def test_the_search_ends_where_the_channel_began() -> None:
    far = replace(HEAD, number=1_000_000_000)
    opened_at = (HEAD.timestamp - 86_400) * 1000
    young = history(closed(50_000, 0, 1))
    assert await METHOD.read_closing(young, channel(opened_at=opened_at), far) is None
    (first, _), last = young.looks[-1], young.looks[0][1]
    assert last == far.number
    assert 2 * 86_400 < far.number - first < 5 * 86_400  # two blocks a second, and some more
    assert all(end - start < MOST_BLOCKS for start, end in young.looks if end is not None)
    assert len(young.looks) < 10


async def test_a_look_that_is_refused_is_made_smaller() -> None:
    chain = history(closed(20_000, 30_000, 24_000))
    chain.most = 3_000
    assert await METHOD.read_closing(chain, channel(), HIGH) is not None
    assert chain.looks == [(22_501, 25_000)]
    chain = history(closed(20_000, 30_000, 1))
    chain.most = 3_000
    assert await METHOD.read_closing(chain, channel(), HIGH) is not None
    assert [end for _, end in chain.looks][1:] == [start - 1 for start, _ in chain.looks][:-1]
    chain.most = FEWEST_BLOCKS // 8
    with pytest.raises(ChainUnavailable, match="too wide"):
        await METHOD.read_closing(chain, channel(), HIGH)


async def test_a_top_up_that_we_never_heard_of_is_no_contradiction() -> None:
    found = await METHOD.read_closing(history(closed(20_000, 30_001, 1)), channel(), HIGH)
    assert found is not None
    assert found.refunded == 30_001


@pytest.mark.parametrize(
    "log", [closed(20_000, 29_999, 1), closed(2**96 - 1, 1, 1), replace(closed(1, 1, 1), data=b"")]
)
async def test_an_end_that_cannot_be_is_not_believed(log: Log) -> None:
    with pytest.raises(ChainUnavailable, match="nonsensical"):
        await METHOD.read_closing(history(log), channel(), HIGH)
