"""JSON-RPC to the chain: reads, receipts, broadcasting. What an endpoint says is checked before it is believed.

Several endpoints are tried in order; each is asked for its chain id before anything else. Whatever goes wrong,
`ChainUnavailable` is all that is raised: it says nothing about the state of the chain. An endpoint is named by its
host alone, since many keep a key in the path.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import orjson

from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.abi import (
    address_word,
    keccak256,
    parse_address,
    parse_bytes32,
    selector,
    to_bytes,
    to_hex,
    words,
)
from proxy_addon.methods.contract import ChainHead
from proxy_addon.methods.tempo_tx import fee_in_base_units

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

_ANSWER_LIMIT: Final = 8 * 1024 * 1024  # bytes; a wide range of logs is the longest that we ask for
_BALANCE_OF: Final = selector("balanceOf(address)")
_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}\Z")
_DATA: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*\Z")
_ALREADY_KNOWN: Final = re.compile(
    r"already (?:known|imported|in (?:the )?pool)|known transaction", re.IGNORECASE
)


class RpcRefused(ChainUnavailable):
    """An endpoint answered with an error of its own; of a broadcast: it did not take the transaction."""


class _Unusable(Exception):
    """This endpoint gave no usable answer; the next one may."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Log:
    address: str
    topics: tuple[str, ...]
    data: bytes
    block_number: int
    tx_hash: str


@dataclass(frozen=True, slots=True)
class TxReceipt:
    """What became of a transaction that is in a block."""

    tx_hash: str
    block_number: int
    succeeded: bool
    gas_used: int
    effective_gas_price: int  # attodollars (1e-18) per gas
    logs: tuple[Log, ...]
    fee_payer: str | None = None
    fee_token: str | None = None


def fee_of(receipt: TxReceipt) -> int:
    """The network's fee in the fee token's base units (6 decimals), rounded up; whoever paid it."""
    return fee_in_base_units(receipt.gas_used, receipt.effective_gas_price)


