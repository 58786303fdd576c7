"""An upstream that says what a test tells it to, for what an honest server never says.

It shares no code with bursar. It sells like a tempo/session server where that is needed: it broadcasts the
opening that it is handed, and believes every voucher.
"""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from tests.peers.devnet import Devnet

PRICE = 10_000
DEPOSIT = 500_000


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def credential(self) -> dict[str, Any] | None:
        """What is paid with, decoded; whatever header it is in."""
        for name in ("payment-authorization", "authorization"):
            scheme, _, value = (self.header(name) or "").partition(" ")
            if scheme.lower() == "payment":
                decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(value + "=="))
                return decoded
        return None


Handler = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A whole HTTP/1.1 response; the same bytes each time."""
    fields = {"Content-Type": "text/plain", "Content-Length": str(len(body)), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def always(response: bytes) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(response)

    return handler


def b64json(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def from_now(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Upstream:
    """An asyncio server in a thread of its own. `routes` maps paths to handlers, and may change at any time."""

    def __init__(self, net: Devnet, host: str = "127.0.0.1") -> None:
        self.net = net
        self.host = host
        self.routes: dict[str, Handler] = {}
        self.requests: list[Request] = []
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._expires = from_now(300)

    def __enter__(self) -> Upstream:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, self.host, 0), self._loop
        ).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://{self.authority}"

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def credentials(self) -> list[dict[str, Any]]:
        return [found for one in self.requests if (found := one.credential) is not None]

    # -- selling

    def request_json(self, **changes: Any) -> dict[str, Any]:
        """A session challenge's request; `details` changes its methodDetails, None takes a member out."""
        details = {
            "escrowContract": self.net.escrow,
            "chainId": self.net.chain_id,
            "sessionProtocol": "v2",
            **changes.pop("details", {}),
        }
        request = {
            "amount": str(PRICE),
            "currency": self.net.token,
            "recipient": self.net.payee.address,
            "suggestedDeposit": str(DEPOSIT),
            "unitType": "request",
            "methodDetails": details,
            **changes,
        }
        return {name: value for name, value in request.items() if value is not None}

    def challenge(self, request: Mapping[str, Any] | None = None, /, **changes: str | None) -> str:
        """A WWW-Authenticate value; `changes` replace its parameters, None takes one out."""
        parameters: dict[str, str | None] = {
            "id": "c1",
            "realm": "scripted",
            "method": "tempo",
            "intent": "session",
            "request": b64json(self.request_json() if request is None else request),
            "expires": self._expires,
            **changes,
        }
        shown = (f'{name}="{value}"' for name, value in parameters.items() if value is not None)
        return f"Payment {', '.join(shown)}"

    def asks(self, challenge: str | None = None) -> bytes:
        """The 402 that asks for money."""
        problem = {"type": "https://paymentauth.org/problems/payment-required", "title": "Pay", "status": 402}
        headers = {
            "Content-Type": "application/problem+json",
            "WWW-Authenticate": self.challenge() if challenge is None else challenge,
            "X-Odd-Case": "kept As It is",
        }
        return answer(402, json.dumps(problem).encode(), headers)

    async def take(self, request: Request) -> dict[str, Any] | None:
        """The payment that came with the request, if any; an opening is broadcast and waited for."""
        credential = request.credential
        if credential is None:
            return None
        payload: dict[str, Any] = credential["payload"]
        if payload["action"] == "open":
            await asyncio.to_thread(self._broadcast, payload["transaction"])
        return payload

    def _broadcast(self, transaction: str) -> None:
        receipt = self.net.receipt(self.net.rpc("eth_sendRawTransaction", transaction))
        assert receipt["status"] == "0x1", receipt

    def receipt(self, payload: Mapping[str, Any], **changes: Any) -> dict[str, str]:
        """The Payment-Receipt header for a payment, as if all of it had been spent."""
        amount = payload["cumulativeAmount"]
        content = {
            "method": "tempo",
            "intent": "session",
            "status": "success",
            "timestamp": from_now(0),
            "reference": payload["channelId"],
            "challengeId": "c1",
            "channelId": payload["channelId"],
            "acceptedCumulative": amount,
            "spent": amount,
            "units": 1,
            **changes,
        }
        return {"Payment-Receipt": b64json(content)}

    def sells(self, respond: Callable[[Request, dict[str, Any]], bytes]) -> Handler:
        """Ask for money, take it, and answer with what `respond` makes of the payment."""

        async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
            payload = await self.take(request)
            writer.write(self.asks() if payload is None else respond(request, payload))

        return handler

    # -- HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async for request in _requests(reader):
                self.requests.append(request)
                handler = self.routes.get(request.path, always(answer(404)))
                await handler(request, writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _requests(reader: asyncio.StreamReader) -> AsyncIterator[Request]:
    while head := await _head(reader):
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        pairs = [line.partition(":") for line in lines[1:] if line]
        headers = [(name, value.strip()) for name, _, value in pairs]
        plain = {name.lower(): value for name, value in headers}
        body = b""
        if plain.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        elif "content-length" in plain:
            body = await reader.readexactly(int(plain["content-length"]))
        yield Request(method, target, headers, body)


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n"))[:-2]
    except asyncio.IncompleteReadError:
        return b""


class Gate:
    """Keeps a handler until the test lets it go on."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def open(self) -> None:
        self._open.set()

    async def passed(self) -> None:
        await asyncio.to_thread(self._open.wait, 60)
