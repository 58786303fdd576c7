"""A local Tempo chain: `anvil -n tempo` behind a JSON-RPC shim that supplies the TIP-1034 channel reserve.

anvil speaks Tempo (0x76 transactions, TIP-20 tokens, sponsorship), but has no code at the address of the
channel precompile. `contracts/TempoChannelReserve.sol` is put there, and the shim does what it cannot:

1. before an `open` is sent, it stores the transaction's `expiringNonceHash` where the contract looks for it;
2. it gives the reserve an unlimited allowance of the payer's tokens, in place of the system transfer;
3. it runs the `calls` of a Tempo transaction in `eth_call`, `eth_estimateGas` and `eth_fillTransaction`, which
   anvil ignores, through `eth_simulateV1`;
4. it drops the second parameter of `eth_sendRawTransactionSync`, which anvil refuses;
5. it refuses a raw transaction that the chain already has, as Tempo's pool does; anvil takes it again and says
   nothing;
6. it has the test network's faucet, `tempo_fundAddress`.

Tests get a `devnet_*` namespace on top, over which a running chain can be made to fail:

- `devnet_setFault {method, mode, n?, path?, after?, seconds?, code?, message?, result?}`: the next `n` calls
  (default 1, -1: all) of `method` (exact, or a prefix that ends in `*`) on the URL path `path` (default: any)
  go wrong. `mode` is one of
  `error` (a JSON-RPC error), `http` (HTTP status `code`, default 503), `drop` (the connection closes without an
  answer), `hang` (no answer for `seconds`, default an hour, or until the faults are cleared; then as `drop`),
  `delay` (answered properly after `seconds`), `result` (answers `result`).
  With `after: true` the chain gets and executes the call, and only the answer goes wrong.
- `devnet_clearFaults`, `devnet_faults`.
- `devnet_calls {path?}`: how often each method was called, and `devnet_resetCalls`.

Run as a program, `python -m tests.peers.chain --anvil PATH --artifact FILE` starts anvil and the shim on free
ports and prints one JSON line. Both end when standard input ends: nothing outlives the process that started it.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import rlp
from eth_abi.abi import decode as abi_decode
from eth_abi.abi import encode as abi_encode
from eth_keys.datatypes import Signature
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

#: The precompile's canonical address (ASCII "MPP").
RESERVE_ADDRESS = "0x4d50500000000000000000000000000000000000"
#: Where tempo/session v1's escrow contract lives on the testnet, whose chain id we use.
V1_ESCROW_ADDRESS = "0xe1c4d3dce17bc111181ddf716f75bae49e61a336"
#: TIP-20 pathUSD, 6 decimals: also what transaction fees are paid in.
PATH_USD = "0x20c0000000000000000000000000000000000000"
#: A development account that gives money away, and how much of it (base units) the faucet gives.
BANK = "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"
FAUCET_AMOUNT = 1_000_000_000

_DESCRIPTOR_ABI = "(address,address,address,address,bytes32,address,bytes32)"
_SELECTOR_OPEN = keccak(text="open(address,address,address,uint96,bytes32,address)")[:4]
_SELECTOR_TOP_UP = keccak(text=f"topUp({_DESCRIPTOR_ABI},uint96)")[:4]

_MAX_UINT256 = (1 << 256) - 1
#: Storage slot of TIP-20's `allowance[owner][spender]` mapping.
_TIP20_ALLOWANCE_SLOT = 10
#: Storage slots of `simulatedContext` and `openContexts` in TempoChannelReserve.sol.
_SIMULATED_CONTEXT_SLOT = 1
_OPEN_CONTEXTS_SLOT = 2
#: What an `open` that is only simulated sees as its transaction's hash.
_SIMULATED_CONTEXT = bytes([0x11]) * 32

Json = dict[str, Any]


class RpcError(Exception):
    """A JSON-RPC error object, as an exception."""

    def __init__(self, error: Json) -> None:
        super().__init__(f"{error.get('code')}: {error.get('message')}")
        self.error = error


class RpcClient:
    """A thread-safe JSON-RPC client: one kept-alive connection per thread."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"not a URL with host and port: {url}")
        self.url = url
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path or "/"
        self._timeout = timeout
        self._local = threading.local()

    def post(self, message: object) -> Any:
        """Sends a JSON-RPC message or batch as it is, and returns the answer as it is."""
        body = json.dumps(message).encode()
        fresh = getattr(self._local, "connection", None) is None
        try:
            return self._exchange(body)
        except (HTTPException, OSError) as problem:
            self.close()
            if fresh or not isinstance(problem, ConnectionError):
                raise
            # The peer closed an idle connection: no call was in progress.
            return self._exchange(body)

    def call(self, method: str, *params: object) -> Any:
        """Calls one method and returns its result; raises RpcError."""
        answer = self.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)})
        if "error" in answer:
            raise RpcError(answer["error"])
        return answer["result"]

    def close(self) -> None:
        """Closes this thread's connection."""
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
        self._local.connection = None

    def _exchange(self, body: bytes) -> Any:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = HTTPConnection(self._host, self._port, timeout=self._timeout)
            connection.connect()
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._local.connection = connection
        connection.request("POST", self._path, body, {"content-type": "application/json"})
        return json.loads(connection.getresponse().read())


