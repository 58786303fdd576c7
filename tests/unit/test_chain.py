from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import threading
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy_addon.chain import ChainClient, RpcRefused, fee_of
from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import keccak256, to_bytes, to_hex
from proxy_addon.methods.contract import ChainHead, ChainReader
from proxy_addon.rpc_answers import Log, TxReceipt
from tests.unit.methods.samples import ADDRESS, TOKEN

CHAIN_ID = 42431
SECRET = "s3cret-api-key"
HASH = "0x" + "ab" * 32
RAW = "0x76c0"
RAW_HASH = to_hex(keccak256(to_bytes(RAW)))

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class Endpoint:
    """A real HTTP server on loopback that answers JSON-RPC as it is told."""

    def __init__(self) -> None:
        self.results: dict[str, object] = {"eth_chainId": hex(CHAIN_ID)}
        self.answer: Answer | None = None
        self.asked: list[dict[str, Any]] = []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None: ...

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                message = json.loads(body)
                endpoint.asked.append({**message, "path": self.path})
                if endpoint.answer is not None and message["method"] != "eth_chainId":
                    endpoint.answer(self, message)
                else:
                    result = endpoint.results.get(message["method"])
                    reply(self, {"jsonrpc": "2.0", "id": message["id"], "result": result})

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        self.host = f"127.0.0.1:{self.server.server_address[1]}"
        self.url = f"http://user:{SECRET}@{self.host}/v2/{SECRET}?key={SECRET}"

    def methods(self) -> list[str]:
        return [message["method"] for message in self.asked]

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


def reply(handler: BaseHTTPRequestHandler, content: object, status: int = 200) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    handler.send_response(status)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def says(content: object, status: int = 200) -> Answer:
    return lambda handler, message: reply(handler, content, status)


def refuses(message: object, code: int = -32000) -> Answer:
    return lambda handler, call: reply(
        handler, {"jsonrpc": "2.0", "id": call["id"], "error": {"code": code, "message": message}}
    )


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    started = Endpoint()
    yield started
    started.stop()


@pytest.fixture
def second() -> Iterator[Endpoint]:
    started = Endpoint()
    yield started
    started.stop()


@pytest.fixture
async def chain(endpoint: Endpoint) -> AsyncIterator[ChainClient]:
    client = ChainClient([endpoint.url], CHAIN_ID, timeout_s=5)
    yield client
    await client.aclose()


def block(**changes: Any) -> dict[str, Any]:
    return {"number": "0x7", "timestamp": "0x6b0", "baseFeePerGas": "0x4a8", "transactions": []} | changes


def log(**changes: Any) -> dict[str, Any]:
    fields = {
        "address": TOKEN,
        "topics": [HASH],
        "data": "0x00ff",
        "blockNumber": "0x7",
        "transactionHash": HASH,
    }
    return fields | changes


def receipt(**changes: Any) -> dict[str, Any]:
    fields = {
        "transactionHash": HASH,
        "blockNumber": "0x7",
        "status": "0x1",
        "gasUsed": "0x10",
        "effectiveGasPrice": "0x20",
        "logs": [log()],
        "feePayer": "0xF39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
        "feeToken": None,
    }
    return fields | changes


# ---------------------------------------------------------------- honest answers


