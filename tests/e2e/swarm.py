"""Many clients in one process: ``swarm.py PORTS URL CLIENTS ROUNDS``; they know of the proxy, and nothing of payment.

The URL has a query already. `PORTS` are the proxies', comma-separated; the clients are dealt out to them in turn.
Each has a connection of its own, kept for all its rounds. All connect first; then they begin together. One line of
JSON says what they got.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from urllib.parse import urlsplit

SECONDS = 90


class Swarm:
    def __init__(self, ports: list[int], url: str, clients: int, rounds: int) -> None:
        self.ports, self.url, self.clients, self.rounds = ports, url, clients, rounds
        self.begin = asyncio.Event()
        self.answers: Counter[str] = Counter()  # by status
        self.leaks: Counter[str] = Counter()  # header fields that tell of a payment
        self.odd: Counter[str] = Counter()  # anything but a whole, right answer
        self.slowest = 0.0

    async def run(self) -> dict[str, object]:
        tasks = [asyncio.create_task(self._client(index)) for index in range(self.clients)]
        await asyncio.sleep(0.2 + self.clients / 1000)
        started = time.monotonic()
        self.begin.set()
        await asyncio.gather(*tasks)
        return {
            "answers": self.answers,
            "leaks": self.leaks,
            "odd": self.odd,
            "seconds": round(time.monotonic() - started, 3),
            "slowest": round(self.slowest, 3),
        }

    async def _client(self, index: int) -> None:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[index % len(self.ports)])
            await self.begin.wait()
            for number in range(self.rounds):
                started = time.monotonic()
                async with asyncio.timeout(SECONDS):
                    await self._request(reader, writer, f"{self.url}&client={index}&round={number}")
                self.slowest = max(self.slowest, time.monotonic() - started)
            writer.close()
        except Exception as error:
            self.odd[f"{type(error).__name__}: {error}"] += 1

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, url: str) -> None:
        writer.write(f"GET {url} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = [line.partition(":") for line in head[1:] if line]
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers["content-length"]))
        status = head[0].split(" ")[1]
        self.answers[status] += 1
        self.leaks.update(name for name in headers if "payment" in name)
        if status == "200" and json.loads(body).get("ok") is not True:
            self.odd[body.decode(errors="replace")] += 1


def main() -> None:
    ports = [int(port) for port in sys.argv[1].split(",")]
    print(json.dumps(asyncio.run(Swarm(ports, sys.argv[2], int(sys.argv[3]), int(sys.argv[4])).run())))


if __name__ == "__main__":
    main()
