"""A paid HTTP API on loopback, for the demo and as an upstream for tests: real HTTP, real checks of every payment.

``async with PaidApi(chain) as api:`` serves at ``api.url``:

- ``/free``: JSON, for nothing;
- ``/quote``: JSON, `price` per request; ``?status=404`` answers with that status, ``?delay_ms=20`` late;
- ``/stream``: bytes in chunks, `price` per request; ``?chunks=8&size=1024``.

Routes can be added to `routes`; `intercept` sees each request first, and may answer in the API's place.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from proxy_addon.core.headers import format_challenge
from proxy_addon.core.messages import PROBLEM_BASE, format_receipt, is_payment_credential
from proxy_addon.demo.chain import SimulatedChain
from proxy_addon.demo.http1 import Handler, HttpServer, Request, Response
from proxy_addon.demo.payee import Payee
from proxy_addon.demo.payload import PaymentProblem

PRICE: Final = 10_000  # base units: one cent
_JSON: Final = ("Content-Type", "application/json")


@dataclass(frozen=True, slots=True)
class Route:
    price: int  # base units; 0: free
    handler: Handler


@dataclass(frozen=True, slots=True)
class Served:
    """One request as the API saw it."""

    method: str
    path: str
    action: str | None  # of the credential that was accepted
    status: int
    charged: int
    problem: str | None = None


class PaidApi(HttpServer):
    """`payee` keeps the accounts; `log` is every request since the start. `options` are those of `Payee`."""

    def __init__(
        self,
        chain: SimulatedChain,
        *,
        port: int = 0,
        price: int = PRICE,
        intercept: Callable[[Request], Awaitable[Response | None]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(self._handle, port)
        self.payee = Payee(chain, **options)
        self.intercept = intercept
        self.log: list[Served] = []
        self.routes: dict[str, Route] = {
            "/free": Route(0, _free),
            "/quote": Route(price, _quote),
            "/stream": Route(price, _stream),
        }

    @property
    def charged(self) -> int:
        """The sum of all charges since the start."""
        return sum(one.charged for one in self.log)

    async def _handle(self, request: Request) -> Response:
        if self.intercept is not None and (response := await self.intercept(request)) is not None:
            return response
        route = self.routes.get(request.path)
        if route is None:
            return self._logged(request, Response(404, (_JSON,), b'{"error":"no such resource"}'))
        if route.price == 0:
            return self._logged(request, await route.handler(request))
        try:
            return await self._sell(route, request)
        except PaymentProblem as problem:
            return self._logged(request, self._refusal(route, problem), problem=problem.kind)

    async def _sell(self, route: Route, request: Request) -> Response:
        authorization = _credential(request)
        if authorization is None:
            raise PaymentProblem("payment-required", f"{request.path} costs {route.price} base units")
        taken = self.payee.take(authorization, route.price, content=_is_content(request))
        response = await route.handler(request) if taken.serve else Response(204)
        paid = [("Payment-Receipt", format_receipt(taken.receipt)), ("Cache-Control", "private")]
        response = Response(response.status, [*response.headers, *paid], response.body)
        return self._logged(request, response, action=taken.action, charged=taken.charged)

    def _refusal(self, route: Route, problem: PaymentProblem) -> Response:
        challenge = self.payee.challenges.make(route.price)
        body = {
            "type": PROBLEM_BASE + problem.kind,
            "title": problem.title,
            "status": problem.status,
            "detail": str(problem),
            "challengeId": challenge.id,
        }
        headers = (
            ("WWW-Authenticate", format_challenge(challenge.echo())),
            ("Cache-Control", "no-store"),
            ("Content-Type", "application/problem+json"),
        )
        return Response(problem.status, headers, orjson.dumps(body))

    def _logged(
        self,
        request: Request,
        response: Response,
        *,
        action: str | None = None,
        charged: int = 0,
        problem: str | None = None,
    ) -> Response:
        self.log.append(Served(request.method, request.path, action, response.status, charged, problem))
        return response


def _credential(request: Request) -> str | None:
    """Payment-Authorization before Authorization: there a client's own token may stand."""
    for name in ("payment-authorization", "authorization"):
        value = request.headers.get(name, "")
        if is_payment_credential(value):
            return value
    return None


def _is_content(request: Request) -> bool:
    """HEAD, and POST with neither query nor body, only manage the channel: they cost nothing."""
    if request.method == "HEAD":
        return False
    return request.method != "POST" or bool(request.query) or bool(request.body)


async def _free(request: Request) -> Response:
    return Response(200, (_JSON,), b'{"free":true}')


async def _quote(request: Request) -> Response:
    delay = int(request.query.get("delay_ms", "0"))
    if delay:
        await asyncio.sleep(delay / 1000)
    quote = {
        "symbol": "DEMO",
        "bid": "41.99",
        "ask": "42.01",
        "method": request.method,
        "bodySha256": hashlib.sha256(request.body).hexdigest(),
    }
    body = json.dumps(quote).encode() + b"\n"
    return Response(int(request.query.get("status", "200")), (_JSON,), body)


async def _stream(request: Request) -> Response:
    chunks, size = int(request.query.get("chunks", "8")), int(request.query.get("size", "1024"))

    async def body() -> AsyncIterator[bytes]:
        for index in range(chunks):
            yield bytes([ord("a") + index % 26]) * size

    return Response(200, (("Content-Type", "application/octet-stream"),), body())
