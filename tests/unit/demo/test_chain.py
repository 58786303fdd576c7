"""The simulated chain: what it takes, what it refuses, and that no base unit appears or goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from proxy_addon.chain import ChainClient, RpcRefused, fee_of
from proxy_addon.core.messages import Challenge
from proxy_addon.demo import reserve
from proxy_addon.demo.chain import FEE_MANAGER, PATH_USD, CallFailed, SimulatedChain, TransactionRefused
from proxy_addon.demo.challenges import Challenges
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.methods.abi import address_word, keccak256, selector, to_bytes, to_hex, uint_word
from proxy_addon.methods.tempo_session.calls import (
    OPEN,
    TOP_UP,
    OpenCall,
    ReserveState,
    descriptor_words,
    encode_get_state,
)
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.methods.tempo_tx import Call
from store.records import Channel
from tests.unit.demo.conftest import FUNDS
from tests.unit.demo.wallet import METHOD, Wallet

PAYEE_KEY = bytes.fromhex("22" * 32)
NOBODY = ReserveState(0, 0, 0)


@pytest.fixture
def payee(chain: SimulatedChain) -> Wallet:
    payee = Wallet(chain, PAYEE_KEY)
    chain.fund(payee.address, FUNDS)
    return payee


@pytest.fixture
def challenge(chain: SimulatedChain, payee: Wallet) -> Challenge:
    terms = Challenges(clock=chain.clock, chain_id=chain.chain_id, payee=payee.address, token=PATH_USD)
    return terms.make(10_000)


@pytest.fixture
def opened(chain: SimulatedChain, wallet: Wallet, challenge: Challenge) -> Channel:
    channel = wallet.plan(challenge, 100_000)
    assert channel.pending is not None
    tx_hash = chain.send(to_bytes(channel.pending.raw))
    assert chain.transactions[tx_hash].succeeded
    return channel


def fail(chain: SimulatedChain, raw: bytes) -> str:
    """Sends a transaction that is mined and fails; returns why."""
    mined = chain.transactions[chain.send(raw)]
    assert not mined.succeeded
    assert mined.events == ()
    return mined.reason.partition(":")[0]


class TestOpening:
    def test_moves_the_deposit_and_the_fee(
        self, chain: SimulatedChain, wallet: Wallet, opened: Channel
    ) -> None:
        assert opened.pending is not None
        mined = chain.transactions[opened.pending.tx_hash]
        assert chain.channel(opened.channel_id) == ReserveState(0, 100_000, 0)
        assert chain.balance(RESERVE) == 100_000
        assert mined.fee > 0
        assert chain.balance(wallet.address) == FUNDS - 100_000 - mined.fee
        assert chain.balance(FEE_MANAGER) == mined.fee

    def test_twice_is_refused(self, chain: SimulatedChain, opened: Channel) -> None:
        assert opened.pending is not None
        with pytest.raises(TransactionRefused, match="already known"):
            chain.send(to_bytes(opened.pending.raw))

    def test_two_in_one_transaction_fail_together(
        self, chain: SimulatedChain, wallet: Wallet, payee: Wallet
    ) -> None:
        data = _open_call(payee.address).encode()
        call = Call(to_bytes(RESERVE), data)
        assert (
            fail(chain, wallet.transaction(data, calls=(call, call), gas_limit=800_000))
            == "ChannelAlreadyExists"
        )
        assert chain.balance(RESERVE) == 0

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"deposit": 0}, "ZeroDeposit"),
            ({"token": "0x" + "11" * 20}, "InvalidToken"),
            ({"payee": "0x" + "00" * 20}, "InvalidPayee"),
            ({"payee": PATH_USD}, "InvalidPayee"),
            ({"deposit": FUNDS}, "InsufficientBalance"),  # nothing would be left for the fee
        ],
    )
    def test_refused(
        self, chain: SimulatedChain, wallet: Wallet, payee: Wallet, change: dict[str, object], reason: str
    ) -> None:
        data = _open_call(payee.address, **change).encode()
        assert fail(chain, wallet.transaction(data)) == reason
        assert chain.balance(RESERVE) == 0
        assert chain.balance(wallet.address) == FUNDS - chain.balance(FEE_MANAGER)


class TestAdmission:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"chain_id": 1}, "invalid chain id 1"),
            ({"max_fee_per_gas": 10**9, "max_priority_fee_per_gas": 0}, "max fee per gas"),
            ({"gas_limit": 10**12}, "insufficient funds"),
            ({"valid_before": 1}, "expired"),
            ({"valid_after": 2**40}, "not valid yet"),
            ({"nonce_key": 0, "valid_before": None}, "expiring nonces only"),
            ({"sponsored": True}, "fee payer"),
            ({"calls": (Call(bytes(20), value=1),)}, "native"),
        ],
    )
    def test_refused(
        self, chain: SimulatedChain, wallet: Wallet, change: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(TransactionRefused, match=message):
            chain.send(wallet.transaction(b"", **change))
        assert chain.transactions == {}

    def test_a_flipped_bit_is_another_sender_without_money(
        self, chain: SimulatedChain, wallet: Wallet
    ) -> None:
        raw = bytearray(wallet.transaction(b"\x01"))
        raw[-20] ^= 1
        with pytest.raises(TransactionRefused, match=r"insufficient funds|decode"):
            chain.send(bytes(raw))

    def test_too_long_a_validity_is_taken_and_never_mined(
        self, chain: SimulatedChain, wallet: Wallet
    ) -> None:
        late = chain.head().timestamp + 40
        tx_hash = chain.send(wallet.transaction(b"", valid_before=late))
        chain.warp(60)
        chain.mine()
        assert tx_hash not in chain.transactions

    def test_waits_for_a_block_and_is_dropped_once_expired(
        self, chain: SimulatedChain, wallet: Wallet
    ) -> None:
        chain.mining = False
        first = chain.send(wallet.transaction(b"first"))
        assert first not in chain.transactions
        chain.mine()
        assert first in chain.transactions
        second = chain.send(wallet.transaction(b"second"))
        chain.warp(25)
        chain.mine()
        assert second not in chain.transactions

    def test_out_of_gas_costs_the_limit(self, chain: SimulatedChain, wallet: Wallet, payee: Wallet) -> None:
        raw = wallet.transaction(_open_call(payee.address).encode(), gas_limit=100_000)
        assert fail(chain, raw) == "OutOfGas"
        assert chain.transactions[to_hex(keccak256(raw))].gas_used == 100_000

    def test_an_unknown_target_or_function_fails(self, chain: SimulatedChain, wallet: Wallet) -> None:
        for to in (RESERVE, PATH_USD, "0x" + "33" * 20):
            assert fail(chain, wallet.transaction(b"\xff" * 4, to)) == "UnknownFunctionSelector"


class TestPayeeSide:
    def test_settle_then_close(
        self, chain: SimulatedChain, wallet: Wallet, payee: Wallet, opened: Channel
    ) -> None:
        before = chain.balance(payee.address)
        settle = reserve.encode_settle(opened.descriptor, 30_000, wallet.voucher(opened, 30_000))
        fee = chain.transactions[chain.send(payee.transaction(settle))].fee
        assert chain.channel(opened.channel_id) == ReserveState(30_000, 100_000, 0)
        assert chain.balance(payee.address) == before + 30_000 - fee
        # A voucher over the deposit is fine for a close: what is captured is what is bounded.
        data = reserve.encode_close(opened.descriptor, 500_000, 45_000, wallet.voucher(opened, 500_000))
        payer_before = chain.balance(wallet.address)
        mined = chain.transactions[chain.send(payee.transaction(data))]
        assert mined.succeeded
        assert chain.balance(payee.address) == before + 45_000 - fee - mined.fee
        assert chain.balance(wallet.address) == payer_before + 55_000
        assert chain.channel(opened.channel_id) == NOBODY
        assert fail(chain, payee.transaction(data)) == "ChannelNotFound"

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (
                lambda w, c: reserve.encode_settle(c.descriptor, 20_000, w.voucher(c, 20_001)),
                "InvalidSignature",
            ),
            (lambda w, c: reserve.encode_settle(c.descriptor, 20_000, b"\x01" * 65), "InvalidSignature"),
            (lambda w, c: reserve.encode_settle(c.descriptor, 20_000, b""), "InvalidSignature"),
            (lambda w, c: reserve.encode_settle(c.descriptor, 0, w.voucher(c, 0)), "AmountNotIncreasing"),
            (
                lambda w, c: reserve.encode_settle(c.descriptor, 100_001, w.voucher(c, 100_001)),
                "AmountExceedsDeposit",
            ),
            (
                lambda w, c: reserve.encode_close(c.descriptor, 20_000, 20_001, w.voucher(c, 20_000)),
                "CaptureAmountInvalid",
            ),
            (
                lambda w, c: reserve.encode_close(c.descriptor, 200_000, 100_001, w.voucher(c, 200_000)),
                "AmountExceedsDeposit",
            ),
            (
                lambda w, c: reserve.encode_close(c.descriptor, 20_000, 10_000, w.voucher(c, 10_000)),
                "InvalidSignature",
            ),
            (
                lambda w, c: reserve.encode_settle(c.descriptor, 20_000, w.voucher(c, 20_000)) + b"\x00",
                "InvalidCalldata",
            ),
            (lambda w, c: reserve.SETTLE, "InvalidCalldata"),
        ],
    )
    def test_refused(
        self,
        chain: SimulatedChain,
        wallet: Wallet,
        payee: Wallet,
        opened: Channel,
        make: Callable[[Wallet, Channel], bytes],
        reason: str,
    ) -> None:
        assert fail(chain, payee.transaction(make(wallet, opened))) == reason
        assert chain.channel(opened.channel_id) == ReserveState(0, 100_000, 0)

    def test_the_signature_must_stand_where_an_encoder_puts_it(
        self, chain: SimulatedChain, wallet: Wallet, payee: Wallet, opened: Channel
    ) -> None:
        data = bytearray(reserve.encode_settle(opened.descriptor, 20_000, wallet.voucher(opened, 20_000)))
        data[4 + 8 * 32 + 31] ^= 32
        assert fail(chain, payee.transaction(bytes(data))) == "InvalidCalldata"

    def test_nobody_else_may(self, chain: SimulatedChain, wallet: Wallet, opened: Channel) -> None:
        data = reserve.encode_settle(opened.descriptor, 20_000, wallet.voucher(opened, 20_000))
        assert fail(chain, wallet.transaction(data)) == "NotPayeeOrOperator"


class TestPayerSide:
    def test_forced_close_waits_out_the_grace_period(
        self, chain: SimulatedChain, wallet: Wallet, opened: Channel
    ) -> None:
        assert fail(chain, wallet.withdraw(opened)) == "CloseNotReady"
        chain.send(wallet.request_close(opened))
        requested = chain.channel(opened.channel_id).close_requested_at
        assert requested > 0
        chain.warp(reserve.GRACE_S - 5)
        assert fail(chain, wallet.withdraw(opened)) == "CloseNotReady"
        chain.send(wallet.request_close(opened))
        assert chain.channel(opened.channel_id).close_requested_at == requested
        chain.warp(5)
        before = chain.balance(wallet.address)
        mined = chain.transactions[chain.send(wallet.withdraw(opened))]
        assert mined.succeeded
        assert chain.balance(wallet.address) == before + 100_000 - mined.fee
        assert chain.channel(opened.channel_id) == NOBODY

    def test_a_top_up_adds_and_cancels_a_close(
        self, chain: SimulatedChain, wallet: Wallet, opened: Channel
    ) -> None:
        chain.send(wallet.request_close(opened))
        chain.send(to_bytes(wallet.top_up_payload(opened, 50_000)["transaction"]))
        assert chain.channel(opened.channel_id) == ReserveState(0, 150_000, 0)
        assert chain.balance(RESERVE) == 150_000

    def test_top_ups_that_fail(
        self, chain: SimulatedChain, wallet: Wallet, payee: Wallet, opened: Channel
    ) -> None:
        descriptor = descriptor_words(opened.descriptor)
        assert fail(chain, wallet.transaction(TOP_UP + descriptor + uint_word(2**96))) == "InvalidCalldata"
        assert (
            fail(chain, wallet.transaction(TOP_UP + descriptor + uint_word(2**96 - 1))) == "DepositOverflow"
        )
        assert fail(chain, payee.transaction(TOP_UP + descriptor + uint_word(1))) == "NotPayer"
        assert fail(chain, payee.request_close(opened)) == "NotPayer"
        assert chain.channel(opened.channel_id) == ReserveState(0, 100_000, 0)


def test_the_money_supply_never_changes(
    chain: SimulatedChain, wallet: Wallet, payee: Wallet, opened: Channel
) -> None:
    assert chain.supply() == 2 * FUNDS
    chain.send(to_bytes(wallet.top_up_payload(opened, 50_000)["transaction"]))
    fail(chain, payee.withdraw(opened))
    data = reserve.encode_close(opened.descriptor, 70_000, 70_000, wallet.voucher(opened, 70_000))
    chain.send(payee.transaction(data))
    transfer = selector("transfer(address,uint256)") + address_word(payee.address) + uint_word(5)
    chain.send(wallet.transaction(transfer, PATH_USD))
    assert fail(chain, wallet.transaction(transfer[:-1], PATH_USD)) == "InvalidCalldata"
    assert chain.supply() == 2 * FUNDS
    assert chain.balance(RESERVE) == 0


class TestRpc:
    """Through the project's own client, over HTTP."""

    @pytest.fixture
    async def rpc(self, chain: SimulatedChain) -> AsyncIterator[RpcServer]:
        async with RpcServer(chain) as rpc:
            yield rpc

    @pytest.fixture
    async def client(self, rpc: RpcServer, chain: SimulatedChain) -> AsyncIterator[ChainClient]:
        client = ChainClient([rpc.url], chain.chain_id)
        yield client
        await client.aclose()

    async def test_reads(
        self, client: ChainClient, chain: SimulatedChain, wallet: Wallet, opened: Channel
    ) -> None:
        assert await client.chain_id() == chain.chain_id
        head = await client.head()
        assert head.base_fee == chain.base_fee
        assert await client.balance(PATH_USD, wallet.address) == chain.balance(wallet.address)
        state = await METHOD.read_channel(client, opened)
        assert (state.exists, state.deposit, state.settled) == (True, 100_000, 0)
        unknown = await client.call(RESERVE, encode_get_state("0x" + "77" * 32))
        assert unknown == bytes(96)

    async def test_a_past_block_shows_the_past(
        self, client: ChainClient, wallet: Wallet, challenge: Challenge
    ) -> None:
        before = await client.head()
        channel = wallet.plan(challenge, 100_000)
        assert channel.pending is not None
        await client.send_raw(channel.pending.raw)
        query = encode_get_state(channel.channel_id)
        assert await client.call(RESERVE, query, block=hex(before.number)) == bytes(96)
        assert (await client.call(RESERVE, query)) != bytes(96)
        with pytest.raises(RpcRefused, match="no block"):
            await client.call(RESERVE, query, block="0xffff")

    async def test_broadcast_receipt_and_logs(
        self, client: ChainClient, chain: SimulatedChain, wallet: Wallet, challenge: Challenge
    ) -> None:
        channel = wallet.plan(challenge, 100_000)
        assert channel.pending is not None
        assert await client.receipt(channel.pending.tx_hash) is None
        tx_hash = await client.send_raw(channel.pending.raw)
        assert await client.send_raw(channel.pending.raw) == tx_hash  # the client knows "already known"
        receipt = await client.receipt(tx_hash)
        assert receipt is not None
        assert receipt.succeeded
        assert fee_of(receipt) == chain.transactions[tx_hash].fee
        assert (receipt.fee_payer, receipt.fee_token) == (wallet.address, PATH_USD)
        (log,) = receipt.logs
        topic = to_hex(keccak256(reserve.OPENED.encode()))
        assert log.topics[:2] == (topic, channel.channel_id)
        payer_topic = to_hex(address_word(wallet.address))
        assert await client.logs(RESERVE, [topic, None, payer_topic], from_block=0) == (log,)
        assert await client.logs(RESERVE, [topic, None, "0x" + "00" * 32], from_block=0) == ()

    async def test_refusals_are_json_rpc_errors(self, client: ChainClient) -> None:
        with pytest.raises(RpcRefused, match="decode"):
            await client.send_raw("0x7600")
        with pytest.raises(RpcRefused, match="reverted"):
            await client.call(RESERVE, b"\xff" * 4)
        with pytest.raises(RpcRefused, match="reverted"):
            await client.call(PATH_USD, b"\xff" * 4)
        assert await client.call("0x" + "44" * 20, b"") == b""

    async def test_anything_else_is_answered_too(self, rpc: RpcServer) -> None:
        import httpx

        async with httpx.AsyncClient(trust_env=False) as http:
            assert (await http.get(rpc.url)).status_code == 405
            assert (await http.post(rpc.url, content=b"{")).json()["error"]["code"] == -32700
            assert (await http.post(rpc.url, json=[{"id": 1}])).json()[0]["error"]["code"] == -32600
            calls = [
                {"id": 1, "method": "eth_accounts"},
                {"id": 2, "method": "eth_getBlockByNumber", "params": [7]},
                {"id": 3, "method": "eth_getBlockByNumber", "params": ["0xffff", False]},
                {"id": 4, "method": "web3_clientVersion"},
                {"id": 5, "method": "eth_getBlockByNumber", "params": ["earliest", False]},
                {"id": 6, "method": "eth_call", "params": []},
            ]
            answers = (await http.post(rpc.url, json=calls)).json()
        assert answers[0]["error"]["code"] == -32601
        assert answers[1]["error"]["code"] == -32602
        assert answers[2]["result"] is None
        assert "not Tempo" in answers[3]["result"]
        assert answers[4]["result"]["number"] == "0x0"
        assert answers[5]["error"]["code"] == -32602


def test_further_getters(chain: SimulatedChain, opened: Channel) -> None:
    descriptor = descriptor_words(opened.descriptor)
    tuple_abi = "(address,address,address,address,bytes32,address,bytes32)"
    whole = chain.call(RESERVE, selector(f"getChannel({tuple_abi})") + descriptor)
    assert whole == descriptor + uint_word(0) + uint_word(100_000) + uint_word(0)
    computed = chain.call(RESERVE, selector(f"computeChannelId{tuple_abi}") + descriptor)
    assert to_hex(computed) == opened.channel_id
    assert chain.call(PATH_USD, selector("decimals()")) == uint_word(6)
    with pytest.raises(CallFailed, match="InvalidCalldata"):
        chain.call(RESERVE, encode_get_state(opened.channel_id)[:-1])


def _open_call(to: str, **change: object) -> OpenCall:
    arguments: dict[str, object] = {
        "payee": to,
        "operator": "0x" + "00" * 20,
        "token": PATH_USD,
        "deposit": 50_000,
        "salt": "0x" + "05" * 32,
        "authorized_signer": "0x" + "00" * 20,
    }
    call = OpenCall(**{**arguments, **change})  # type: ignore[arg-type]
    assert call.encode()[:4] == OPEN
    return call