async def test_what_an_honest_endpoint_says_is_believed(endpoint: Endpoint, chain: ChainClient) -> None:
    reader: ChainReader = chain
    endpoint.results |= {
        "eth_getBlockByNumber": block(),
        "eth_call": "0x" + "00" * 31 + "2a",
        "eth_getTransactionReceipt": receipt(),
        "eth_getLogs": [log()],
        "eth_sendRawTransaction": RAW_HASH,
    }
    assert await chain.chain_id() == CHAIN_ID
    assert await reader.head() == ChainHead(number=7, timestamp=1712, base_fee=1192)
    assert await reader.balance(TOKEN, ADDRESS) == 42
    assert await reader.call(TOKEN, b"\x01", block="0x7") == bytes(31) + b"\x2a"
    expected_log = Log(TOKEN, (HASH,), b"\x00\xff", 7, HASH)
    assert await chain.receipt(HASH.upper().replace("0X", "0x")) == TxReceipt(
        HASH, 7, True, 16, 32, (expected_log,), ADDRESS, None
    )
    assert await chain.logs(TOKEN, [HASH], from_block=7, to_block=7) == (expected_log,)
    assert await chain.logs(TOKEN, [None], from_block=0) == (expected_log,)
    assert await chain.send_raw(RAW) == RAW_HASH
    params = {message["method"]: message["params"] for message in endpoint.asked}
    assert params["eth_call"] == [{"to": TOKEN, "data": "0x01"}, "0x7"]
    assert params["eth_getLogs"][0] == {
        "address": TOKEN, "topics": [None], "fromBlock": "0x0", "toBlock": "latest"
    }  # fmt: skip


async def test_the_chain_is_verified_once_and_before_anything_else(
    endpoint: Endpoint, chain: ChainClient
) -> None:
    endpoint.results["eth_getBlockByNumber"] = block()
    await chain.head()
    await chain.head()
    assert endpoint.methods() == ["eth_chainId", "eth_getBlockByNumber", "eth_getBlockByNumber"]


async def test_an_unknown_transaction_has_no_receipt(chain: ChainClient) -> None:
    assert await chain.receipt(HASH) is None


async def test_a_failed_transaction_is_seen(endpoint: Endpoint, chain: ChainClient) -> None:
    endpoint.results["eth_getTransactionReceipt"] = receipt(status="0x0", logs=[])
    found = await chain.receipt(HASH)
    assert found is not None
    assert not found.succeeded


async def test_it_can_be_used_again_after_closing(endpoint: Endpoint, chain: ChainClient) -> None:
    endpoint.results["eth_getBlockByNumber"] = block()
    await chain.head()
    await chain.aclose()
    await chain.aclose()
    assert (await chain.head()).number == 7


def test_a_fee_is_gas_times_price_in_the_tokens_units() -> None:
    assert fee_of(TxReceipt(HASH, 7, True, 561_028, 18_500_000_000, ())) == 10_380


# ---------------------------------------------------------------- lies

Ask = Callable[[ChainClient], Any]
ASKS: dict[str, Ask] = {
    "eth_getBlockByNumber": lambda chain: chain.head(),
    "eth_call": lambda chain: chain.balance(TOKEN, ADDRESS),
    "eth_getTransactionReceipt": lambda chain: chain.receipt(HASH),
    "eth_getLogs": lambda chain: chain.logs(TOKEN, [HASH], from_block=5, to_block=9),
    "eth_sendRawTransaction": lambda chain: chain.send_raw(RAW),
}