class ChainClient:
    """`contract.ChainReader`, and what opening, closing and recovery need, for one chain.

    Every call raises `ChainUnavailable` if no endpoint gives a usable answer within `timeout_s` each.
    """

    def __init__(self, urls: Sequence[str], chain_id: int, timeout_s: float = 10.0) -> None:
        if not urls:
            raise ValueError(f"no RPC endpoint for chain {chain_id}")
        self._endpoints = [(url, _host(url)) for url in urls]
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
        return await self._ask("eth_chainId", [], _quantity)

    async def call(self, to: str, data: bytes, *, block: str = "latest") -> bytes:
        return await self._ask("eth_call", [{"to": to, "data": to_hex(data)}, block], _data)

    async def head(self) -> ChainHead:
        return await self._ask("eth_getBlockByNumber", ["latest", False], _head)

    async def balance(self, token: str, holder: str) -> int:
        """Base units of `token` that `holder` has."""
        data = to_hex(_BALANCE_OF + address_word(holder))
        return await self._ask("eth_call", [{"to": token, "data": data}, "latest"], _uint256)

    async def receipt(self, tx_hash: str) -> TxReceipt | None:
        """None if it is in no block that the endpoint knows: that alone proves nothing."""
        expected = parse_bytes32(tx_hash, "transaction hash")
        return await self._ask(
            "eth_getTransactionReceipt", [expected], lambda value: _receipt(value, expected)
        )

    async def send_raw(self, raw: str) -> str:
        """Broadcasts a signed transaction, as often as one likes, and returns its hash.

        It may have been sent even if this raises, except that `RpcRefused` means that no endpoint took it.
        """
        expected = to_hex(keccak256(to_bytes(raw)))

        def check(value: object) -> str:
            if _bytes32(value, "transaction hash") != expected:
                raise ValueError("the hash is not that of the transaction that was sent")
            return expected

        try:
            return await self._ask("eth_sendRawTransaction", [raw], check)
        except RpcRefused as error:
            if _ALREADY_KNOWN.search(str(error)):
                return expected
            raise

    async def logs(
        self,
        address: str,
        topics: Sequence[str | None],
        *,
        from_block: int,
        to_block: int | None = None,
    ) -> tuple[Log, ...]:
        """The logs of one contract whose topics are those given; None stands for any."""
        query = {
            "address": address,
            "topics": list(topics),
            "fromBlock": hex(from_block),
            "toBlock": "latest" if to_block is None else hex(to_block),
        }

        def check(value: object) -> tuple[Log, ...]:
            found = _logs(value)
            for log in found:
                if log.address != address.lower() or not _matches(log.topics, topics):
                    raise ValueError("a log that was not asked for")
                if log.block_number < from_block or (to_block is not None and log.block_number > to_block):
                    raise ValueError("a log of a block that was not asked for")
            return found

        return await self._ask("eth_getLogs", [query], check)

    async def _ask(self, method: str, params: list[Any], decode: Callable[[object], T]) -> T:
        """The decoded result of the first endpoint that gives a usable one."""
        reasons: list[str] = []
        refused = True
        for url, host in self._endpoints:
            try:
                return await self._within_time(self._ask_one(url, method, params, decode))
            except _Unusable as error:
                reasons.append(f"{host}: {error}")
                refused = refused and error.refused
        kind = RpcRefused if refused else ChainUnavailable
        raise kind(
            f"chain {self._chain_id}: no usable answer to {method} ({'; '.join(reasons)});"
            f' check [chains."eip155:{self._chain_id}"].rpc in the config, or try again later'
        )

    async def _within_time(self, asking: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asking
        except TimeoutError:
            raise _Unusable(f"no answer within {self._timeout_s:g} s") from None

    async def _ask_one(self, url: str, method: str, params: list[Any], decode: Callable[[object], T]) -> T:
        if url not in self._verified:
            await self._verify(url)
        return _decoded(await self._post(url, method, params), decode)

    async def _verify(self, url: str) -> None:
        found = _decoded(await self._post(url, "eth_chainId", []), _quantity)
        if found != self._chain_id:
            raise _Unusable(f"it is an endpoint of chain {found}")
        self._verified.add(url)

    async def _post(self, url: str, method: str, params: list[Any]) -> object:
        """The result member of the answer. Raises `_Unusable`."""
        import httpx

        body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        try:
            async with self._http().stream("POST", url, content=body) as response:
                if response.status_code != 200:
                    raise _Unusable(f"HTTP status {response.status_code}")
                answer = await _read_limited(response)
        except httpx.InvalidURL:
            raise _Unusable("its URL is none") from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise _Unusable(type(error).__name__) from None  # their messages may hold the URL
        return _result(answer)

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            import httpx

            # It logs each request with its URL, and URLs hold keys.
            for name in ("httpx", "httpcore"):
                logging.getLogger(name).setLevel(logging.WARNING)
            self._client = httpx.AsyncClient(
                headers={"content-type": "application/json"},
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
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.aiter_bytes(65_536):
        size += len(chunk)
        if size > _ANSWER_LIMIT:
            raise _Unusable(f"more than {_ANSWER_LIMIT} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _result(answer: bytes) -> object:
    try:
        message = orjson.loads(answer)  # bounded in depth: json's own has ended a process on "[[[[…"
    except ValueError:
        raise _Unusable("no JSON") from None
    if not isinstance(message, dict) or message.get("id") != 1:
        raise _Unusable("no JSON-RPC answer to our call")
    error = message.get("error")
    if error is not None:
        text = error.get("message") if isinstance(error, dict) else error
        raise _Unusable(f"refused: {_printable(text)}", refused=True)
    if "result" not in message:
        raise _Unusable("neither a result nor an error")
    return message["result"]


def _decoded(value: object, decode: Callable[[object], T]) -> T:
    try:
        return decode(value)
    except ValueError as error:
        raise _Unusable(_printable(error)) from None


def _printable(value: object) -> str:
    text = str(value)[:200]
    return "".join(character if character.isprintable() else "�" for character in text)


def _matches(topics: tuple[str, ...], wanted: Sequence[str | None]) -> bool:
    return len(topics) >= len(wanted) and all(
        want is None or have == want.lower() for have, want in zip(topics, wanted, strict=False)
    )


def _quantity(value: object, what: str = "result") -> int:
    if not isinstance(value, str) or not _QUANTITY.match(value):
        raise ValueError(f"{what} is {repr(value)[:40]}, no quantity")
    return int(value, 16)


def _data(value: object, what: str = "result") -> bytes:
    if not isinstance(value, str) or not _DATA.match(value):
        raise ValueError(f"{what} is {repr(value)[:40]}, no data")
    return bytes.fromhex(value[2:])


def _bytes32(value: object, what: str) -> str:
    return parse_bytes32(value, what)


def _uint256(value: object) -> int:
    return int.from_bytes(words(_data(value), 1, "result")[0], "big")


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {repr(value)[:40]}, no object")
    return value


def _head(value: object) -> ChainHead:
    block = _mapping(value, "block")
    return ChainHead(
        number=_quantity(block.get("number"), "block number"),
        timestamp=_quantity(block.get("timestamp"), "block timestamp"),
        base_fee=_quantity(block.get("baseFeePerGas"), "base fee"),
    )


def _receipt(value: object, expected: str) -> TxReceipt | None:
    if value is None:
        return None
    receipt = _mapping(value, "receipt")
    if _bytes32(receipt.get("transactionHash"), "transaction hash") != expected:
        raise ValueError("the receipt of another transaction")
    status = _quantity(receipt.get("status"), "status")
    if status > 1:
        raise ValueError(f"status is {status}")
    return TxReceipt(
        tx_hash=expected,
        block_number=_quantity(receipt.get("blockNumber"), "block number"),
        succeeded=status == 1,
        gas_used=_quantity(receipt.get("gasUsed"), "gas used"),
        effective_gas_price=_quantity(receipt.get("effectiveGasPrice"), "gas price"),
        logs=_logs(receipt.get("logs")),
        fee_payer=_optional_address(receipt.get("feePayer"), "fee payer"),
        fee_token=_optional_address(receipt.get("feeToken"), "fee token"),
    )


def _optional_address(value: object, what: str) -> str | None:
    return None if value is None else parse_address(value, what)


def _logs(value: object) -> tuple[Log, ...]:
    if not isinstance(value, list):
        raise ValueError(f"logs are {repr(value)[:40]}, no list")
    return tuple(_log(_mapping(item, "log")) for item in value)


def _log(log: Mapping[str, Any]) -> Log:
    topics = log.get("topics")
    if not isinstance(topics, list) or len(topics) > 4:
        raise ValueError("a log's topics are a list of at most four")
    return Log(
        address=parse_address(log.get("address"), "log address"),
        topics=tuple(_bytes32(topic, "topic") for topic in topics),
        data=_data(log.get("data"), "log data"),
        block_number=_quantity(log.get("blockNumber"), "log block"),
        tx_hash=_bytes32(log.get("transactionHash"), "log transaction"),
    )
