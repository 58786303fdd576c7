"""What makes mitmproxy faster changes nothing that can be seen: types, events, hooks."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http, options
from mitmproxy.addons import default_addons
from mitmproxy.addons.anticache import AntiCache
from mitmproxy.addons.modifyheaders import ModifyHeaders
from mitmproxy.addons.onboarding import Onboarding
from mitmproxy.log import AddLogHook, LogEntry
from mitmproxy.master import Master
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook
from mitmproxy.proxy.server import ConnectionHandler
from mitmproxy.test import tflow
from mitmproxy.tools.dump import DumpMaster

from proxy_addon.mitm import dispatch, idle, typechecks
from proxy_addon.mitm.gate import Outcome
from tests.unit.mitm.clients import curl
from tests.unit.mitm.fake_gate import FakeGate
from tests.unit.mitm.mitmdump import ADDON, mitmdump
from tests.unit.mitm.proxy import running_proxy
from tests.unit.mitm.servers import h1_server
from tests.unit.mitm.test_replay import shop

log = logging.getLogger("bursar")


class TestTypes:
    GOOD: dict[str, Any] = {  # noqa: RUF012
        "host": "a",
        "port": 80,
        "method": b"GET",
        "scheme": b"http",
        "authority": b"",
        "path": b"/",
        "http_version": b"HTTP/1.1",
        "headers": http.Headers(),
        "content": None,
        "trailers": None,
        "timestamp_start": 0.0,
        "timestamp_end": None,
    }
    BAD = (
        ("host", b"a"),
        ("port", "80"),
        ("port", None),
        ("method", "GET"),
        ("headers", ()),
        ("content", "text"),
        ("timestamp_start", "now"),
        ("timestamp_end", b""),
    )

    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Which classes mitmproxy's own check was asked about."""
        original: Any = vars(http.MessageData)["__post_init__"]
        seen: list[str] = []

        def own(message: Any) -> None:
            seen.append(type(message).__name__)
            original(message)

        monkeypatch.setattr(http.MessageData, "__post_init__", own)
        typechecks.install()
        return seen

    def test_what_is_right_is_not_looked_at_twice(self, asked: list[str]) -> None:
        http.RequestData(**self.GOOD)
        http.RequestData(**self.GOOD | {"content": b"x", "timestamp_start": 1, "trailers": http.Headers()})
        http.Response.make(200, b"x", {"a": "b"})
        assert asked == []

    @pytest.mark.parametrize(("name", "value"), BAD)
    def test_what_is_wrong_is_refused_as_ever(self, asked: list[str], name: str, value: object) -> None:
        with pytest.raises(TypeError, match=f"for {name}, but got"):
            http.RequestData(**self.GOOD | {name: value})
        assert asked == ["RequestData"]

    def test_a_subclass_of_a_type_is_for_mitmproxy_to_judge(self, asked: list[str]) -> None:
        class Text(str):
            __slots__ = ()

        http.RequestData(**self.GOOD | {"host": Text("a"), "port": True})
        assert asked == ["RequestData"]

    def test_once_is_enough(self, asked: list[str]) -> None:
        first = vars(http.MessageData)["__post_init__"]
        typechecks.install()
        assert vars(http.MessageData)["__post_init__"] is first


