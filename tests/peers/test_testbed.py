"""The testbed itself: does the world that the other tests run in behave like the real one?

The first half shows that mppx's own client and server do business over our chain, to the last base unit. The second
half pins down how the server answers, case by case: bursar relies on these answers, so a new mppx that changes one
of them must fail here first.
"""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest
from eth_utils.crypto import keccak

from .chain import RpcClient, RpcError, parse_transaction
from .devnet import OTHER_PAYER, PEERS, Devnet, Seller, find_node
from .hand_client import ZERO_ADDRESS, Answer, HandClient, send
from .oracle import Oracle, OracleError

pytestmark = pytest.mark.e2e

PRICE = 10_000  # base units: what /req costs
DEPOSIT = 50_000


@pytest.fixture(scope="module")
def net() -> Iterator[Devnet]:
    with Devnet() as running:
        yield running


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with Oracle() as running:
        yield running


@pytest.fixture(scope="module")
def v1_seller(net: Devnet) -> Seller:
    return net.start_server({"protocol": "v1"}, "server-v1")


@pytest.fixture
def client(net: Devnet, oracle: Oracle) -> HandClient:
    return HandClient(net, oracle)


@pytest.fixture
def faulty(net: Devnet) -> Iterator[Devnet]:
    """The same net, with the faults taken back at the end."""
    yield net
    net.clear_faults()


