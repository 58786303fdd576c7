"""JSON-RPC to the chain: reads, receipts, broadcasting. What an endpoint says is checked before it is believed.

Several endpoints are tried in order; each is asked for its chain id before anything else. What money depends on is
*firm*: so many endpoints say it alike as the config demands, of a block that is as deep as the config demands.
Whatever goes wrong, `ChainUnavailable` is all that is raised: it says nothing about the state of the chain. An
endpoint is named by its host alone, since many keep a key in the path.
"""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import orjson

from proxy_addon.agreement import agree, firm_number
from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import (
    address_word,
    keccak256,
    parse_bytes32,
    selector,
    to_bytes,
    to_hex,
)
from proxy_addon.methods.contract import ChainHead
from proxy_addon.methods.tempo_tx import fee_in_base_units
from proxy_addon.rpc_answers import (
    Log,
    TxReceipt,
    Unusable,
    block_of,
    data_of,
    decoded,
    head_of,
    log_query,
    printable,
    quantity,
    receipt_of,
    result_of,
    uint256,
)

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_ANSWER_LIMIT: Final = 8 * 1024 * 1024  # bytes, unpacked; a wide range of logs is the longest that we ask for
_GZIP: Final = 16 + zlib.MAX_WBITS
_BALANCE_OF: Final = selector("balanceOf(address)")
_ALREADY_KNOWN: Final = re.compile(
    r"already (?:known|imported|in (?:the )?pool)|known transaction", re.IGNORECASE
)


class RpcRefused(ChainUnavailable):
    """An endpoint answered with an error of its own; of a broadcast: it did not take the transaction."""


def fee_of(receipt: TxReceipt) -> int:
    """The network's fee in the fee token's base units (6 decimals), rounded up; whoever paid it."""
    return fee_in_base_units(receipt.gas_used, receipt.effective_gas_price)


