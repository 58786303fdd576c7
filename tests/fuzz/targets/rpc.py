"""The answer of a chain's RPC endpoint to one call.

- Nothing but `Unusable` is raised, and its words can go to a log: a caller sees `ChainUnavailable`.
- Whatever is read has its bounds: quantities 256 bits, hashes and addresses their size, at most four topics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from proxy_addon import rpc_answers
from proxy_addon.chain import fee_of
from tests.fuzz import samples
from tests.fuzz.oracle import amount, loggable, lower_hex
from tests.fuzz.target import Target

T = TypeVar("T")
HASH = samples.OPENING["transaction_hash"]
UINT256_MAX = 2**256 - 1


def one_input(data: bytes) -> None:
    try:
        result = rpc_answers.result_of(data)
    except rpc_answers.Unusable as error:
        loggable(str(error))
        return
    if (number := read(result, rpc_answers.quantity)) is not None:
        amount(number, UINT256_MAX)
    if (balance := read(result, rpc_answers.uint256)) is not None:
        amount(balance, UINT256_MAX)
    if (head := read(result, rpc_answers.head_of)) is not None:
        for value in (head.number, head.timestamp, head.base_fee):
            amount(value, UINT256_MAX)
    if (found := read(result, rpc_answers.block_of)) is not None:
        assert found[0] == head
        lower_hex(found[1], 32)
    if (receipt := read(result, lambda value: rpc_answers.receipt_of(value, HASH))) is not None:
        check_receipt(receipt)
    for log in read(result, rpc_answers.logs_of) or ():
        check_log(log)
    raw = read(result, rpc_answers.data_of)
    assert raw is None or "0x" + raw.hex() == str(result).lower()


def read(value: object, decode: Callable[[object], T]) -> T | None:
    try:
        return rpc_answers.decoded(value, decode)
    except rpc_answers.Unusable as error:
        loggable(str(error))
        return None


def check_receipt(receipt: rpc_answers.TxReceipt) -> None:
    assert receipt.tx_hash == HASH
    for value in (receipt.block_number, receipt.gas_used, receipt.effective_gas_price):
        amount(value, UINT256_MAX)
    amount(fee_of(receipt), UINT256_MAX**2)
    lower_hex(receipt.fee_payer, 20)
    lower_hex(receipt.fee_token, 20)
    for log in receipt.logs:
        check_log(log)


def check_log(log: rpc_answers.Log) -> None:
    lower_hex(log.address, 20)
    lower_hex(log.tx_hash, 32)
    amount(log.block_number, UINT256_MAX)
    assert len(log.topics) <= 4
    for topic in log.topics:
        lower_hex(topic, 32)


def seeds() -> dict[str, bytes]:
    def answer(result: object) -> bytes:
        return samples.dumps({"jsonrpc": "2.0", "id": 1, "result": result})

    log = {
        "address": samples.VECTORS["escrow"],
        "topics": [HASH, HASH],
        "data": "0x" + "00" * 31 + "05",
        "blockNumber": "0x10",
        "transactionHash": HASH,
    }
    receipt = {
        "transactionHash": HASH,
        "status": "0x1",
        "blockNumber": "0x10",
        "gasUsed": "0xc350",
        "effectiveGasPrice": "0x4a817c800",
        "logs": [log],
        "feePayer": samples.VECTORS["payer"],
        "feeToken": samples.VECTORS["token"],
    }
    block = {
        "hash": HASH,
        "number": "0x10",
        "timestamp": "0x6b03f4e0",
        "baseFeePerGas": "0x4a817c800",
        "transactions": [],
    }
    return {
        "quantity.json": answer("0xa5bf"),
        "word.json": answer("0x" + "00" * 30 + "c350"),
        "block.json": answer(block),
        "receipt.json": answer(receipt),
        "no_receipt.json": answer(None),
        "logs.json": answer([log, {**log, "topics": []}]),
        "refused.json": b'{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"already known"}}',
        # What it is told to show of a value must not depend on how deep the value is.
        "deep_result.json": b'{"id":1,"result":' + b"[" * 1000 + b"]" * 1000 + b"}",
        "deep_error.json": b'{"id":1,"error":{"message":' + b"[" * 1000 + b"]" * 1000 + b"}}",
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b'"id":1',
            b'"result":',
            b'"error":',
            b'"message":',
            b"null",
            b"0x",
            b'"logs":[',
            b'"topics":[',
            b"true",
        ),
        *(
            b'"blockNumber":',
            b'"transactionHash":',
            b'"status":"0x1"',
            b'"data":"0x"',
            b"1.0",
            b"[[[[",
            b"\\u0007",
        ),
        *(b'"number":', b'"timestamp":', b'"baseFeePerGas":', b'"feePayer":', b"ff" * 32, b"\\u202e", b"0X"),
    ),
    longest=4096,
)
