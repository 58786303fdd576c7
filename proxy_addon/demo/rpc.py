"""The simulated chain's JSON-RPC, over real HTTP: what a payer's proxy asks of a node, and no more."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from proxy_addon.demo.chain import Block, CallFailed, Mined, SimulatedChain, TransactionRefused
from proxy_addon.demo.http1 import HttpServer, Request, Response
from proxy_addon.demo.state import Event
from proxy_addon.methods.abi import parse_address, parse_bytes32, to_bytes, to_hex

CLIENT_VERSION: Final = "bursar-demo/simulated-chain (not Tempo: no network, no real money)"
_JSON: Final = (("Content-Type", "application/json"),)


class RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class RpcServer(HttpServer):
    """``async with RpcServer(chain) as rpc: rpc.url``. `calls` counts each method."""

    def __init__(self, chain: SimulatedChain, port: int = 0) -> None:
        super().__init__(self._handle, port)
        self.chain = chain
        self.calls: Counter[str] = Counter()
        self._methods: Mapping[str, Callable[[list[Any]], object]] = {
            "web3_clientVersion": lambda _: CLIENT_VERSION,
            "eth_chainId": lambda _: hex(chain.chain_id),
            "eth_blockNumber": lambda _: hex(chain.head().number),
            "eth_getBlockByNumber": self._block_by_number,
            "eth_call": self._call,
            "eth_getTransactionReceipt": self._receipt,
            "eth_sendRawTransaction": self._send_raw,
            "eth_getLogs": self._logs,
        }

    async def _handle(self, request: Request) -> Response:
        if request.method != "POST":
            return Response(405, (("Allow", "POST"),))
        try:
            message = orjson.loads(request.body)
        except ValueError:
            return _answer({"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "no JSON"}})
        if isinstance(message, list):
            return _answer([self._one(item) for item in message])
        return _answer(self._one(message))

    def _one(self, message: object) -> dict[str, object]:
        if not isinstance(message, dict) or not isinstance(message.get("method"), str):
            return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no request"}}
        answer: dict[str, object] = {"jsonrpc": "2.0", "id": message.get("id")}
        method, params = message["method"], message.get("params") or []
        self.calls[method] += 1
        try:
            if method not in self._methods:
                raise RpcError(-32601, f"{method} is not part of the simulation")
            answer["result"] = self._methods[method](params)
        except RpcError as error:
            answer["error"] = {"code": error.code, "message": str(error)}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            answer["error"] = {"code": -32602, "message": f"invalid params: {error}"}
        return answer

    def _number(self, tag: object) -> int:
        if not isinstance(tag, str):
            raise RpcError(-32602, f"invalid params: block {tag!r}")
        if tag in ("latest", "safe", "finalized", "pending"):
            return self.chain.head().number
        return 0 if tag == "earliest" else int(tag, 16)

    def _block_by_number(self, params: list[Any]) -> object:
        block = self.chain.block(self._number(params[0]))
        if block is None:
            return None
        return {
            "number": hex(block.number),
            "hash": block.hash,
            "parentHash": block.parent,
            "timestamp": hex(block.timestamp),
            "baseFeePerGas": hex(self.chain.base_fee),
            "gasLimit": hex(500_000_000),
            "gasUsed": hex(sum(self.chain.transactions[one].gas_used for one in block.transactions)),
            "transactions": list(block.transactions),
        }

    def _call(self, params: list[Any]) -> object:
        request = params[0]
        number = self._number(params[1] if len(params) > 1 else "latest")
        if self.chain.block(number) is None:
            raise RpcError(-32001, f"there is no block {number}")
        data = to_bytes(request.get("data") or request.get("input") or "0x")
        try:
            return to_hex(self.chain.call(parse_address(request["to"], "to"), data, number))
        except CallFailed as error:
            raise RpcError(3, str(error)) from error

    def _receipt(self, params: list[Any]) -> object:
        mined = self.chain.transactions.get(parse_bytes32(params[0], "transaction hash"))
        return None if mined is None else _receipt(mined)

    def _send_raw(self, params: list[Any]) -> object:
        try:
            return self.chain.send(to_bytes(params[0]))
        except TransactionRefused as error:
            raise RpcError(-32000, str(error)) from error

    def _logs(self, params: list[Any]) -> object:
        query = params[0]
        address = query.get("address")
        found = self.chain.logs(
            None if address is None else parse_address(address, "address"),
            query.get("topics") or [],
            self._number(query.get("fromBlock", "latest")),
            self._number(query.get("toBlock", "latest")),
        )
        return [_log(event, mined, index) for mined, index, event in found]


def _answer(message: object) -> Response:
    return Response(200, _JSON, json.dumps(message).encode())


def _receipt(mined: Mined) -> dict[str, object]:
    return {
        "transactionHash": mined.hash,
        "transactionIndex": "0x0",
        "blockHash": mined.block.hash,
        "blockNumber": hex(mined.block.number),
        "type": "0x76",
        "status": "0x1" if mined.succeeded else "0x0",
        "from": mined.sender,
        "to": mined.to,
        "contractAddress": None,
        "gasUsed": hex(mined.gas_used),
        "cumulativeGasUsed": hex(mined.gas_used),
        "effectiveGasPrice": hex(mined.gas_price),
        "feePayer": mined.sender,
        "feeToken": mined.fee_token,
        "logs": [_log(event, mined, index) for index, event in enumerate(mined.events)],
        "logsBloom": "0x" + "00" * 256,
    }


def _log(event: Event, mined: Mined, index: int) -> dict[str, object]:
    block: Block = mined.block
    return {
        "address": event.address,
        "topics": list(event.topics),
        "data": to_hex(event.data),
        "blockNumber": hex(block.number),
        "blockHash": block.hash,
        "transactionHash": mined.hash,
        "transactionIndex": "0x0",
        "logIndex": hex(index),
        "removed": False,
    }