class ChainClient:
    """`contract.ChainReader`, and what opening, closing and recovery need, for one chain.

    Every call raises `ChainUnavailable` if no endpoint gives a usable answer within `timeout_s` each; a firm one, if
    not `quorum` of them give the same. What is firm is of a block with `confirmations` others on top.
    """

    def __init__(
        self,
        urls: Sequence[str],
        chain_id: int,
        timeout_s: float = 10.0,
        *,
        quorum: int = 1,
        confirmations: int = 0,
    ) -> None:
        urls = tuple(dict.fromkeys(urls))  # one that is named twice has one voice
        if not urls:
            raise ValueError(f"no RPC endpoint for chain {chain_id}")
        if not 1 <= quorum <= len(urls):
            raise ValueError(f"{quorum} of {len(urls)} RPC endpoints cannot agree")
        self._endpoints = [(url, _host(url)) for url in urls]
        self._quorum = quorum
        self._confirmations = confirmations
        self._broadcasts: set[asyncio.Task[str]] = set()
        self._chain_id = chain_id
        self._timeout_s = timeout_s
        self._verified: set[str] = set()
        self._client: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()

    async def chain_id(self) -> int:
        """The chain's id, as an endpoint states it: always the one that was configured."""
        return await self._ask("eth_chainId", [], quantity)

    async def call(self, to: str, data: bytes, *, block: str = "latest") -> bytes:
        return await self._ask("eth_call", [{"to": to, "data": to_hex(data)}, block], data_of)

    async def head(self) -> ChainHead:
        """The newest block: for what is signed next. A false one would only make it expire before it lands."""
        if self._quorum == 1:
            return await self._ask("eth_getBlockByNumber", ["latest", False], head_of)
        return await self._agreed_block(0)

    async def time_of(self, block_number: int) -> int:
        """When a block was made, in Unix seconds."""
        head = await self._ask("eth_getBlockByNumber", [hex(block_number), False], head_of)
        return head.timestamp

    async def balance(self, token: str, holder: str) -> int:
        """Base units of `token` that `holder` has."""
        data = to_hex(_BALANCE_OF + address_word(holder))
        return await self._ask("eth_call", [{"to": token, "data": data}, "latest"], uint256)

    async def receipt(self, tx_hash: str) -> TxReceipt | None:
        """None if it is in no block that the endpoint knows: that alone proves nothing."""
        expected = parse_bytes32(tx_hash, "transaction hash")
        return await self._ask(
            "eth_getTransactionReceipt", [expected], lambda value: receipt_of(value, expected)
        )

    # -- firm

    async def firm_head(self) -> ChainHead:
        """The newest block that is believed: what money depends on is read in it, and its time is the chain's."""
        if self._quorum > 1:
            return await self._agreed_block(self._confirmations)
        newest = await self.head()
        if not self._confirmations:
            return newest
        number = max(0, newest.number - self._confirmations)
        return await self._ask("eth_getBlockByNumber", [hex(number), False], head_of)

    async def _agreed_block(self, confirmations: int) -> ChainHead:
        number = await self._agreed_number(confirmations)
        return (await self._agree("eth_getBlockByNumber", [hex(number), False], block_of))[0]

    async def _agreed_number(self, confirmations: int) -> int:
        async def ask(number: int) -> tuple[str, int]:
            head = await self._ask_endpoint(number, "eth_getBlockByNumber", ["latest", False], head_of)
            return self._endpoints[number][1], head.number

        found = await asyncio.gather(*map(ask, range(len(self._endpoints))), return_exceptions=True)
        heads = [one for one in found if not isinstance(one, BaseException)]
        if len(heads) < self._quorum:
            failures = "; ".join(
                f"{host}: {one}"
                for (_, host), one in zip(self._endpoints, found, strict=True)
                if isinstance(one, Unusable)
            )
            raise ChainUnavailable(
                f"chain {self._chain_id}: {len(heads)} of the {self._quorum} endpoints that must agree answered"
                f" ({failures})"
            )
        return firm_number(heads, self._quorum, confirmations)

    async def firm_call(self, to: str, data: bytes, at: ChainHead) -> bytes:
        return await self._agree("eth_call", [{"to": to, "data": to_hex(data)}, hex(at.number)], data_of)

    async def firm_receipt(self, tx_hash: str, at: ChainHead) -> TxReceipt | None:
        """None if the transaction is in no block up to `at`."""
        expected = parse_bytes32(tx_hash, "transaction hash")
        found = await self._agree(
            "eth_getTransactionReceipt", [expected], lambda value: receipt_of(value, expected)
        )
        return found if found is not None and found.block_number <= at.number else None

    async def firm_logs(
        self, address: str, topics: Sequence[str | None], *, from_block: int, to_block: int
    ) -> tuple[Log, ...]:
        """As `logs`; `to_block` is at most that of `firm_head`."""
        query, check = log_query(address, topics, from_block, to_block)
        return await self._agree("eth_getLogs", [query], check)

    async def _agree(self, method: str, params: list[Any], decode: Callable[[object], T]) -> T:
        if self._quorum == 1:
            return await self._ask(method, params, decode)
        return await agree(
            [host for _, host in self._endpoints],
            lambda number: self._ask_endpoint(number, method, params, decode),
            needed=self._quorum,
            unusable=Unusable,
            what=f"chain {self._chain_id}, {method}",
        )

    # -- transactions

    async def request_test_money(self, address: str) -> None:
        """A test network's faucet sends some to `address`, sooner or later. Other networks refuse."""

        def check(value: object) -> None:
            if not isinstance(value, list):
                raise ValueError("no list of transactions")

        await self._ask("tempo_fundAddress", [address], check)

    async def send_raw(self, raw: str) -> str:
        """Broadcasts a signed transaction, as often as one likes, and returns its hash.

        All endpoints get it: one that only says that it took it cannot keep it from the chain. It may have been
        sent even if this raises, except that `RpcRefused` means that no endpoint took it.
        """
        expected = to_hex(keccak256(to_bytes(raw)))

        def check(value: object) -> str:
            if parse_bytes32(value, "transaction hash") != expected:
                raise ValueError("the hash is not that of the transaction that was sent")
            return expected

        async def send(number: int) -> str:
            try:
                return await self._ask_endpoint(number, "eth_sendRawTransaction", [raw], check)
            except Unusable as error:
                if error.refused and _ALREADY_KNOWN.search(str(error)):
                    return expected
                raise

        tasks = [asyncio.Task(send(number)) for number in range(len(self._endpoints))]
        for task in tasks:  # who took it first is enough for us; the others go on
            self._broadcasts.add(task)
            task.add_done_callback(self._broadcast_ended)
        for ended in asyncio.as_completed(tasks):
            try:
                return await ended
            except Unusable:
                continue
        failures = [task.exception() for task in tasks]
        raise self._failure("eth_sendRawTransaction", [one for one in failures if isinstance(one, Unusable)])

    def _broadcast_ended(self, task: asyncio.Task[str]) -> None:
        self._broadcasts.discard(task)
        if not task.cancelled():
            task.exception()  # nobody may wait for it any more

    async def logs(
        self,
        address: str,
        topics: Sequence[str | None],
        *,
        from_block: int,
        to_block: int | None = None,
    ) -> tuple[Log, ...]:
        """The logs of one contract whose topics are those given; None stands for any."""
        query, check = log_query(address, topics, from_block, to_block)
        return await self._ask("eth_getLogs", [query], check)

    async def _ask(self, method: str, params: list[Any], decode: Callable[[object], T]) -> T:
        """The decoded result of the first endpoint that gives a usable one."""
        failures: list[Unusable] = []
        for number in range(len(self._endpoints)):
            try:
                return await self._ask_endpoint(number, method, params, decode)
            except Unusable as error:
                failures.append(error)
        raise self._failure(method, failures)

    def _failure(self, method: str, failures: Sequence[Unusable]) -> ChainUnavailable:
        """Why none of the endpoints, in their order, gave a usable answer."""
        reasons = [f"{host}: {error}" for (_, host), error in zip(self._endpoints, failures, strict=True)]
        kind = RpcRefused if all(error.refused for error in failures) else ChainUnavailable
        return kind(
            f"chain {self._chain_id}: no usable answer to {method} ({'; '.join(reasons)});"
            f' check [chains."eip155:{self._chain_id}"].rpc in the config, or try again later'
        )

    async def _ask_endpoint(
        self, number: int, method: str, params: list[Any], decode: Callable[[object], T]
    ) -> T:
        return await self._within_time(self._ask_one(self._endpoints[number][0], method, params, decode))

    async def _within_time(self, asking: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asking
        except TimeoutError:
            raise Unusable(f"no answer within {self._timeout_s:g} s") from None

    async def _ask_one(self, url: str, method: str, params: list[Any], decode: Callable[[object], T]) -> T:
        if url not in self._verified:
            await self._verify(url)
        return decoded(await self._post(url, method, params), decode)

    async def _verify(self, url: str) -> None:
        found = decoded(await self._post(url, "eth_chainId", []), quantity)
        if found != self._chain_id:
            raise Unusable(f"it is an endpoint of chain {found}")
        self._verified.add(url)

    async def _post(self, url: str, method: str, params: list[Any]) -> object:
        """The result member of the answer. Raises `Unusable`."""
        import httpx

        body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        try:
            async with self._http().stream("POST", url, content=body) as response:
                if response.status_code != 200:
                    raise Unusable(f"HTTP status {response.status_code}")
                answer = await _read_limited(response)
        except httpx.InvalidURL:
            raise Unusable("its URL is none") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise Unusable(type(error).__name__) from None  # their messages may hold the URL
        return result_of(answer)

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            # It logs each request with its URL, and URLs hold keys.
            for name in ("httpx", "httpcore"):
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = httpx.AsyncClient(
                # Only what is unpacked here, with a limit: httpx unpacks whatever a small answer says it holds.
                headers={"content-type": "application/json", "accept-encoding": "gzip"},
                timeout=self._timeout_s,
                follow_redirects=False,
                trust_env=False,  # HTTP_PROXY may well name this very proxy
            )
        return self._client


def _host(url: str) -> str:
    """What may be shown of an endpoint's URL. Raises ``ValueError`` if it has no host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, None
    if parts is None or host is None or parts.scheme not in ("http", "https"):
        raise ValueError("an RPC endpoint is http(s)://host[:port]/…")
    return host if port is None else f"{host}:{port}"


async def _read_limited(response: httpx.Response) -> bytes:
    """The body, unpacked, at no point more than the limit of it in memory. Raises `Unusable`."""
    coding = response.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip", "x-gzip"):
        raise Unusable(f"an answer that is packed in a way we did not ask for: {printable(coding)}")
    gzip = None if coding == "identity" else zlib.decompressobj(_GZIP)
    body = bytearray()
    async for chunk in response.aiter_raw():
        try:
            body += chunk if gzip is None else gzip.decompress(chunk, _ANSWER_LIMIT + 1 - len(body))
        except zlib.error:
            raise Unusable("its gzip is none") from None
        if len(body) > _ANSWER_LIMIT:
            raise Unusable(f"more than {_ANSWER_LIMIT} bytes")
    if gzip is not None and not gzip.eof:
        raise Unusable("its gzip is cut off")
    return bytes(body)
