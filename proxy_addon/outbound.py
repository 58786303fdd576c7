"""Requests of our own to a server that we pay: probes, top-ups, closes, vouchers beside a stream.

Not through any proxy, no redirects (a credential never follows one), TLS always verified, answers capped in
time and size; only to addresses that `Egress` allows, and to the very ones that it has checked.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from proxy_addon.core.addresses import Asker
from proxy_addon.core.errors import LocalRefusal, OutcomeUnknown
from proxy_addon.egress import Egress

if TYPE_CHECKING:
    import httpcore
    import httpx

ANSWER_LIMIT: Final = 64 * 1024
_PLAIN: Final = {"Accept-Encoding": "identity"}
NEXT_ADDRESS_S: Final = 3.0
"""So long may an address keep us waiting while there is another one to try."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `headers` holds every field, in order, names in lower case."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)


class Outbound:
    """One connection pool for all of them."""

    def __init__(
        self, egress: Egress | None = None, *, extra_ca: Path | None = None, timeout_s: float = 20.0
    ) -> None:
        self._egress = egress or Egress()
        self._extra_ca = extra_ca
        self._timeout_s = timeout_s
        self._client: httpx.AsyncClient | None = None

    async def send(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """One request without a body. Raises `OutcomeUnknown` if no whole answer came: it may have arrived.

        Who is cancelled leaves the exchange to run to its end: a cancelled one can leave its connection in
        httpx's pool for good, and a few of those fill it.
        """
        exchange = asyncio.Task(self._exchange(method, url, headers), name="bursar-outbound")
        exchange.add_done_callback(_retrieved)
        return await asyncio.shield(exchange)

    async def _exchange(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        import httpx

        try:
            host = httpx.URL(url).host
        except httpx.InvalidURL:  # nothing left; its message holds the URL
            raise OutcomeUnknown(f"the host of this {method} is none that can be reached") from None
        body = b""
        try:
            # The whole of it has an end, not only each read: a server may send a byte now and then for ever.
            async with (
                asyncio.timeout(self._timeout_s * 1.5),
                self._http().stream(method, url, headers={**_PLAIN, **headers}) as response,
            ):
                # Undecoded: a kilobyte of br can fill the memory before anybody has counted.
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > ANSWER_LIMIT:
                        raise OutcomeUnknown(f"{host} answered {method} with more than {ANSWER_LIMIT} bytes")
                fields = tuple((name.lower(), value) for name, value in response.headers.multi_items())
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    body = b""  # we did not ask for it
                return Answer(response.status_code, fields, body)
        except LocalRefusal as error:  # nothing left; who asked has one way to deal with no answer
            raise OutcomeUnknown(str(error)) from None
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise OutcomeUnknown(f"{host} did not answer {method}: {type(error).__name__}") from None

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            import certifi
            import httpcore
            import httpx

            # It logs each request with its URL, and queries hold keys.
            for name in ("httpx", "httpcore"):
                logging.getLogger(name).setLevel(logging.WARNING)
            context = ssl.create_default_context(cafile=certifi.where())
            if self._extra_ca is not None:
                context.load_verify_locations(self._extra_ca)
            transport = httpx.AsyncHTTPTransport(verify=context)
            # The transport has no parameter for it: its pool with another way to connect.
            transport._pool = httpcore.AsyncConnectionPool(
                ssl_context=context,
                max_connections=None,  # a stream each
                max_keepalive_connections=64,
                keepalive_expiry=5.0,
                network_backend=cast(
                    "httpcore.AsyncNetworkBackend", _Dialler(self._egress, httpcore.AnyIOBackend())
                ),
            )
            self._client = httpx.AsyncClient(
                transport=transport,
                timeout=self._timeout_s,
                follow_redirects=False,
                trust_env=False,
            )
        return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


class _Dialler:
    """httpcore's ``AsyncNetworkBackend``. TLS is none of its business: that is about the name, not the address."""

    def __init__(self, egress: Egress, backend: httpcore.AsyncNetworkBackend) -> None:
        self._egress = egress
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 (httpcore's)
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises `LocalRefusal` if it may not go there, else as httpcore has it."""
        async with asyncio.timeout(timeout):
            *others, last = await self._egress.resolve(host, port, Asker.OURSELVES)
        for info in others:
            try:
                return await self._connect(
                    info, _least(timeout, NEXT_ADDRESS_S), local_address, socket_options
                )
            except Exception:  # noqa: S112 (the last one's failure is told)
                continue
        return await self._connect(last, timeout, local_address, socket_options)

    async def _connect(
        self,
        info: Any,
        timeout: float | None,  # noqa: ASYNC109
        local_address: str | None,
        socket_options: Iterable[Any] | None,
    ) -> httpcore.AsyncNetworkStream:
        address = str(info[4][0])
        return await self._backend.connect_tcp(address, info[4][1], timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._backend.sleep(seconds)


def _least(timeout: float | None, limit: float) -> float:
    return limit if timeout is None else min(timeout, limit)


def _retrieved(exchange: asyncio.Task[Answer]) -> None:
    """An outcome that nobody waits for any more is no error of the loop's."""
    if not exchange.cancelled():
        exchange.exception()
