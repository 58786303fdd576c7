"""Requests of our own to a server that we pay: probes, top-ups, closes, vouchers beside a stream.

Not through any proxy, no redirects (a credential never follows one), TLS always verified, answers capped in
time and size.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from proxy_addon.core.errors import OutcomeUnknown

if TYPE_CHECKING:
    import httpx

ANSWER_LIMIT: Final = 64 * 1024


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

    def __init__(self, *, extra_ca: Path | None = None, timeout_s: float = 20.0) -> None:
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

        host = httpx.URL(url).host
        body = b""
        try:
            async with self._http().stream(method, url, headers=dict(headers)) as response:
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > ANSWER_LIMIT:
                        raise OutcomeUnknown(f"{host} answered {method} with more than {ANSWER_LIMIT} bytes")
                fields = tuple((name.lower(), value) for name, value in response.headers.multi_items())
                return Answer(response.status_code, fields, body)
        except (httpx.HTTPError, httpx.StreamError, OSError) as error:
            raise OutcomeUnknown(f"{host} did not answer {method}: {type(error).__name__}") from None

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            import certifi
            import httpx

            context = ssl.create_default_context(cafile=certifi.where())
            if self._extra_ca is not None:
                context.load_verify_locations(self._extra_ca)
            self._client = httpx.AsyncClient(
                verify=context,
                timeout=self._timeout_s,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),  # a stream each
                follow_redirects=False,
                trust_env=False,
            )
        return self._client

    async def aclose(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.aclose()


def _retrieved(exchange: asyncio.Task[Answer]) -> None:
    """An outcome that nobody waits for any more is no error of the loop's."""
    if not exchange.cancelled():
        exchange.exception()
