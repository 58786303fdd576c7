"""A script beside ours: it gets a handler while the proxy runs, waits in another, and drops a third."""

from __future__ import annotations

import asyncio

from mitmproxy import http


class Neighbour:
    def __init__(self) -> None:
        self.seen = 0

    def requestheaders(self, flow: http.HTTPFlow) -> None:
        self.seen += 1
        flow.request.headers["x-neighbour"] = str(self.seen)
        if self.seen == 2:
            vars(self)["response"] = self._respond
        elif self.seen == 3:
            del vars(self)["response"]

    async def request(self, flow: http.HTTPFlow) -> None:
        await asyncio.sleep(0)
        flow.request.headers["x-waited"] = "1"

    def _respond(self, flow: http.HTTPFlow) -> None:
        print(f"neighbour had response {self.seen}", flush=True)


addons = [Neighbour()]