def run_smoke_client(net: Devnet, *options: str, seller: Seller | None = None) -> dict[str, Any]:
    """Runs mppx's own client; returns what it printed."""
    address = (seller or net.seller).http
    command = [find_node(), str(PEERS / "smoke_client.mjs"), "--rpc", net.rpc_url, "--http", address]
    command += ["--private-key", net.payer.private_key, "--clock-ahead", str(net.clock_ahead), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def chain_state(client: HandClient) -> tuple[int, int, int]:
    """A channel's settled and deposit (base units) and closeRequestedAt, from the chain."""
    selector = keccak(text="getChannelState(bytes32)")[:4].hex()
    request = {"to": client.net.escrow, "data": f"0x{selector}{client.channel_id[2:]}"}
    words = client.net.rpc("eth_call", request, "latest")[2:]
    settled, deposit, requested = (int(words[at : at + 64], 16) for at in (0, 64, 128))
    return settled, deposit, requested


def revert_reason(client: HandClient, sender: str, function: str, *args: object) -> str:
    """The four bytes of the error with which a call reverts; empty when it would succeed."""
    data = client.oracle.call("encodeCall", functionName=function, args=list(args))
    try:
        client.net.rpc("eth_call", {"from": sender, "to": client.net.escrow, "data": data}, "latest")
    except RpcError as problem:
        return str(problem.error["data"])[:10]
    return ""


def error(name: str) -> str:
    """The selector of a custom error without parameters."""
    return "0x" + keccak(text=f"{name}()")[:4].hex()


# ---------------------------------------------------------------------- mppx's own client


def test_mppx_client_requests_stream_and_close(net: Devnet) -> None:
    payee, payer, block = net.balance(net.payee.address), net.balance(net.payer.address), net.block_number()
    reserved = net.balance(net.escrow)

    done = run_smoke_client(net, "--requests", "3", "--tokens", "8")

    assert done["statuses"] == [200, 200, 200]
    assert done["tokens"] == [f"tok{index}" for index in range(8)]
    spent = 11 * PRICE
    book = net.channel(done["channelId"])
    assert book["spent"] == book["accepted"] == book["settled"] == str(spent)
    assert book["finalized"] is True
    assert done["close"]["spent"] == str(spent)
    assert net.balance(net.payee.address) - payee == spent
    # The rest of the deposit came back: what is missing is what was spent, and gas.
    fees = net.fees(net.payer.address, block + 1)
    assert fees > 0
    assert payer - net.balance(net.payer.address) == spent + fees
    assert net.balance(net.escrow) == reserved


def test_mppx_client_over_a_web_socket(net: Devnet) -> None:
    payee = net.balance(net.payee.address)

    done = run_smoke_client(net, "--requests", "0", "--tokens", "0", "--messages", "7")

    assert done["messages"] == [f"tok{index}" for index in range(7)]
    assert done["close"]["spent"] == str(7 * PRICE)
    assert net.balance(net.payee.address) - payee == 7 * PRICE


@pytest.mark.parametrize(("requests", "tokens"), [(3, 0), (0, 4)])
def test_v1_session(net: Devnet, v1_seller: Seller, requests: int, tokens: int) -> None:
    """Requests and a stream apart: a stream's voucher on a channel that is open already gets a 204 from mppx 0.7."""
    payee, payer, block = net.balance(net.payee.address), net.balance(net.payer.address), net.block_number()
    reserved = net.balance(net.v1_escrow)

    options = ["--protocol", "v1", "--requests", str(requests), "--tokens", str(tokens)]
    done = run_smoke_client(net, *options, seller=v1_seller)

    spent = (requests + tokens) * PRICE
    assert done["statuses"] == [200] * requests
    assert done["tokens"] == [f"tok{index}" for index in range(tokens)]
    book = v1_seller.channel(done["channelId"])
    assert (book["spent"], book["finalized"]) == (str(spent), True)
    assert net.balance(net.payee.address) - payee == spent
    assert payer - net.balance(net.payer.address) == spent + net.fees(net.payer.address, block + 1)
    assert net.balance(net.v1_escrow) == reserved


def test_sponsored_channel_costs_no_gas(net: Devnet) -> None:
    payer = net.balance(net.payer.address)

    done = run_smoke_client(net, "--requests", "2", "--tokens", "0", "--route", "/reqfp")

    assert done["statuses"] == [200, 200]
    assert payer - net.balance(net.payer.address) == 2 * PRICE
    assert net.channel(done["channelId"])["settled"] == str(2 * PRICE)


# ---------------------------------------------------------------------- the contract


def test_business_goes_on_after_a_time_jump(net: Devnet) -> None:
    net.warp(1000)
    assert run_smoke_client(net, "--requests", "1", "--tokens", "1")["close"]["spent"] == str(2 * PRICE)
    assert run_smoke_client(net, "--requests", "1", "--tokens", "0", "--route", "/reqfp")["statuses"] == [200]


def test_forced_close_pays_back_what_is_not_settled(net: Devnet, client: HandClient) -> None:
    answer, challenge = client.open(f"{net.http}/req", DEPOSIT, PRICE)
    assert answer.status == 200
    assert client.voucher(f"{net.http}/req", challenge, 3 * PRICE, "HEAD").status == 204
    payee = net.balance(net.payee.address)
    net.admin("settle", channelId=client.channel_id)
    assert net.balance(net.payee.address) - payee == 3 * PRICE
    assert chain_state(client) == (3 * PRICE, DEPOSIT, 0)

    receipt = client.send_call("requestClose", client.descriptor)
    assert receipt["status"] == "0x1"
    requested = chain_state(client)[2]
    assert requested == int(net.rpc("eth_getBlockByNumber", receipt["blockNumber"], False)["timestamp"], 16)
    net.warp(60)
    assert client.send_call("requestClose", client.descriptor)["status"] == "0x1"
    assert chain_state(client)[2] == requested, "a second request must not restart the clock"

    payer = net.payer.address
    assert revert_reason(client, payer, "withdraw", client.descriptor) == error("CloseNotReady")
    net.warp(901 - 60)
    balance, block = net.balance(payer), net.block_number()
    receipt = client.send_call("withdraw", client.descriptor)
    assert receipt["status"] == "0x1"
    assert net.balance(payer) - balance == DEPOSIT - 3 * PRICE - net.fees(payer, block + 1)
    assert chain_state(client) == (0, 0, 0)
    assert revert_reason(client, payer, "withdraw", client.descriptor) == error("ChannelNotFound")


def test_top_up_cancels_a_forced_close(net: Devnet, client: HandClient) -> None:
    client.open(f"{net.http}/req", DEPOSIT, PRICE)
    client.send_call("requestClose", client.descriptor)
    assert chain_state(client)[2] != 0
    receipt = client.send_call("topUp", client.descriptor, "7")
    assert receipt["status"] == "0x1"
    assert chain_state(client) == (0, DEPOSIT + 7, 0)
    topics = [log["topics"][0] for log in receipt["logs"] if log["address"] == net.escrow]
    cancelled, topped_up = (
        "0x" + keccak(text=text).hex()
        for text in (
            "CloseRequestCancelled(bytes32,address,address)",
            "TopUp(bytes32,address,address,uint96,uint96)",
        )
    )
    assert topics == [cancelled, topped_up]


def test_contract_refuses_what_it_should(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    client.open(f"{net.http}/req", DEPOSIT, PRICE)
    descriptor, payer, payee = client.descriptor, net.payer.address, net.payee.address
    stranger = OTHER_PAYER.address
    good, much = client.sign(2 * PRICE), client.sign(2 * DEPOSIT)
    forged = HandClient(net, oracle, OTHER_PAYER)
    forged.channel_id = client.channel_id
    bad = forged.sign(2 * PRICE)
    open_args = [net.payee.address, ZERO_ADDRESS, net.token, "1", "0x" + "00" * 32, ZERO_ADDRESS]

    cases: list[tuple[str, str, str, list[object]]] = [
        ("NotPayer", stranger, "topUp", [descriptor, "1"]),
        ("NotPayer", payee, "requestClose", [descriptor]),
        ("NotPayer", payee, "withdraw", [descriptor]),
        ("CloseNotReady", payer, "withdraw", [descriptor]),
        ("DepositOverflow", payer, "topUp", [descriptor, str((1 << 96) - 1)]),
        ("NotPayeeOrOperator", stranger, "settle", [descriptor, str(2 * PRICE), good]),
        ("NotPayeeOrOperator", payer, "close", [descriptor, str(2 * PRICE), str(PRICE), good]),
        ("InvalidSignature", payee, "settle", [descriptor, str(2 * PRICE), bad]),
        ("InvalidSignature", payee, "settle", [descriptor, str(2 * PRICE), "0x1234"]),
        ("InvalidSignature", payee, "settle", [descriptor, str(2 * PRICE + 1), good]),
        ("AmountExceedsDeposit", payee, "settle", [descriptor, str(2 * DEPOSIT), much]),
        ("AmountNotIncreasing", payee, "settle", [descriptor, "0", good]),
        ("CaptureAmountInvalid", payee, "close", [descriptor, str(2 * PRICE), str(2 * PRICE + 1), good]),
        ("AmountExceedsDeposit", payee, "close", [descriptor, str(2 * DEPOSIT), str(DEPOSIT + 1), much]),
        ("ChannelNotFound", payee, "settle", [{**descriptor, "salt": "0x" + "00" * 32}, "1", good]),
        ("ZeroDeposit", payer, "open", [*open_args[:3], "0", *open_args[4:]]),
        ("InvalidPayee", payer, "open", [ZERO_ADDRESS, *open_args[1:]]),
        ("InvalidToken", payer, "open", [*open_args[:2], stranger, *open_args[3:]]),
    ]
    for expected, sender, function, args in cases:
        found = revert_reason(client, sender, function, *args)
        assert found == error(expected), f"{function} by {sender}: {found}, expected {expected}"

    # A close voucher above the deposit is valid, as long as the capture is not.
    assert revert_reason(client, payee, "close", descriptor, str(2 * DEPOSIT), str(DEPOSIT), much) == ""


def test_contract_and_mppx_compute_the_same(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    client.open(f"{net.http}/req", DEPOSIT, PRICE)
    fields = ("payer", "payee", "operator", "token", "salt", "authorizedSigner", "expiringNonceHash")
    data = oracle.call(
        "encodeCall", functionName="computeChannelId", args=[client.descriptor[field] for field in fields]
    )
    assert net.rpc("eth_call", {"to": net.escrow, "data": data}, "latest") == client.channel_id

    data = oracle.call("encodeCall", functionName="getVoucherDigest", args=[client.channel_id, "12345"])
    digest = oracle.call(
        "voucherDigest",
        escrow=net.escrow,
        chainId=net.chain_id,
        channelId=client.channel_id,
        cumulativeAmount="12345",
    )
    assert net.rpc("eth_call", {"to": net.escrow, "data": data}, "latest") == digest


def test_opens_at_the_same_time_each_get_their_own_hash(net: Devnet, oracle: Oracle) -> None:
    clients = [HandClient(net, oracle, account) for account in [net.payer, OTHER_PAYER] * 6]
    with ThreadPoolExecutor(len(clients)) as pool:
        answers = list(pool.map(lambda client: client.open(f"{net.http}/req", DEPOSIT, PRICE), clients))
    assert [answer.status for answer, _challenge in answers] == [200] * len(clients)
    assert len({client.channel_id for client in clients}) == len(clients)
    for client in clients:
        assert chain_state(client) == (0, DEPOSIT, 0)


def test_opens_with_the_same_calldata_each_get_their_own_hash(net: Devnet, oracle: Oracle) -> None:
    """Same payer, same salt: two channels all the same, since the transactions differ."""
    args = [net.payee.address, ZERO_ADDRESS, net.token, "100", "0x" + secrets.token_hex(32), ZERO_ADDRESS]
    data = oracle.call("encodeCall", functionName="open", args=args)
    request = {
        "chainId": net.chain_id,
        "calls": [{"to": net.escrow, "data": data}],
        "nonceKey": str((1 << 256) - 1),
        "nonce": 0,
        "gas": "900000",
        "maxFeePerGas": str(50 * 10**9),
        "maxPriorityFeePerGas": "0",
        "feeToken": net.token,
    }
    now = net.now()
    transactions = [
        oracle.call(
            "signTransaction",
            privateKey=net.payer.private_key,
            transaction={**request, "validBefore": now + 15 + extra},
        )
        for extra in range(6)
    ]
    with ThreadPoolExecutor(6) as pool:
        hashes = list(pool.map(lambda raw: net.rpc("eth_sendRawTransaction", raw), transactions))
    opened = (
        "0x"
        + keccak(
            text="ChannelOpened(bytes32,address,address,address,address,address,bytes32,bytes32,uint96)"
        ).hex()
    )
    for raw, hash_ in zip(transactions, hashes, strict=True):
        receipt = net.receipt(hash_)
        assert receipt["status"] == "0x1"
        log = next(log for log in receipt["logs"] if log["topics"][0] == opened)
        # Not indexed: operator, token, authorizedSigner, salt, expiringNonceHash, deposit.
        assert (
            log["data"][2 + 4 * 64 : 2 + 5 * 64]
            == parse_transaction(bytes.fromhex(raw[2:])).expiring_nonce_hash.hex()
        )


def test_channel_cannot_be_opened_twice_in_one_transaction(net: Devnet, oracle: Oracle) -> None:
    args = [net.payee.address, ZERO_ADDRESS, net.token, "100", "0x" + secrets.token_hex(32), ZERO_ADDRESS]
    call = {"to": net.escrow, "data": oracle.call("encodeCall", functionName="open", args=args)}
    once: dict[str, Any] = {"from": net.payer.address, "type": "0x76", "calls": [call]}
    net.rpc("eth_call", once, "latest")
    with pytest.raises(RpcError) as raised:
        net.rpc("eth_call", {**once, "calls": [call, call]}, "latest")
    assert raised.value.error["data"] == error("ChannelAlreadyExists")


def test_transaction_that_was_sent_before_is_refused(net: Devnet, client: HandClient) -> None:
    challenge = client.ask(f"{net.http}/req").challenge
    transaction = client.prepare_open(challenge, DEPOSIT)
    net.receipt(net.rpc("eth_sendRawTransaction", transaction))
    with pytest.raises(RpcError, match="already known"):
        net.rpc("eth_sendRawTransaction", transaction)


def test_v1_contract(net: Devnet, oracle: Oracle) -> None:
    """Approve, open, settle, forced close, by accounts that anvil signs for."""
    payer, payee, salt = net.other_payer.address, net.payee.address, "0x" + secrets.token_hex(32)

    def send_call(sender: str, to: str, data: str) -> str:
        """Returns the receipt's status. The gas limit spares the estimate, which fails where the call does."""
        request = {"from": sender, "to": to, "data": data, "gas": hex(3_000_000)}
        return str(net.receipt(net.rpc("eth_sendTransaction", request))["status"])

    def call_escrow(sender: str, function: str, *args: object) -> str:
        data = oracle.call("encodeCall", version="v1", functionName=function, args=list(args))
        return send_call(sender, net.v1_escrow, data)

    approve = "0x095ea7b3" + net.v1_escrow[2:].rjust(64, "0") + hex(DEPOSIT)[2:].rjust(64, "0")
    assert send_call(payer, net.token, approve) == "0x1"
    before = net.balance(payee), net.balance(net.v1_escrow)
    assert call_escrow(payer, "open", payee, net.token, str(DEPOSIT), salt, ZERO_ADDRESS) == "0x1"
    parties = {"payer": payer, "payee": payee, "token": net.token, "salt": salt}
    where = {"escrow": net.v1_escrow, "chainId": net.chain_id}
    channel = oracle.call("channelId", version="v1", **parties, authorizedSigner=ZERO_ADDRESS, **where)
    voucher = {"version": "v1", **where, "channelId": channel, "cumulativeAmount": str(PRICE)}
    signature = oracle.call("signVoucher", privateKey=net.other_payer.private_key, **voucher)
    data = oracle.call(
        "encodeCall", version="v1", functionName="getVoucherDigest", args=[channel, str(PRICE)]
    )
    digest = net.rpc("eth_call", {"to": net.v1_escrow, "data": data}, "latest")
    assert digest == oracle.call("voucherDigest", **voucher)

    assert call_escrow(payer, "settle", channel, str(PRICE), signature) == "0x0", "not the payee"
    assert call_escrow(payee, "settle", channel, str(PRICE + 1), signature) == "0x0", "not what was signed"
    assert call_escrow(payee, "settle", channel, str(PRICE), signature) == "0x1"
    assert call_escrow(payee, "settle", channel, str(PRICE), signature) == "0x0", "nothing new"
    assert call_escrow(payer, "requestClose", channel) == "0x1"
    assert call_escrow(payer, "withdraw", channel) == "0x0", "too early"
    net.warp(901)
    assert call_escrow(payer, "withdraw", channel) == "0x1"
    assert call_escrow(payer, "withdraw", channel) == "0x0", "finalized"
    assert (net.balance(payee), net.balance(net.v1_escrow)) == (before[0] + PRICE, before[1])


# ---------------------------------------------------------------------- how the server answers


def account_of(answer: Answer, oracle: Oracle) -> tuple[int, int]:
    """acceptedCumulative and spent of a receipt, in base units."""
    header = answer.header("payment-receipt")
    assert header is not None, f"no receipt with {answer.status}: {answer.body!r}"
    receipt = oracle.call("parseReceipt", header=header)
    return int(receipt["acceptedCumulative"]), int(receipt["spent"])


def test_first_402(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    answer = client.ask(f"{net.http}/req")
    assert (answer.status, answer.problem) == (402, "payment-required")
    assert answer.header("content-type") == "application/problem+json"
    assert answer.header("cache-control") == "no-store"
    challenge = oracle.call("parseChallenge", header=answer.challenge)
    assert (challenge["method"], challenge["intent"], challenge["realm"]) == ("tempo", "session", "127.0.0.1")
    assert challenge["request"] == {
        "amount": str(PRICE),
        "currency": net.token,
        "recipient": net.payee.address,
        "suggestedDeposit": str(DEPOSIT),
        "unitType": "request",
        "methodDetails": {
            "chainId": net.chain_id,
            "escrowContract": net.escrow,
            "sessionProtocol": "v2",
        },
    }
    head = client.ask(f"{net.http}/req", "HEAD")
    assert (head.status, head.body) == (402, b"")
    assert "tempo" in head.challenge


def test_vouchers(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    url = f"{net.http}/req"
    answer, challenge = client.open(url, DEPOSIT, PRICE)
    assert answer.status == 200
    assert answer.header("cache-control") == "private"
    assert account_of(answer, oracle) == (10_000, 10_000)

    # One challenge does for any number of vouchers.
    answer = client.voucher(url, challenge, 20_000)
    assert (answer.status, account_of(answer, oracle)) == (200, (20_000, 20_000))

    answer = client.voucher(url, challenge, 20_000)
    assert (answer.status, answer.problem) == (402, "session/insufficient-balance")

    answer = client.voucher(url, challenge, 15_000)
    assert (answer.status, answer.problem) == (402, "verification-failed")

    # HEAD raises what is accepted and charges nothing; an equal voucher then draws on it.
    answer = client.voucher(url, challenge, 40_000, "HEAD")
    assert (answer.status, account_of(answer, oracle)) == (204, (40_000, 20_000))
    answer = client.voucher(url, challenge, 40_000)
    assert (answer.status, account_of(answer, oracle)) == (200, (40_000, 30_000))

    # A lower one is refused even so; the answer to a HEAD does not say why.
    assert client.voucher(url, challenge, 30_000).problem == "verification-failed"
    answer = client.voucher(url, challenge, 30_000, "HEAD")
    assert (answer.status, answer.body, answer.problem) == (402, b"", "")

    assert client.voucher(url, challenge, DEPOSIT + 1).problem == "session/amount-exceeds-deposit"

    # POST: free without a body and a query, charged for with either.
    answer = client.voucher(url, challenge, 40_000, "POST")
    assert (answer.status, account_of(answer, oracle)) == (204, (40_000, 30_000))
    answer = client.voucher(url, challenge, 40_000, "POST", b"hello")
    assert (answer.status, account_of(answer, oracle)) == (200, (40_000, 40_000))
    answer = client.voucher(f"{url}?a=b", challenge, 50_000, "POST")
    assert (answer.status, account_of(answer, oracle)) == (200, (50_000, 50_000))

    # An error still counts the voucher: it was accepted, and only then found too small.
    answer = client.top_up(url, challenge, 50_000)
    assert (answer.status, account_of(answer, oracle)) == (204, (50_000, 50_000))
    assert client.voucher(url, challenge, 55_000).problem == "session/insufficient-balance"
    assert net.channel(client.channel_id)["accepted"] == "55000"

    bad = {**client.voucher_payload(60_000), "signature": client.sign(60_001)}
    assert client.pay("GET", url, challenge, bad).problem == "session/invalid-signature"


def test_close(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    url = f"{net.http}/req"
    _answer, challenge = client.open(url, DEPOSIT, PRICE)
    client.voucher(url, challenge, 30_000, "HEAD")
    client.voucher(url, challenge, 30_000)
    payer, payee = net.balance(net.payer.address), net.balance(net.payee.address)

    assert client.close(url, challenge, 19_999).problem == "verification-failed"
    answer = client.close(url, challenge, 20_000)  # between spent and accepted

    assert (answer.status, account_of(answer, oracle)) == (204, (20_000, 20_000))
    assert net.balance(net.payee.address) - payee == 20_000
    assert net.balance(net.payer.address) - payer == 30_000
    for gone in (client.voucher(url, challenge, 40_000), client.close(url, challenge, 40_000)):
        assert (gone.status, gone.problem) == (410, "session/channel-finalized")
        assert gone.challenge, "a 410 of mppx carries a challenge"

    net.admin("forget", channelId=client.channel_id)
    answer = client.voucher(url, challenge, 40_000)
    assert (answer.status, answer.problem) == (410, "session/channel-not-found")


@pytest.mark.parametrize(
    ("method", "body", "status", "spent"),
    [("GET", None, 200, PRICE), ("HEAD", None, 204, 0), ("POST", None, 204, 0), ("POST", b"x", 200, PRICE)],
)
def test_open_by(
    net: Devnet, oracle: Oracle, client: HandClient, method: str, body: bytes | None, status: int, spent: int
) -> None:
    url = f"{net.http}/req"
    challenge = client.ask(url).challenge
    payload = client.open_payload(client.prepare_open(challenge, DEPOSIT), PRICE)
    answer = client.pay(method, url, challenge, payload, body)
    assert (answer.status, account_of(answer, oracle)) == (status, (PRICE, spent))

    # The node knows the transaction already, and mppx does not look whether the channel is there.
    again = client.pay("GET", url, challenge, payload)
    assert (again.status, again.problem) == (500, "internal-payment-error")


def test_open_that_does_not_cover_the_request(net: Devnet, client: HandClient) -> None:
    url = f"{net.http}/req"
    challenge = client.ask(url).challenge
    transaction = client.prepare_open(challenge, DEPOSIT)
    answer = client.pay("GET", url, challenge, client.open_payload(transaction, PRICE - 1))
    assert (answer.status, answer.problem) == (402, "verification-failed")
    answer = client.pay("GET", url, challenge, client.open_payload(transaction, DEPOSIT + 1))
    assert (answer.status, answer.problem) == (402, "session/amount-exceeds-deposit")
    assert chain_state(client) == (0, 0, 0), "nothing may have been broadcast"


def test_challenges_go_stale(net: Devnet, client: HandClient) -> None:
    url = f"{net.http}/req"
    answer, challenge = client.open(f"{url}?expires=1", DEPOSIT, PRICE)
    assert answer.status == 200
    time.sleep(1.1)
    answer = client.voucher(url, challenge, 2 * PRICE)
    assert (answer.status, answer.problem) == (402, "payment-expired")

    challenge = answer.challenge
    answer = client.voucher(f"{net.http}/price?amount=0.02", challenge, 3 * PRICE)
    assert (answer.status, answer.problem) == (402, "invalid-challenge")

    net.admin("rotate")
    answer = client.voucher(url, challenge, 2 * PRICE)
    assert (answer.status, answer.problem) == (402, "invalid-challenge")
    assert client.voucher(url, answer.challenge, 2 * PRICE).status == 200

    answer = send(net, "GET", url, {"authorization": "Payment !!"})
    assert (answer.status, answer.problem) == (402, "malformed-credential")


def test_pending_forced_close_is_noticed(net: Devnet, client: HandClient) -> None:
    url = f"{net.http}/req"
    _answer, challenge = client.open(url, DEPOSIT, PRICE)
    client.send_call("requestClose", client.descriptor)
    for gone in (client.close(url, challenge, PRICE), client.top_up(url, challenge, 1)):
        assert (gone.status, gone.problem) == (410, "session/channel-finalized")


# ---------------------------------------------------------------------- routes


def test_routes_serve_what_was_paid_for(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    url = f"{net.https}/req"
    net.admin("reset")
    answer, challenge = client.open(url, 1_000_000, PRICE)
    assert answer.json["method"] == "GET"
    paid = PRICE

    def pay(path: str, method: str = "GET", body: bytes | None = None) -> Answer:
        nonlocal paid
        paid += PRICE
        return client.voucher(f"{net.https}{path}", challenge, paid, method, body)

    content = secrets.token_bytes(100_000)
    assert pay("/echo", "POST", content).body == content
    blob = pay("/blob?n=70000")
    assert blob.body == bytes((31 * i + (i >> 8)) & 0xFF for i in range(70_000))
    assert blob.header("content-length") == "70000"
    assert pay("/blob?n=70000&chunked=1").header("content-length") is None
    missing = pay("/status/404paid")
    assert (missing.status, account_of(missing, oracle)[1]) == (404, paid)
    assert pay("/req?status=503").status == 503
    with pytest.raises(OSError, match=r"without response|reset"):
        pay("/req?hangup=1")
    assert net.channel(client.channel_id)["spent"] == str(paid)
    assert send(net, "GET", f"{net.https}/free").json["free"] is True

    stats = net.stats("/req")
    assert stats["actions"] == {"open": 1, "voucher": 2, "topUp": 0, "close": 0}
    assert (stats["total"], stats["withCredential"], stats["sent402"]) == (4, 3, 1)
    vouchers = net.admin("stats")["vouchers"]
    assert [int(voucher["cumulative"]) for voucher in vouchers] == list(range(PRICE, paid + 1, PRICE))
    assert {voucher["channelId"] for voucher in vouchers} == {client.channel_id}


def test_stream_asks_for_more(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    url = f"{net.http}/sse?n=3"
    challenge = client.ask(url).challenge
    payload = client.open_payload(client.prepare_open(challenge, DEPOSIT), PRICE)
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(client.pay, "GET", url, challenge, payload)
        deadline = time.monotonic() + 10
        while client.channel_id not in {channel["channelId"] for channel in net.channels()}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert client.voucher(url, challenge, 3 * PRICE, "HEAD").status == 204
        answer = stream.result(10)
    assert answer.header("payment-receipt") is None
    events = [oracle.call("parseEvent", event=text) for text in answer.body.decode().split("\n\n") if text]
    kinds = [event["type"] for event in events]
    assert [kind for kind in kinds if kind != "payment-need-voucher"] == ["message"] * 3 + ["payment-receipt"]
    assert "payment-need-voucher" in kinds


def test_chat_completion_stream(net: Devnet, client: HandClient) -> None:
    url = f"{net.http}/v1/chat/completions"
    body = json.dumps({"model": "m", "stream": True, "max_tokens": 2}).encode()
    headers = {"content-type": "application/json"}
    challenge = send(net, "POST", url, headers, body).challenge
    payload = client.open_payload(client.prepare_open(challenge, DEPOSIT), 2 * PRICE)
    text = client.pay("POST", url, challenge, payload, body, headers).body.decode()
    chunks = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert [json.loads(chunk)["choices"][0]["delta"]["content"] for chunk in chunks[:2]] == ["tok0", "tok1"]
    assert chunks[2] == "[DONE]"


def test_payment_beside_the_clients_own_authorization(net: Devnet, client: HandClient) -> None:
    url, bearer = f"{net.http}/auth", {"authorization": "Bearer secret"}
    assert send(net, "GET", url).status == 401
    challenge = send(net, "GET", url, bearer).challenge
    assert 'header="Payment-Authorization"' in challenge
    payload = client.open_payload(client.prepare_open(challenge, DEPOSIT), PRICE)
    answer = client.pay("GET", url, challenge, payload, headers=bearer, header="payment-authorization")
    assert answer.status == 200


def test_choice_of_challenges(net: Devnet, oracle: Oracle, client: HandClient) -> None:
    joined = client.ask(f"{net.http}/multi")
    split = client.ask(f"{net.http}/multi?split=1")
    for answer, fields in ((joined, 1), (split, 2)):
        values = [value for name, value in answer.headers if name.lower() == "www-authenticate"]
        assert len(values) == fields
        challenges = oracle.call("parseChallenges", header=", ".join(values))
        assert [challenge["intent"] for challenge in challenges] == ["session", "charge"]
    challenge = next(value for name, value in split.headers if name.lower() == "www-authenticate")
    payload = client.open_payload(client.prepare_open(challenge, DEPOSIT), PRICE)
    assert client.pay("GET", f"{net.http}/multi", challenge, payload).status == 200


# ---------------------------------------------------------------------- accounts and faults


def test_fund(net: Devnet) -> None:
    address = "0x" + secrets.token_hex(20)
    net.fund(address, 1_234_567)
    assert net.balance(address) == 1_234_567


def test_account_with_little_money_can_open(net: Devnet, oracle: Oracle) -> None:
    account = net.new_account(100_000)
    client = HandClient(net, oracle, account)
    answer, _challenge = client.open(f"{net.http}/req", DEPOSIT, PRICE)
    assert answer.status == 200
    assert net.balance(account.address) == 100_000 - DEPOSIT - net.fees(account.address)


def test_faults(faulty: Devnet) -> None:
    net, mine = faulty, RpcClient(f"{faulty.rpc_url}/mine", timeout=5)

    net.fault("eth_chainId", "error", code=-32005, message="slow down", path="/mine")
    assert net.rpc("eth_chainId") == hex(net.chain_id), "another path"
    with pytest.raises(RpcError, match="slow down"):
        mine.call("eth_chainId")
    assert mine.call("eth_chainId") == hex(net.chain_id), "only once"

    net.fault("eth_*", "result", result="0x1", n=2, path="/mine")
    assert [mine.call("eth_chainId"), mine.call("eth_gasPrice")] == ["0x1", "0x1"]

    net.fault("eth_chainId", "drop", n=-1, path="/mine")
    with pytest.raises(OSError, match=r"without response|reset"):
        mine.call("eth_chainId")
    net.clear_faults()

    net.fault("eth_chainId", "http", code=429, path="/mine")
    with pytest.raises(ValueError, match="Expecting value"):
        mine.call("eth_chainId")

    net.fault("eth_chainId", "delay", seconds=0.3, path="/mine")
    begin = time.monotonic()
    assert mine.call("eth_chainId") == hex(net.chain_id)
    assert time.monotonic() - begin >= 0.3

    net.fault("eth_chainId", "hang", path="/mine")
    hasty = RpcClient(f"{net.rpc_url}/mine", timeout=0.3)
    with pytest.raises(TimeoutError):
        hasty.call("eth_chainId")

    net.rpc("devnet_resetCalls")
    mine.call("eth_chainId")
    assert net.rpc_calls("/mine") == {"eth_chainId": 1}


def test_answer_to_an_open_is_lost(faulty: Devnet, client: HandClient) -> None:
    """The worst case: the money is in the channel, and the server answers as if nothing had happened."""
    net, url = faulty, f"{faulty.http}/req"
    challenge = client.ask(url).challenge
    transaction = client.prepare_open(challenge, DEPOSIT)
    net.fault("eth_sendRawTransaction*", "error", after=True, path="/server")
    answer = client.pay("GET", url, challenge, client.open_payload(transaction, PRICE))
    assert (answer.status, answer.problem) == (500, "internal-payment-error")
    assert chain_state(client) == (0, DEPOSIT, 0)


@pytest.mark.fresh
def test_nothing_survives_a_killed_parent() -> None:
    root = PEERS.parents[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.peers.devnet"], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    info = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for url in (info["rpc"], info["anvil"], info["http"], info["https"], info["admin"]):
        parts = urlsplit(url)
        deadline = time.monotonic() + 5
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", parts.port or 0)) != 0:
                    break
            assert time.monotonic() < deadline, f"{url} still answers"
            time.sleep(0.05)
    shutil.rmtree(info["logs"])  # the one thing that nobody is left to remove


# ---------------------------------------------------------------------- the oracle


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_oracle_and_mppx_agree_on_vouchers(oracle: Oracle, net: Devnet, version: str) -> None:
    voucher = {
        "version": version,
        "escrow": net.escrow,
        "chainId": net.chain_id,
        "channelId": "0x" + secrets.token_hex(32),
        "cumulativeAmount": str(1 << 90),
    }
    signature = oracle.call("signVoucher", privateKey=net.payer.private_key, **voucher)
    check = {**voucher, "signature": signature}
    assert oracle.call("verifyVoucher", signer=net.payer.address, **check) is True
    assert oracle.call("verifyVoucher", signer=net.payee.address, **check) is False
    other = "v1" if version == "v2" else "v2"
    assert oracle.call("verifyVoucher", signer=net.payer.address, **{**check, "version": other}) is False


def test_oracle_round_trips(oracle: Oracle, net: Devnet) -> None:
    challenge = {
        "id": "x",
        "realm": 'quo"ted',
        "method": "tempo",
        "intent": "session",
        "request": {"amount": "1", "text": "ü"},
        "expires": "2030-01-01T00:00:00Z",
    }
    header = oracle.call("challengeHeader", challenge=challenge)
    assert oracle.call("parseChallenge", header=header) == challenge
    credential = oracle.call("credential", challenge=header, payload={"action": "voucher"}, source="did:x")
    assert oracle.call("parseCredential", header=credential) == {
        "challenge": challenge,
        "payload": {"action": "voucher"},
        "source": "did:x",
    }
    signed = oracle.call("challengeHeader", challenge={**challenge, "id": None, "secretKey": "s" * 32})
    assert oracle.call("verifyChallenge", header=signed, secretKey="s" * 32) is True
    assert oracle.call("verifyChallenge", header=signed, secretKey="t" * 32) is False
    with pytest.raises(OracleError):
        oracle.call("parseChallenge", header="Basic x")
    with pytest.raises(OracleError, match="no such operation"):
        oracle.call("nonsense")


def test_shim_and_viem_agree_on_transactions(oracle: Oracle, client: HandClient) -> None:
    raw = client.sign_transaction("0x1234")
    parsed = parse_transaction(bytes.fromhex(raw[2:]))
    assert "0x" + parsed.sender.hex() == client.account.address.lower()
    assert parsed.calls[0].data == b"\x12\x34"
    viem = oracle.call("expiringNonceHash", transaction=raw, sender=client.account.address)
    assert "0x" + parsed.expiring_nonce_hash.hex() == viem


def test_npm_packages_are_the_pinned_ones() -> None:
    wanted = {"mppx": "0.11.0", "mppx-v1": "0.7.0", "viem": "2.55.13", "solc": "0.8.30"}
    for name, version in wanted.items():
        assert json.loads((PEERS / "node_modules" / name / "package.json").read_text())["version"] == version
    lock = (PEERS / "package-lock.json").read_text()
    assert '"resolved"' not in lock, "see .npmrc: the lock names no host"