LIES: list[tuple[str, object, str]] = [
    ("eth_getBlockByNumber", None, "no object"),
    ("eth_getBlockByNumber", [], "no object"),
    ("eth_getBlockByNumber", block(number=None), "block number"),
    ("eth_getBlockByNumber", block(number=7), "block number"),
    ("eth_getBlockByNumber", block(number="7"), "block number"),
    ("eth_getBlockByNumber", block(number="0x"), "block number"),
    ("eth_getBlockByNumber", block(number="0x-7"), "block number"),
    ("eth_getBlockByNumber", block(number="0x" + "f" * 65), "block number"),
    ("eth_getBlockByNumber", block(timestamp="0x1_0"), "timestamp"),
    ("eth_getBlockByNumber", {"number": "0x1", "timestamp": "0x1"}, "base fee"),
    ("eth_call", "0x", "expected 32"),
    ("eth_call", "0x" + "00" * 33, "expected 32"),
    ("eth_call", "0x0", "no data"),
    ("eth_call", "00" * 32, "no data"),
    ("eth_call", {"0x": 1}, "no data"),
    ("eth_getTransactionReceipt", receipt(transactionHash="0x" + "cd" * 32), "another transaction"),
    ("eth_getTransactionReceipt", receipt(transactionHash=None), "transaction hash"),
    ("eth_getTransactionReceipt", receipt(status="0x2"), "status is 2"),
    ("eth_getTransactionReceipt", receipt(status=True), "status"),
    ("eth_getTransactionReceipt", receipt(gasUsed=16), "gas used"),
    ("eth_getTransactionReceipt", receipt(effectiveGasPrice=None), "gas price"),
    ("eth_getTransactionReceipt", receipt(logs=None), "logs"),
    ("eth_getTransactionReceipt", receipt(logs=[1]), "log is 1"),
    ("eth_getTransactionReceipt", receipt(feePayer="0x1"), "fee payer"),
    ("eth_getTransactionReceipt", "0x", "no object"),
    ("eth_getLogs", None, "no list"),
    ("eth_getLogs", [log(topics=None)], "topics"),
    ("eth_getLogs", [log(topics=[HASH] * 5)], "topics"),
    ("eth_getLogs", [log(topics=[])], "not asked for"),
    ("eth_getLogs", [log(topics=["0x" + "cd" * 32])], "not asked for"),
    ("eth_getLogs", [log(address="0x" + "11" * 20)], "not asked for"),
    ("eth_getLogs", [log(blockNumber="0x4")], "block that was not"),
    ("eth_getLogs", [log(blockNumber="0xa")], "block that was not"),
    ("eth_getLogs", [log(blockNumber=None)], "log block"),
    ("eth_getLogs", [log(data="ff")], "log data"),
    ("eth_sendRawTransaction", HASH, "not that of the transaction"),
    ("eth_sendRawTransaction", True, "transaction hash"),
]


@pytest.mark.parametrize(("method", "result", "complaint"), LIES)
async def test_a_malformed_result_is_refused(
    endpoint: Endpoint, chain: ChainClient, method: str, result: object, complaint: str
) -> None:
    endpoint.results[method] = result
    with pytest.raises(ChainUnavailable, match=complaint) as caught:
        await ASKS[method](chain)
    assert not isinstance(caught.value, RpcRefused)
    assert endpoint.host in str(caught.value)
    assert SECRET not in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=10)
    | st.just("0x" + "00" * 32),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*block(), *receipt(), *log()]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=st.sampled_from(sorted(ASKS)), result=JSON)
def test_whatever_an_endpoint_says_nothing_else_is_raised(
    endpoint: Endpoint, method: str, result: object
) -> None:
    endpoint.results[method] = result

    async def ask() -> None:
        client = ChainClient([endpoint.url], CHAIN_ID, timeout_s=5)
        try:
            await ASKS[method](client)
        except ChainUnavailable:
            pass
        finally:
            await client.aclose()

    asyncio.run(ask())


