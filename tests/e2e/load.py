"""Clients that never stop asking: ``load.py PORT URL CLIENTS``. They know of the proxy, and nothing of payment.

Each keeps a connection as long as it can, and ends when it is refused: by a 503, or because nobody listens. A line
on standard output says when each answer has come whole (``200``), so that whoever started this knows that it runs;
the last one is JSON with the sums.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from urllib.parse import urlsplit

SECONDS = 60


class Broken(Exception):
    """An answer that began and did not end."""


async def client(port: int, url: str, found: Counter[str]) -> None:
    number = 0
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            found["nobody listens"] += 1
            return
        try:
            while True:
                number += 1
                status = await ask(reader, writer, f"{url}&number={number}")
                found[status] += 1
                print(status, flush=True)
                if status != "200":
                    return
        except Broken as error:
            found[f"broken: {error}"] += 1
            return
        except (ConnectionError, EOFError):
            found["closed before an answer"] += 1  # then nobody listens any more, or another answers
        finally:
            writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: str) -> str:
    writer.write(f"GET {url} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode())
    async with asyncio.timeout(SECONDS):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise Broken("in its header") from None
            raise EOFError from None
        headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in head[1:])}
        try:
            if headers.get("transfer-encoding", "").lower() == "chunked":
                while size := int(await reader.readline(), 16):
                    await reader.readexactly(size + 2)
                await reader.readline()
            else:
                await reader.readexactly(int(headers["content-length"]))
        except (EOFError, ConnectionError, ValueError):
            raise Broken("in its body") from None
    return head[0].split(" ")[1]


async def main() -> None:
    port, url, clients = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    found: Counter[str] = Counter()
    await asyncio.gather(*(client(port, url, found) for _ in range(clients)))
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
