"""The real proxy, in this process, with nothing of ours but the replay and a fake gate."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mitmproxy import http, options
from mitmproxy.tools.dump import DumpMaster

from proxy_addon.mitm.paying import Limits
from proxy_addon.mitm.replay import Replay
from tests.unit.mitm.fake_gate import FakeGate


class Flows:
    """What other addons see."""

    def __init__(self) -> None:
        self.responses: list[http.HTTPFlow] = []
        self.errors: list[http.HTTPFlow] = []
        self.heads: list[int] = []

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        assert flow.response
        self.heads.append(flow.response.status_code)

    def response(self, flow: http.HTTPFlow) -> None:
        self.responses.append(flow)

    def error(self, flow: http.HTTPFlow) -> None:
        self.errors.append(flow)


class LogLines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def text(self) -> str:
        return "\n".join(self.lines)


@dataclass
class Proxy:
    master: DumpMaster
    replay: Replay | None
    port: int
    log: LogLines
    flows: Flows = field(default_factory=Flows)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def logged() -> Iterator[LogLines]:
    handler, root = LogLines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextlib.asynccontextmanager
async def running_proxy(
    confdir: Path,
    gate: FakeGate | None,
    limits: Limits | None = None,
    *,
    extra: tuple[Any, ...] = (),
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """Without a gate it is plain mitmproxy: what ours is compared with."""
    chosen = options.Options(confdir=str(confdir), listen_host="127.0.0.1", listen_port=0, ssl_insecure=True)
    with logged() as log:
        master = DumpMaster(chosen, with_termlog=False, with_dumper=False)
        flows = Flows()
        replay = Replay(gate, master.addons, limits) if gate is not None else None
        master.addons.add(*extra, flows, *([replay] if replay else []))  # type: ignore[no-untyped-call]
        chosen.update(**settings)  # type: ignore[no-untyped-call]
        running = asyncio.create_task(master.run())
        proxyserver = master.addons.get("proxyserver")  # type: ignore[no-untyped-call]
        try:
            while not proxyserver.listen_addrs():
                await asyncio.sleep(0.01)
                assert not running.done(), log.text()
            port = proxyserver.listen_addrs()[0][1]
            yield Proxy(master, replay, port, log, flows)
        finally:
            master.shutdown()  # type: ignore[no-untyped-call]
            await running
    if gate is not None:
        assert "mitmproxy has crashed" not in log.text(), log.text()
        if replay is not None:
            replay.paying.close()
        assert all(t.calls.count("finished") == 1 for t in gate.tickets), [t.calls for t in gate.tickets]