class Listening:
    """An addon of the old kind."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def add_log(self, entry: Any) -> None:
        self.heard.append(entry.msg.partition("] ")[2])


@pytest.fixture
def at_debug() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    yield
    root.setLevel(level)


@pytest.mark.usefixtures("at_debug")
class TestLogEvents:
    @pytest.fixture
    def make(self) -> Callable[[], Any]:
        """Called in the test itself: mitmproxy's handlers listen in that one only."""

        def make() -> Any:
            master: Any = Master(options.Options())
            master.events = Counter[str]()
            dispatch.install(master.addons)
            trigger = master.addons.trigger

            def counting(event: Any) -> None:
                master.events[event.name] += 1
                trigger(event)

            master.addons.trigger = counting
            return master

        return make

    async def test_nobody_takes_them(self, make: Callable[[], Any]) -> None:
        master = make()
        log.info("first")  # by the first it is known
        await asyncio.sleep(0)
        master.events.clear()
        log.info("second")
        await asyncio.sleep(0)
        assert master.events == {}

    async def test_who_takes_them_gets_them_all(self, make: Callable[[], Any]) -> None:
        master, listening = make(), Listening()
        log.info("before")
        await asyncio.sleep(0)
        master.addons.add(listening)
        log.info("one")
        log.error("two")
        logging.getLogger("another").debug("three")
        await asyncio.sleep(0)
        assert listening.heard[-3:] == [
            "one",
            "two",
            "three",
        ]  # after mitmproxy's advice to use something else
        master.addons.remove(listening)
        log.info("after")
        await asyncio.sleep(0)
        assert listening.heard[-1] == "three"

    async def test_one_by_hand_comes_as_ever(self, make: Callable[[], Any]) -> None:
        master, listening = make(), Listening()
        master.addons.add(listening)
        master.addons.trigger(AddLogHook(_entry("[x] by hand")))
        assert listening.heard[-1] == "by hand"


def _entry(text: str) -> Any:
    return LogEntry(text, "info")  # type: ignore[no-untyped-call]


class TestIdle:
    async def test_until_the_option_is_set(self) -> None:
        master = DumpMaster(options.Options(), with_termlog=False, with_dumper=False)
        assert dispatch.install(master.addons) is None
        addons: Any = master.addons

        async def request() -> http.Headers:
            flow = tflow.tflow()
            flow.request.headers["if-none-match"] = "x"
            await addons.handle_lifecycle(HttpRequestHook(flow))
            return flow.request.headers

        assert "if-none-match" in await request()
        master.options.update(anticache=True)  # type: ignore[no-untyped-call]
        assert "if-none-match" not in await request()
        master.options.update(anticache=False)  # type: ignore[no-untyped-call]
        assert "if-none-match" in await request()

    async def test_only_addons_that_we_know_and_only_their_hooks_of_flows(self) -> None:
        master = DumpMaster(options.Options(), with_termlog=False, with_dumper=False)
        chosen = master.options
        assert idle.is_idle(AntiCache(), "request", chosen)
        assert not idle.is_idle(AntiCache(), "configure", chosen)
        assert not idle.is_idle(object(), "request", chosen)
        assert not idle.is_idle(AntiCache(), "request", options.Options())  # it has no such option
        chosen.update(modify_headers=["/~q/a/b"])  # type: ignore[no-untyped-call]
        assert not idle.is_idle(ModifyHeaders(), "requestheaders", chosen)

    def test_all_of_them_are_mitmproxys_own(self) -> None:
        own = {type(addon) for addon in default_addons()}  # type: ignore[no-untyped-call]
        assert set(idle._OPTION_OF) <= own
        assert Onboarding in own


