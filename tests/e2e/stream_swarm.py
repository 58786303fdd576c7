"""Many readers of metered streams in one process: ``stream_swarm.py PORT URL READERS [OPTION=NUMBER …]``.

They know of the proxy, and nothing of payment. The URL is that of a stream of ``tok0``, ``tok1``, … with ``?n=`` of
them, and may have more in its query. Each reader has a connection of its own. Options:

- ``at_once``: so many readers at a time, instead of all;
- ``more``: the first reader asks for so many tokens more than the last, those between in proportion;
- ``leave``: so many in a hundred leave at some point;
- ``streams``: so many in a hundred read a stream, the others make one plain request of ``/req``;
- ``beside``: plain requests beside all that, one after the other;
- ``seconds``: no new readers after that; ``seed``.

One line of JSON says what they got.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from urllib.parse import parse_qs, urlsplit

SECONDS = 90


class Swarm:
    def __init__(self, port: int, url: str, readers: int, options: dict[str, int]) -> None:
        self.port, self.url, self.readers, self.options = port, url, readers, options
        parts = urlsplit(url)
        self.plain_url = f"{parts.scheme}://{parts.netloc}/req?deposit=1"
        self.tokens = int(parse_qs(parts.query)["n"][0])
        self.random = random.Random(options.get("seed", 1))
        self.turns = asyncio.Semaphore(options.get("at_once", readers))
        self.done: Counter[str] = Counter()
        self.odd: Counter[str] = Counter()
        self.open = self.most_open = 0
        self.units = 0  # tokens and plain requests, of those who stayed to the end
        self.longest_gap = 0.0  # between two pieces of a stream

    async def run(self) -> dict[str, object]:
        began = time.monotonic()
        seconds = self.options.get("seconds", SECONDS)
        tasks = [asyncio.create_task(self._beside(self.options.get("beside", 0)))]
        for index in range(self.readers):
            await self.turns.acquire()
            if time.monotonic() - began > seconds:
                break
            tasks.append(asyncio.create_task(self._reader(index)))
        await asyncio.gather(*tasks)
        return {
            "done": self.done,
            "odd": self.odd,
            "most_open": self.most_open,
            "units": self.units,
            "longest_gap": round(self.longest_gap, 3),
            "seconds": round(time.monotonic() - began, 3),
        }

    async def _reader(self, index: int) -> None:
        leaves = self.random.randrange(100) < self.options.get("leave", 0)
        streams = self.random.randrange(100) < self.options.get("streams", 100)
        tokens = self.tokens + self.options.get("more", 0) * (self.readers - 1 - index) // self.readers
        try:
            async with asyncio.timeout(self.random.random() ** 3 * 2 if leaves else SECONDS):
                await (self._stream(tokens) if streams else self._plain())
            self.done["stream" if streams else "plain"] += 1
            self.units += tokens if streams else 1
        except TimeoutError:
            (self.done if leaves else self.odd)["left"] += 1
        except Exception as error:
            self.odd[f"{type(error).__name__}: {error}"[:300]] += 1
        finally:
            self.turns.release()

    async def _stream(self, tokens: int) -> None:
        wanted = b"".join(b"event: message\ndata: tok%d\n\n" % number for number in range(tokens))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(_request(self.url.replace(f"n={self.tokens}", f"n={tokens}", 1)))
            await _head(reader)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                body = await self._body(reader)
            finally:
                self.open -= 1
            if body != wanted:
                raise ValueError(f"a stream that ends in {body[-200:]!r}")
        finally:
            writer.close()

    async def _plain(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(_request(self.plain_url))
            await _head(reader)
            body = await self._body(reader)
            if json.loads(body).get("ok") is not True:
                raise ValueError(f"an answer of {body!r}")
        finally:
            writer.close()

    async def _beside(self, count: int) -> None:
        for _ in range(count):
            try:
                async with asyncio.timeout(SECONDS):
                    await self._plain()
            except Exception as error:
                self.odd[f"beside: {type(error).__name__}: {error}"[:300]] += 1
                return
            self.done["beside"] += 1
            self.units += 1

    async def _body(self, reader: asyncio.StreamReader) -> bytes:
        """Chunked, as a server sends what it has no length of."""
        body, last = b"", time.monotonic()
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
            self.longest_gap = max(self.longest_gap, time.monotonic() - last)
            last = time.monotonic()
        await reader.readline()
        return body


def _request(url: str) -> bytes:
    return f"GET {url} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n\r\n".encode()


async def _head(reader: asyncio.StreamReader) -> None:
    """A 200 that does not tell of a payment."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    if not head.startswith("HTTP/1.1 200 ") or "payment" in head.lower():
        raise ValueError(head)


def main() -> None:
    port, url, readers, *rest = sys.argv[1:]
    options = {name: int(value) for name, _, value in (one.partition("=") for one in rest)}

    async def swarm() -> dict[str, object]:
        return await Swarm(int(port), url, int(readers), options).run()

    print(json.dumps(asyncio.run(swarm())))


if __name__ == "__main__":
    main()
