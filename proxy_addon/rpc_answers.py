"""JSON-RPC answers, read strictly: what is not exactly what was asked for is unusable, and named so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson

from proxy_addon.methods.abi import parse_address, parse_bytes32, shown, words
from proxy_addon.methods.contract import ChainHead

T = TypeVar("T")

_QUANTITY: Final = re.compile(r"0x[0-9a-fA-F]{1,64}\Z")
_DATA: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*\Z")


class Unusable(Exception):
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


def result_of(answer: bytes) -> object:
    try:
        message = orjson.loads(answer)  # bounded in depth: json's own has ended a process on "[[[[…"
    except ValueError:
        raise Unusable("no JSON") from None
    if not isinstance(message, dict) or message.get("id") != 1:
        raise Unusable("no JSON-RPC answer to our call")
    error = message.get("error")
    if error is not None:
        text = error.get("message") if isinstance(error, dict) else error
        raise Unusable(f"refused: {printable(text if isinstance(text, str) else shown(text))}", refused=True)
    if "result" not in message:
        raise Unusable("neither a result nor an error")
    return message["result"]


def decoded(value: object, decode: Callable[[object], T]) -> T:
    try:
        return decode(value)
    except ValueError as error:
        raise Unusable(printable(error)) from None


def printable(value: object) -> str:
    text = str(value)[:200]
    return "".join(character if character.isprintable() else "�" for character in text)


def log_query(
    address: str, topics: Sequence[str | None], from_block: int, to_block: int | None
) -> tuple[dict[str, Any], Callable[[object], tuple[Log, ...]]]:
    """What ``eth_getLogs`` is asked, and what reads its answer. Raises ``ValueError`` for a log not asked for."""
    query = {
        "address": address,
        "topics": list(topics),
        "fromBlock": hex(from_block),
        "toBlock": "latest" if to_block is None else hex(to_block),
    }

    def check(value: object) -> tuple[Log, ...]:
        found = logs_of(value)
        for log in found:
            if log.address != address.lower() or not _matches(log.topics, topics):
                raise ValueError("a log that was not asked for")
            if log.block_number < from_block or (to_block is not None and log.block_number > to_block):
                raise ValueError("a log of a block that was not asked for")
        return found

    return query, check


def _matches(topics: tuple[str, ...], wanted: Sequence[str | None]) -> bool:
    return len(topics) >= len(wanted) and all(
        want is None or have == want.lower() for have, want in zip(topics, wanted, strict=False)
    )


def quantity(value: object, what: str = "result") -> int:
    if not isinstance(value, str) or not _QUANTITY.match(value):
        raise ValueError(f"{what} is {shown(value)}, no quantity")
    return int(value, 16)


def data_of(value: object, what: str = "result") -> bytes:
    if not isinstance(value, str) or not _DATA.match(value):
        raise ValueError(f"{what} is {shown(value)}, no data")
    return bytes.fromhex(value[2:])


def uint256(value: object) -> int:
    return int.from_bytes(words(data_of(value), 1, "result")[0], "big")


def _mapping(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(value)}, no object")
    return value


def head_of(value: object) -> ChainHead:
    block = _mapping(value, "block")
    return ChainHead(
        number=quantity(block.get("number"), "block number"),
        timestamp=quantity(block.get("timestamp"), "block timestamp"),
        base_fee=quantity(block.get("baseFeePerGas"), "base fee"),
    )


def block_of(value: object) -> tuple[ChainHead, str]:
    """A block and its hash: two of the same number are the same block only if that is the same."""
    return head_of(value), parse_bytes32(_mapping(value, "block").get("hash"), "block hash")


def receipt_of(value: object, expected: str) -> TxReceipt | None:
    if value is None:
        return None
    receipt = _mapping(value, "receipt")
    if parse_bytes32(receipt.get("transactionHash"), "transaction hash") != expected:
        raise ValueError("the receipt of another transaction")
    status = quantity(receipt.get("status"), "status")
    if status > 1:
        raise ValueError(f"status is {status}")
    return TxReceipt(
        tx_hash=expected,
        block_number=quantity(receipt.get("blockNumber"), "block number"),
        succeeded=status == 1,
        gas_used=quantity(receipt.get("gasUsed"), "gas used"),
        effective_gas_price=quantity(receipt.get("effectiveGasPrice"), "gas price"),
        logs=logs_of(receipt.get("logs")),
        fee_payer=_optional_address(receipt.get("feePayer"), "fee payer"),
        fee_token=_optional_address(receipt.get("feeToken"), "fee token"),
    )


def _optional_address(value: object, what: str) -> str | None:
    return None if value is None else parse_address(value, what)


def logs_of(value: object) -> tuple[Log, ...]:
    if not isinstance(value, list):
        raise ValueError(f"logs are {shown(value)}, no list")
    return tuple(_log(_mapping(item, "log")) for item in value)


def _log(log: Mapping[str, Any]) -> Log:
    topics = log.get("topics")
    if not isinstance(topics, list) or len(topics) > 4:
        raise ValueError("a log's topics are a list of at most four")
    return Log(
        address=parse_address(log.get("address"), "log address"),
        topics=tuple(parse_bytes32(topic, "topic") for topic in topics),
        data=data_of(log.get("data"), "log data"),
        block_number=quantity(log.get("blockNumber"), "log block"),
        tx_hash=parse_bytes32(log.get("transactionHash"), "log transaction"),
    )