@dataclass(frozen=True)
class Call:
    """One call of a transaction."""

    to: bytes  #: 20 bytes, or empty for a contract creation
    data: bytes


@dataclass(frozen=True)
class SignedTransaction:
    """What the shim needs to know of a raw transaction."""

    sender: bytes
    signing_payload: bytes  #: the exact bytes whose hash the sender signed
    calls: tuple[Call, ...]

    @property
    def expiring_nonce_hash(self) -> bytes:
        """TIP-1034's replay-protected context hash of this transaction."""
        return keccak(self.signing_payload + self.sender)


def parse_transaction(raw: bytes) -> SignedTransaction:
    """Decodes a Tempo (0x76), typed (1, 2) or legacy transaction signed with secp256k1."""
    if raw[0] == 0x76:
        return _parse_tempo(raw)
    if raw[0] in (0x01, 0x02):
        fields = rlp.decode(raw[1:])
        unsigned, (y_parity, r, s) = fields[:-3], fields[-3:]
        payload = raw[:1] + rlp.encode(unsigned)
        # chainId, nonce, [tip,] gas price, gas limit, to, value, data, access list
        to, data = unsigned[-4], unsigned[-2]
        return SignedTransaction(_recover(payload, r, s, _int(y_parity)), payload, (Call(to, data),))
    if raw[0] >= 0xC0:
        nonce, gas_price, gas, to, value, data, v, r, s = rlp.decode(raw)
        unsigned = [nonce, gas_price, gas, to, value, data]
        if _int(v) >= 35:  # EIP-155
            unsigned += [rlp.sedes.big_endian_int.serialize((_int(v) - 35) // 2), b"", b""]
        payload = rlp.encode(unsigned)
        parity = (_int(v) - 35) % 2 if _int(v) >= 35 else _int(v) - 27
        return SignedTransaction(_recover(payload, r, s, parity), payload, (Call(to, data),))
    raise ValueError(f"transaction type {raw[0]:#04x} is not supported by the shim")


def _parse_tempo(raw: bytes) -> SignedTransaction:
    fields = list(rlp.decode(raw[1:]))
    # 0 chainId, 1 tip, 2 max fee, 3 gas, 4 calls, 5 access list, 6 nonce key, 7 nonce, 8 valid before,
    # 9 valid after, 10 fee token, 11 fee payer signature, 12 authorisations, [13 key authorisation,]
    # and last the sender's signature
    signature, unsigned = fields[-1], fields[:-1]
    if unsigned[11] != b"":
        # Sponsored: the sender signed a placeholder, and no fee token.
        unsigned[10], unsigned[11] = b"", b"\x00"
    payload = b"\x76" + rlp.encode(unsigned)
    if len(signature) != 65:
        raise ValueError("the shim recovers secp256k1 senders only")
    r, s, v = signature[:32], signature[32:64], signature[64]
    sender = _recover(payload, r, s, v - 27 if v >= 27 else v)
    return SignedTransaction(sender, payload, tuple(Call(to, data) for to, _value, data in unsigned[4]))


def _recover(payload: bytes, r: bytes, s: bytes, parity: int) -> bytes:
    signature = Signature(vrs=(parity, _int(r), _int(s)))
    return signature.recover_public_key_from_msg_hash(keccak(payload)).to_canonical_address()


def _int(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _hex(data: bytes) -> str:
    return "0x" + data.hex()


class ChannelReserve:
    """Does for the channel contract what only the real precompile could do for itself."""

    def __init__(
        self,
        upstream: RpcClient,
        artifact: Path,
        address: str = RESERVE_ADDRESS,
        contracts: Mapping[str, Path] | None = None,
    ) -> None:
        """`contracts`: address -> artefact of ordinary contracts to install along with the reserve."""
        self.address = address
        self._address = bytes.fromhex(address[2:])
        self._upstream = upstream
        self._codes: dict[str, str] = {
            address: json.loads(path.read_text())["deployedBytecode"]
            for address, path in {address: artifact, **(contracts or {})}.items()
        }
        self._lock = threading.Lock()
        self._allowed: set[tuple[bytes, bytes]] = set()
        self._open_locks: dict[bytes, threading.Lock] = {}

    def install(self) -> None:
        """Puts the contracts on the chain; needed again when the chain was reset."""
        with self._lock:
            self._allowed.clear()
            for address, code in self._codes.items():
                self._upstream.call("anvil_setCode", address, code)
            slot = _hex(_SIMULATED_CONTEXT_SLOT.to_bytes(32, "big"))
            self._upstream.call("anvil_setStorageAt", self.address, slot, _hex(_SIMULATED_CONTEXT))

    def prepare_calls(self, sender: bytes, calls: tuple[Call, ...]) -> list[bytes]:
        """Grants the allowances that these calls need; returns the calldata of each `open` among them."""
        opens = []
        for call in calls:
            if call.to != self._address:
                continue
            if call.data[:4] == _SELECTOR_OPEN:
                token = abi_decode(["address"] * 3, call.data[4:100])[2]
                opens.append(call.data)
            elif call.data[:4] == _SELECTOR_TOP_UP:
                token = abi_decode(["address"] * 4, call.data[4:132])[3]
            else:
                continue
            self._allow(sender, bytes.fromhex(token[2:]))
        return opens

    @contextmanager
    def transaction(self, transaction: SignedTransaction) -> Iterator[Callable[[str], None]]:
        """Around sending a transaction: stores the hash that its opens will ask for.

        Yields a function to be called with the transaction's hash once the chain has taken it. Opens with the
        same sender and the same calldata share one storage slot, so for those (and only those) the next one
        waits until the one before is mined.
        """
        opens = self.prepare_calls(transaction.sender, transaction.calls)
        keys_ = sorted({self._context_key(transaction.sender, data) for data in opens})
        with self._lock:
            locks = [self._open_locks.setdefault(key, threading.Lock()) for key in keys_]
        for lock in locks:
            lock.acquire()
        sent: list[str] = []
        try:
            for key in keys_:
                self._store_context(key, transaction.expiring_nonce_hash)
            yield sent.append
            if keys_:
                if sent:
                    self._wait_mined(sent[0])
                # A simulation of the same call, later, must not see a real transaction's hash.
                for key in keys_:
                    self._store_context(key, bytes(32))
        finally:
            for lock in locks:
                lock.release()

    def _store_context(self, key: bytes, context: bytes) -> None:
        slot = keccak(key + _OPEN_CONTEXTS_SLOT.to_bytes(32, "big"))
        self._upstream.call("anvil_setStorageAt", self.address, _hex(slot), _hex(context))

    def _wait_mined(self, hash_: str, seconds: float = 3.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._upstream.call("eth_getTransactionReceipt", hash_):
                return
            time.sleep(0.01)

    @staticmethod
    def _context_key(sender: bytes, calldata: bytes) -> bytes:
        return keccak(abi_encode(["address", "bytes32"], [to_checksum_address(sender), keccak(calldata)]))

    def _allow(self, owner: bytes, token: bytes) -> None:
        with self._lock:
            if (owner, token) in self._allowed:
                return
            of_owner = keccak(owner.rjust(32, b"\0") + _TIP20_ALLOWANCE_SLOT.to_bytes(32, "big"))
            slot = keccak(self._address.rjust(32, b"\0") + of_owner)
            maximum = _hex(_MAX_UINT256.to_bytes(32, "big"))
            self._upstream.call("anvil_setStorageAt", _hex(token), _hex(slot), maximum)
            self._allowed.add((owner, token))


class ConnectionDropped(Exception):
    """Tells the HTTP layer to close the connection without an answer."""


class HttpFailure(Exception):
    """Tells the HTTP layer to answer with a bare status."""

    def __init__(self, status: int) -> None:
        super().__init__(str(status))
        self.status = status


@dataclass
class Fault:
    """A failure that a test ordered; see the module's text."""

    method: str
    mode: str
    n: int = 1
    path: str | None = None
    after: bool = False
    seconds: float | None = None
    code: int | None = None
    message: str = "injected by the test"
    result: Any = None
    cleared: threading.Event = field(default_factory=threading.Event, repr=False)

    MODES = ("error", "http", "drop", "hang", "delay", "result")

    def __post_init__(self) -> None:
        if self.mode not in self.MODES:
            raise ValueError(f"unknown fault mode {self.mode!r}; known: {', '.join(self.MODES)}")

    def matches(self, method: str, path: str) -> bool:
        """Whether this fault applies to a call of `method` on the URL path `path`."""
        if self.n == 0 or self.path not in (None, path):
            return False
        if self.method.endswith("*"):
            return method.startswith(self.method[:-1])
        return method == self.method

    def strike(self, identity: Any, answer: Callable[[], Json]) -> Json:
        """Answers a call as the fault demands. `answer` asks the chain."""
        if self.mode == "delay":
            self.cleared.wait(1.0 if self.seconds is None else self.seconds)
            return answer()
        if self.after:
            answer()
        if self.mode == "error":
            error = {"code": self.code or -32000, "message": self.message}
            return {"jsonrpc": "2.0", "id": identity, "error": error}
        if self.mode == "result":
            return {"jsonrpc": "2.0", "id": identity, "result": self.result}
        if self.mode == "http":
            raise HttpFailure(self.code or 503)
        if self.mode == "hang":
            self.cleared.wait(3600.0 if self.seconds is None else self.seconds)
        raise ConnectionDropped

    def describe(self) -> Json:
        """For `devnet_faults`."""
        names = ("method", "mode", "n", "path", "after", "seconds", "code", "message", "result")
        return {name: getattr(self, name) for name in names}


class FaultBook:
    """The faults in force, and the counts of calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._calls: dict[str, Counter[str]] = {}

    def note(self, method: str, path: str) -> Fault | None:
        """Counts a call, and takes the first fault that applies to it."""
        with self._lock:
            self._calls.setdefault(path, Counter())[method] += 1
            for fault in self._faults:
                if fault.matches(method, path):
                    if fault.n > 0:
                        fault.n -= 1
                    return fault
        return None

    def admin(self, method: str, params: Json) -> Any:
        """Runs a `devnet_*` method."""
        with self._lock:
            if method == "devnet_setFault":
                fault = Fault(**params)
                self._faults.append(fault)
                return fault.describe()
            if method == "devnet_clearFaults":
                for fault in self._faults:
                    fault.cleared.set()
                self._faults.clear()
                return True
            if method == "devnet_faults":
                return [fault.describe() for fault in self._faults]
            if method == "devnet_calls":
                wanted = params.get("path")
                total: Counter[str] = Counter()
                for path, counts in self._calls.items():
                    if wanted in (None, path):
                        total += counts
                return dict(total)
            if method == "devnet_resetCalls":
                self._calls.clear()
                return True
        raise RpcError({"code": -32601, "message": f"no such method: {method}"})


class Shim:
    """Answers JSON-RPC messages: most of them by asking anvil."""

    #: After these, the chain is an earlier one: the contract and the allowances may be gone.
    RESETTING = ("anvil_reset", "anvil_revert", "evm_revert", "anvil_loadState")

    def __init__(self, upstream: RpcClient, reserve: ChannelReserve) -> None:
        self._upstream = upstream
        self._reserve = reserve
        self._sent: set[bytes] = set()
        self.faults = FaultBook()

    def handle(self, path: str, message: Json) -> Json:
        """Answers one JSON-RPC message that came in on the URL path `path`."""
        method = str(message.get("method"))
        identity = message.get("id")
        if method.startswith("devnet_"):
            params = message.get("params") or {}
            if isinstance(params, list):
                params = params[0] if params else {}
            try:
                return self._result(identity, self.faults.admin(method, params))
            except RpcError as problem:
                return {"jsonrpc": "2.0", "id": identity, "error": problem.error}
        fault = self.faults.note(method, path)
        if fault is not None:
            return fault.strike(identity, lambda: self._answer(message))
        return self._answer(message)

    def _answer(self, message: Json) -> Json:
        method, params = str(message["method"]), message.get("params") or []
        first = params[0] if params else None
        if method in ("eth_sendRawTransaction", "eth_sendRawTransactionSync"):
            return self._send_raw({**message, "params": params[:1]})
        if method == "tempo_fundAddress":
            return self._fund(message.get("id"), str(first))
        if method in ("eth_call", "eth_estimateGas", "eth_fillTransaction") and isinstance(first, dict):
            is_tempo = first.get("type") == "0x76" and first.get("to")
            if first.get("calls") or is_tempo:
                return self._simulated(method, message.get("id"), first)
        answer: Json = self._upstream.post(message)
        if method in self.RESETTING:
            self._sent.clear()
            self._reserve.install()
        return answer

    def _fund(self, identity: Any, address: str) -> Json:
        """The test network's faucet, which anvil does not have: one stablecoin, from a development account."""
        data = "0xa9059cbb" + address.removeprefix("0x").lower().rjust(64, "0") + f"{FAUCET_AMOUNT:064x}"
        request = {"from": BANK, "to": PATH_USD, "data": data}
        message = {"jsonrpc": "2.0", "id": identity, "method": "eth_sendTransaction", "params": [request]}
        answer: Json = self._upstream.post(message)
        return answer if "error" in answer else self._result(identity, [answer["result"]])

    def _send_raw(self, message: Json) -> Json:
        raw = bytes.fromhex(message["params"][0][2:])
        transaction = parse_transaction(raw)
        with self._reserve.transaction(transaction) as sent:
            if raw in self._sent:
                error = {"code": -32000, "message": "already known"}
                return {"jsonrpc": "2.0", "id": message.get("id"), "error": error}
            answer: Json = self._upstream.post(message)
            result = answer.get("result")
            if result is not None:
                self._sent.add(raw)
                sent(result["transactionHash"] if isinstance(result, dict) else result)
        return answer

    def _simulated(self, method: str, identity: Any, request: Json) -> Json:
        """eth_call, eth_estimateGas or eth_fillTransaction for a Tempo transaction."""
        calls = [
            {"to": call.get("to"), "data": call.get("data") or call.get("input") or "0x"}
            for call in request.get("calls") or [request]
        ]
        result, gas, error = self._simulate(request.get("from"), calls)
        if error is not None:
            return {"jsonrpc": "2.0", "id": identity, "error": error}
        if method == "eth_call":
            return self._result(identity, result)
        if method == "eth_estimateGas":
            return self._result(identity, hex(gas))
        fill = dict(request)
        if int(request.get("nonceKey", "0x0"), 16) == _MAX_UINT256:
            fill["nonce"] = "0x0"  # anvil would look up a nonce; an expiring one is always zero
        filled: Json = self._upstream.call("eth_fillTransaction", fill)
        filled["tx"]["calls"] = [{"to": call["to"], "input": call["data"], "value": "0x0"} for call in calls]
        filled["tx"]["gas"] = request.get("gas", hex(gas))
        filled["tx"].pop("hash", None)
        return self._result(identity, filled)

    def _simulate(self, sender: str | None, calls: list[Json]) -> tuple[str, int, Json | None]:
        """Runs calls one after the other: last return data, a gas limit with some reserve, error."""
        if sender:
            parsed = tuple(
                Call(bytes.fromhex(call["to"][2:]), bytes.fromhex(call["data"][2:]))
                for call in calls
                if call["to"]
            )
            self._reserve.prepare_calls(bytes.fromhex(sender[2:]), parsed)
        block = {
            "calls": [
                {"to": call["to"], "input": call["data"], **({"from": sender} if sender else {})}
                for call in calls
            ]
        }
        options = {"blockStateCalls": [block], "validation": False}
        results = self._upstream.call("eth_simulateV1", options, "latest")[0]["calls"]
        for result in results:
            if result["status"] != "0x1":
                data = (result.get("error") or {}).get("data") or result.get("returnData") or "0x"
                return "0x", 0, {"code": 3, "message": "execution reverted", "data": data}
        used = sum(int(result["gasUsed"], 16) for result in results)
        return results[-1]["returnData"], used * 12 // 10 + 300_000, None

    @staticmethod
    def _result(identity: Any, result: Any) -> Json:
        return {"jsonrpc": "2.0", "id": identity, "result": result}


class ShimServer(ThreadingHTTPServer):
    """HTTP/1.1 with kept-alive connections, one thread each."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, shim: Shim, port: int = 0) -> None:
        self.shim = shim
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is nothing to report."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ShimServer

    def log_message(self, format: str, *args: object) -> None:
        """One line per request would be noise."""

    def do_POST(self) -> None:
        """Answers a JSON-RPC message or batch."""
        body = self.rfile.read(int(self.headers["content-length"]))
        message: Any = None
        answer: Any
        try:
            message = json.loads(body)
            if isinstance(message, list):
                answer = [self.server.shim.handle(self.path, item) for item in message]
            else:
                answer = self.server.shim.handle(self.path, message)
        except ConnectionDropped:
            self.close_connection = True
            return
        except HttpFailure as failure:
            self._send(failure.status, b"")
            return
        except RpcError as problem:
            answer = self._error(message, problem.error)
        except Exception as problem:
            print(f"shim: {type(problem).__name__}: {problem}", file=sys.stderr, flush=True)
            answer = self._error(message, {"code": -32603, "message": f"shim: {problem}"})
        self._send(200, json.dumps(answer).encode())

    @staticmethod
    def _error(message: Any, error: Json) -> Json:
        identity = message.get("id") if isinstance(message, dict) else None
        return {"jsonrpc": "2.0", "id": identity, "error": error}

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        # One write for headers and body: two would wait for each other (Nagle, delayed ACK).
        self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]
        self.flush_headers()


def die_with_parent() -> None:
    """In a child between fork and exec: have Linux kill it when the thread that started it ends."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def start_anvil(anvil: Path, chain_id: int, log: IO[str]) -> tuple[subprocess.Popen[str], str]:
    """Starts anvil on a free port; returns the process and its URL."""
    command = [str(anvil), "--network", "tempo", "--hardfork", "T4", "--chain-id", str(chain_id)]
    # Interval mining keeps the block's time going; mixed mining mines a transaction at once all the same.
    command += ["--block-time", "1", "--mixed-mining", "--port", "0", "--accounts", "20"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        preexec_fn=die_with_parent,
    )
    assert process.stdout is not None
    for line in process.stdout:
        log.write(line)
        found = re.search(r"Listening on (\S+:\d+)", line)
        if found:
            threading.Thread(target=_copy, args=(process.stdout, log), daemon=True).start()
            return process, f"http://{found[1]}"
    raise RuntimeError(f"anvil ended with status {process.wait()} before it listened")


def _copy(source: IO[str], target: IO[str]) -> None:
    for line in source:
        target.write(line)


def main(arguments: list[str] | None = None) -> int:
    """Runs anvil and the shim until standard input ends."""
    parser = argparse.ArgumentParser(description="A local Tempo chain with a TIP-1034 channel reserve.")
    parser.add_argument("--anvil", type=Path, required=True, help="the anvil binary")
    parser.add_argument("--artifact", type=Path, required=True, help="compiled TempoChannelReserve")
    parser.add_argument(
        "--contract",
        action="append",
        default=[],
        metavar="ADDRESS=FILE",
        help="a further compiled contract to install",
    )
    parser.add_argument("--chain-id", type=int, default=42431)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path(os.devnull), help="where anvil's output goes")
    options = parser.parse_args(arguments)

    with options.log.open("w", buffering=1) as log:
        process, anvil_url = start_anvil(options.anvil, options.chain_id, log)
        try:
            upstream = RpcClient(anvil_url)
            pairs = (item.split("=", 1) for item in options.contract)
            contracts = {address: Path(artifact) for address, artifact in pairs}
            reserve = ChannelReserve(upstream, options.artifact, contracts=contracts)
            reserve.install()
            server = ShimServer(Shim(upstream, reserve), options.port)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            print(json.dumps({"rpc": server.url, "anvil": anvil_url, "pid": process.pid}), flush=True)
            sys.stdin.read()
        except KeyboardInterrupt:
            pass
        finally:
            process.kill()
            process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