class Tasks:
    """How many hooks had a task of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        own = ConnectionHandler.hook_task

        async def hook_task(handler: Any, hook: Any) -> None:
            self.names.append(hook.name)
            await own(handler, hook)

        monkeypatch.setattr(ConnectionHandler, "hook_task", hook_task)


class Installing:
    def load(self, loader: Any) -> None:
        dispatch.install(loader.master.addons)


class Waiting:
    async def request(self, flow: http.HTTPFlow) -> None:
        await asyncio.sleep(0)
        flow.request.headers["x-waited"] = "1"


class Intercepting:
    """Holds each response back until a later turn of the loop."""

    def __init__(self) -> None:
        self.updates = 0

    def response(self, flow: http.HTTPFlow) -> None:
        flow.intercept()  # type: ignore[no-untyped-call]
        asyncio.get_running_loop().call_soon(flow.resume)

    def update(self, flows: Any) -> None:
        self.updates += 1


class TestHooksWithoutTasks:
    @pytest.fixture
    def tasks(self, monkeypatch: pytest.MonkeyPatch) -> Tasks:
        return Tasks(monkeypatch)

    async def test_none_where_nobody_waits(self, confdir: Path, gate: FakeGate, tasks: Tasks) -> None:
        async with h1_server(shop) as up, running_proxy(confdir, gate, extra=(Installing(),)) as proxy:
            assert (await curl(proxy.url, up.url("/a"), up.url("/b"))).status == 200
            # The gate is asked in tasks of its own; of mitmproxy's hooks none has one.
            assert {name for name in tasks.names if not name.startswith("bursar_")} == set()
        assert [t.outcome for t in gate.tickets] == [Outcome.COMPLETE] * 2

    async def test_one_for_each_that_waits(self, confdir: Path, gate: FakeGate, tasks: Tasks) -> None:
        extra = (Installing(), Waiting())
        async with h1_server(shop) as up, running_proxy(confdir, gate, extra=extra) as proxy:
            assert (await curl(proxy.url, up.url("/a"))).status == 200
            assert [name for name in tasks.names if not name.startswith("bursar_")] == ["request"]
            assert all(request.get("x-waited") == "1" for request in up.requests)

    async def test_a_flow_that_is_intercepted_waits(
        self, confdir: Path, gate: FakeGate, tasks: Tasks
    ) -> None:
        holding = Intercepting()
        extra = (Installing(), holding)
        async with h1_server(shop) as up, running_proxy(confdir, gate, extra=extra) as proxy:
            assert (await curl(proxy.url, up.url("/a"))).status == 200
            assert holding.updates >= 4  # after each hook of the flow
            assert "response" in tasks.names

    async def test_plain_mitmproxy_has_one_for_each(self, confdir: Path, tasks: Tasks) -> None:
        """What this spares."""
        async with h1_server(shop) as up, running_proxy(confdir, None) as proxy:
            assert (await curl(proxy.url, up.url("/free"))).status in (200, 402)
        assert {"requestheaders", "request", "responseheaders", "response"} <= set(tasks.names)


@pytest.mark.parametrize("ours_first", [True, False])
async def test_a_script_beside_ours_under_plain_mitmdump(confdir: Path, ours_first: bool) -> None:
    """What others rely on holds: their handlers are found when they come, gone when they go, and waited for."""
    scripts = [ADDON, ADDON.with_name("neighbour_addon.py")]
    arguments = [part for one in (scripts if ours_first else scripts[::-1]) for part in ("-s", str(one))]
    async with (
        h1_server(shop) as up,
        mitmdump(confdir, *arguments, addon=False, BURSAR_TEST_WARM="1") as proxy,
    ):
        assert (await curl(proxy.url, up.url("/a"), up.url("/b"), up.url("/c"))).status == 200
    assert [(one.get("x-neighbour"), one.get("x-waited")) for one in up.requests] == [
        ("1", "1"),
        ("2", "1"),
        ("3", "1"),
    ]
    output = b"".join(proxy.output)
    assert output.count(b"neighbour had response") == output.count(b"neighbour had response 2") == 1
    assert b"rror" not in output


COMING_AND_GOING = """
import gc, sys, weakref
from collections import deque
from proxy_addon.mitm.quick import look_less_often

class Connection:
    def __init__(self):
        self.itself = self
        self.parts = [[] for _ in range(500)]
        weakref.finalize(self, freed.append, None)

freed, alive, made, most = [], deque(), 0, 0
program = [[] for _ in range(400_000)]
gc.collect()
if sys.argv[1] == "quick":
    look_less_often()
for _ in range(6000):
    alive.append(Connection())
    made += 1
    if len(alive) > 60:
        alive.popleft()
    most = max(most, made - len(freed) - len(alive))
print(most)
"""


def test_connections_that_have_ended_are_freed_as_soon_as_without_us() -> None:
    """As soon as on the newest Python, whose collector looks less often by itself: they hold what it does not count."""

    def waiting(how: str) -> int:
        program = [sys.executable, "-c", COMING_AND_GOING, how]
        return int(subprocess.run(program, capture_output=True, text=True, check=True).stdout)

    assert 60 < waiting("quick") <= max(waiting("plain"), 600)
