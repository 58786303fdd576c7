"""A GET as each Python library has it: ``get.py LIBRARY URL``; the body goes to standard output."""

from __future__ import annotations

import asyncio
import sys


def get(library: str, url: str) -> bytes:
    match library:
        case "urllib":
            from urllib.request import urlopen

            with urlopen(url, timeout=60) as response:
                return bytes(response.read())
        case "requests":
            import requests

            return requests.get(url, timeout=60).content
        case "httpx":
            import httpx

            return httpx.get(url, timeout=60).content
        case "httpx-async":
            return asyncio.run(by_httpx(url))
        case "aiohttp":
            return asyncio.run(by_aiohttp(url))
        case _:
            raise SystemExit(f"no library {library}")


async def by_httpx(url: str) -> bytes:
    import httpx

    async with httpx.AsyncClient(timeout=60) as client:
        return (await client.get(url)).content


async def by_aiohttp(url: str) -> bytes:
    import aiohttp

    # aiohttp looks at the environment only if it is told to.
    async with aiohttp.ClientSession(trust_env=True) as session, session.get(url) as response:
        return await response.read()


sys.stdout.buffer.write(get(*sys.argv[1:]))
