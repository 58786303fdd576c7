"""Our own requests without sockets: what `Outbound` would send, an httpx client of the test answers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
import httpx

from proxy_addon.exchange import AnswerTooLong, Limits, Reply
from proxy_addon.outbound import Origin, Outbound, Pool


def serve_errands(outbound: Outbound, client: httpx.AsyncClient) -> None:
    """From now on `client` answers; what it raises is a connection that broke."""
    outbound._pool = cast(Pool, _Served(client))


class _Served:
    """In the place of `Pool`, and of its connections."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def connection(self, origin: Origin, timeout_s: float) -> _To:
        return _To(self._client, origin)

    async def aclose(self) -> None:
        await self._client.aclose()


class _To:
    def __init__(self, client: httpx.AsyncClient, origin: Origin) -> None:
        self._client = client
        self._origin = origin

    def send(self, request: h11.Request, limits: Limits) -> asyncio.Future[Reply]:
        return asyncio.shield(asyncio.Task(self._exchange(request, limits), name="bursar-exchange"))

    async def _exchange(self, request: h11.Request, limits: Limits) -> Reply:
        scheme = "https" if self._origin.tls else "http"
        url = f"{scheme}://{self._origin.host}:{self._origin.port}{request.target.decode()}"
        headers: list[Any] = list(request.headers)
        try:
            answer = await self._client.request(request.method.decode(), url, headers=headers)
        except httpx.HTTPError as error:
            raise ConnectionError(type(error).__name__) from None
        if len(answer.content) > limits.body:
            raise AnswerTooLong
        fields = [(name.encode("latin-1"), value.encode()) for name, value in answer.headers.multi_items()]
        return Reply(answer.status_code, fields, answer.content)
