"""HTTP/1.1 as bytes: requests as they came in, answers as somebody hostile writes them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Fields = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """One request, as it came in. `connection` numbers the connections of its peer."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    head: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def get(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    @property
    def authorization(self) -> str | None:
        """The payment credential, whichever field it is in."""
        found = [*self.all("payment-authorization"), *self.all("authorization")]
        return next((value for value in found if value.lower().startswith("payment ")), None)

    @property
    def credential(self) -> dict[str, Any] | None:
        value = self.authorization
        if value is None:
            return None
        token = value.split(" ", 1)[1]
        decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return decoded

    @property
    def payload(self) -> dict[str, Any]:
        """Of the credential; empty without one."""
        credential = self.credential
        return {} if credential is None else credential["payload"]

    @property
    def action(self) -> str | None:
        return self.payload.get("action")


def answer(status: int | str, body: bytes = b"", headers: Fields = (), *, length: bool = True) -> bytes:
    """A whole response. `headers` go out as they are, whatever is in them."""
    lines = [f"HTTP/1.1 {status} Whatever"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def b64(value: object) -> str:
    """base64url of JSON, as the scheme's fields hold it. Bytes go as they are."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


async def read_request(reader: asyncio.StreamReader, connection: int) -> Request | None:
    """The next request; None at the connection's end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, _ = first.split(" ")
    pairs = [line.partition(":") for line in lines]
    headers = tuple((name, value.strip()) for name, _, value in pairs)
    plain = {name.lower(): value for name, value in headers}
    body = b""
    try:
        if plain.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readuntil(b"\r\n")
        elif "content-length" in plain:
            body = await reader.readexactly(int(plain["content-length"]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Request(method, target, headers, body, connection, head)