def hang(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    handler.connection.settimeout(5)
    handler.rfile.read(1)  # returns when the client has given up


def trickle(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    """One byte every now and then: no single read takes long, the answer never ends."""
    handler.send_response(200)
    handler.send_header("content-length", "1000000")
    handler.end_headers()
    stop = threading.Event()
    for _ in range(500):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            return
        stop.wait(0.02)


def flood(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-length", str(1 << 30))
    handler.end_headers()
    try:
        for _ in range(1 << 14):
            handler.wfile.write(b" " * 65_536)
    except OSError:
        handler.close_connection = True


def cut(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "100")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


def drop(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def not_http(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    handler.wfile.write(b"\x00\xffhello\r\n\r\n")
    handler.close_connection = True


def bad_gzip(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-encoding", "gzip")
    handler.send_header("content-length", "4")
    handler.end_headers()
    handler.wfile.write(b"junk")


def packed(data: bytes, coding: str = "gzip") -> Answer:
    def answer(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
        handler.send_response(200)
        handler.send_header("content-encoding", coding)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def redirect(handler: BaseHTTPRequestHandler, message: dict[str, Any]) -> None:
    handler.send_response(307)
    handler.send_header("location", "http://127.0.0.1:1/elsewhere")
    handler.send_header("content-length", "0")
    handler.end_headers()


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (says(b""), "no JSON"),
        (says(b"<html>"), "no JSON"),
        (says(b"\xff\xfe"), "no JSON"),
        (says(b"[" * 100_000), "no JSON"),
        (says([]), "no JSON-RPC"),
        (says({"jsonrpc": "2.0", "id": 2, "result": block()}), "our call"),
        (says({"jsonrpc": "2.0", "result": block()}), "our call"),
        (says({"id": 1}), "neither"),
        (says({"id": 1, "result": block()}, 500), "HTTP status 500"),
        (says({"id": 1, "result": block()}, 404), "HTTP status 404"),
        (says(b"", 429), "HTTP status 429"),
        (redirect, "HTTP status 307"),
        (cut, "RemoteProtocolError"),
        (drop, "Error"),
        (not_http, "RemoteProtocolError"),
        (bad_gzip, "its gzip is none"),
        (packed(gzip.compress(b"{}")[:-9]), "its gzip is cut off"),
        (packed(b"{}", "br"), "packed in a way we did not ask for: br"),
        (packed(b"{}", "gzip, gzip"), "did not ask for: gzip, gzip"),
        (flood, "more than"),
    ],
)
async def test_an_answer_that_is_none(
    endpoint: Endpoint, chain: ChainClient, answer: Answer, complaint: str
) -> None:
    endpoint.answer = answer
    with pytest.raises(ChainUnavailable, match=complaint) as caught:
        await chain.head()
    assert '"].rpc in the config' in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_a_packed_answer_is_read(endpoint: Endpoint, chain: ChainClient) -> None:
    answer = json.dumps({"jsonrpc": "2.0", "id": 1, "result": block(number="0x9")}).encode()
    for coding in ("gzip", "X-GZIP"):
        endpoint.answer = packed(gzip.compress(answer), coding)
        assert (await chain.head()).number == 9


async def test_a_bomb_is_not_unpacked(endpoint: Endpoint, chain: ChainClient) -> None:
    """A megabyte that says it is a gigabyte: no more of it is ever in memory than may be."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    head = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    block = squeeze.compress(bytes(2**20)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    endpoint.answer = packed(head + 1023 * block)
    await chain.chain_id()
    tracemalloc.start()
    try:
        with pytest.raises(ChainUnavailable, match=rf"{endpoint.host}: more than 8388608 bytes") as caught:
            await chain.head()
        assert tracemalloc.get_traced_memory()[1] < 4 * 8 * 2**20
    finally:
        tracemalloc.stop()
    assert '"].rpc in the config' in str(caught.value)


@pytest.mark.parametrize("answer", [hang, trickle])
async def test_an_endless_answer_is_given_up(endpoint: Endpoint, answer: Answer) -> None:
    client = ChainClient([endpoint.url], CHAIN_ID, timeout_s=0.3)
    endpoint.answer = answer
    with pytest.raises(ChainUnavailable, match=r"no answer within 0\.3 s|ReadTimeout"):
        await client.head()
    await client.aclose()


async def test_an_endpoint_of_another_chain_is_never_asked_anything(
    endpoint: Endpoint, chain: ChainClient
) -> None:
    endpoint.results["eth_chainId"] = "0x1"
    for _ in range(2):
        with pytest.raises(ChainUnavailable, match=r"chain 42431: .*an endpoint of chain 1\b"):
            await chain.send_raw(RAW)
    assert set(endpoint.methods()) == {"eth_chainId"}


# ---------------------------------------------------------------- several endpoints


@pytest.mark.parametrize("answer", [says(b"", 503), drop, refuses("header not found")])
async def test_the_next_endpoint_is_asked(endpoint: Endpoint, second: Endpoint, answer: Answer) -> None:
    endpoint.answer = answer
    second.results["eth_getBlockByNumber"] = block(number="0x9")
    client = ChainClient([endpoint.url, second.url], CHAIN_ID, timeout_s=5)
    assert (await client.head()).number == 9
    await client.aclose()


async def test_a_wrong_chain_is_passed_over(endpoint: Endpoint, second: Endpoint) -> None:
    endpoint.results["eth_chainId"] = "0x1"
    second.results["eth_getBlockByNumber"] = block()
    client = ChainClient([endpoint.url, second.url], CHAIN_ID)
    assert (await client.head()).number == 7
    await client.aclose()


async def test_every_endpoint_is_named_when_all_fail(endpoint: Endpoint, second: Endpoint) -> None:
    endpoint.answer = says(b"", 503)
    second.stop()
    client = ChainClient([endpoint.url, second.url], CHAIN_ID)
    with pytest.raises(ChainUnavailable) as caught:
        await client.head()
    for host in (endpoint.host, second.host):
        assert f"{host}: " in str(caught.value)
    assert SECRET not in str(caught.value)
    await client.aclose()


# ---------------------------------------------------------------- refusals


async def test_a_refusal_is_told_apart_and_shown_safely(endpoint: Endpoint, chain: ChainClient) -> None:
    endpoint.answer = refuses("insufficient funds\r\n\x1b[31m" + "x" * 1000)
    with pytest.raises(RpcRefused, match="insufficient funds") as caught:
        await chain.send_raw(RAW)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("error", ["text", 5, [], {"code": 1}, {"message": None}])
async def test_an_odd_refusal_is_one_too(endpoint: Endpoint, chain: ChainClient, error: object) -> None:
    endpoint.answer = says({"id": 1, "error": error, "result": None})
    with pytest.raises(RpcRefused):
        await chain.head()


async def test_a_mixture_of_failures_is_no_refusal(endpoint: Endpoint, second: Endpoint) -> None:
    endpoint.answer = says(b"", 503)  # it may have taken the transaction
    second.answer = refuses("nonce too low")
    client = ChainClient([endpoint.url, second.url], CHAIN_ID)
    with pytest.raises(ChainUnavailable) as caught:
        await client.send_raw(RAW)
    assert not isinstance(caught.value, RpcRefused)
    await client.aclose()


@pytest.mark.parametrize(
    "text", ["already known", "ALREADY_IMPORTED: already imported", "Known transaction: 0xab"]
)
async def test_a_transaction_that_is_there_already_was_sent(
    endpoint: Endpoint, chain: ChainClient, text: str
) -> None:
    endpoint.answer = refuses(text)
    assert await chain.send_raw(RAW) == RAW_HASH


# ---------------------------------------------------------------- secrets, proxies, configuration


async def test_no_log_record_holds_the_url(
    endpoint: Endpoint, chain: ChainClient, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.results["eth_getBlockByNumber"] = block()
    with caplog.at_level(logging.DEBUG):
        await chain.head()
    assert SECRET not in caplog.text


async def test_the_environments_proxy_is_not_used(
    endpoint: Endpoint, chain: ChainClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    endpoint.results["eth_getBlockByNumber"] = block()
    assert (await chain.head()).number == 7


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8545", "ftp://host/x", "http://", "http://host:port/", "http://[::1"]
)
def test_an_endpoint_needs_a_url(url: str) -> None:
    with pytest.raises(ValueError, match="RPC endpoint is http"):
        ChainClient([url], CHAIN_ID)


def test_a_chain_needs_an_endpoint() -> None:
    with pytest.raises(ValueError, match="no RPC endpoint for chain 42431"):
        ChainClient([], CHAIN_ID)


async def test_a_host_that_does_not_resolve_is_unavailable() -> None:
    client = ChainClient(["https://rpc.invalid/" + SECRET], CHAIN_ID, timeout_s=5)
    with pytest.raises(ChainUnavailable, match=r"rpc\.invalid: ") as caught:
        await client.head()
    assert SECRET not in str(caught.value)
    await client.aclose()


async def test_a_url_that_only_looks_like_one_is_unavailable() -> None:
    client = ChainClient([f"http://127.0.0.1:1/\x01{SECRET}"], CHAIN_ID, timeout_s=5)
    with pytest.raises(ChainUnavailable, match="its URL is none") as caught:
        await client.head()
    assert SECRET not in str(caught.value)
    await client.aclose()
