"""Cached dispatch does what mitmproxy's own does, in the same order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import addonmanager, exceptions, hooks, http, options
from mitmproxy.http import HTTPFlow
from mitmproxy.master import Master
from mitmproxy.proxy.layers.http._hooks import HttpRequestHook, HttpResponseHook
from mitmproxy.test import tflow

from proxy_addon.mitm import dispatch
from proxy_addon.mitm.gate import Outcome
from tests.unit.mitm.clients import curl
from tests.unit.mitm.fake_gate import FakeGate
from tests.unit.mitm.proxy import running_proxy
from tests.unit.mitm.servers import h1_server
from tests.unit.mitm.test_replay import shop


class Addon:
    def __init__(self, name: str, calls: list[str], *, sub: tuple[Any, ...] = (), error: Any = None) -> None:
        self.name = name
        self.calls = calls
        self.addons = list(sub)
        self.error = error

    def request(self, flow: HTTPFlow) -> None:
        self.calls.append(self.name)
        if self.error:
            raise self.error


class Async(Addon):
    async def request(self, flow: HTTPFlow) -> None:  # type: ignore[override]
        self.calls.append(self.name)


class Idle:
    name = "idle"


def world(calls: list[str]) -> tuple[Any, ...]:
    return (
        Addon("a", calls),
        Idle(),
        Addon(
            "b",
            calls,
            sub=(Async("b1", calls), Addon("b2", calls, error=ValueError("x")), Addon("b3", calls)),
        ),
        Async("c", calls),
        Addon("d", calls, error=KeyError("y")),
        Addon("e", calls),
    )


@pytest.fixture(params=[False, True], ids=["mitmproxy", "cached"])
def master(request: pytest.FixtureRequest) -> Callable[[], Any]:
    def make() -> Any:
        made = Master(options.Options())
        if request.param:
            assert dispatch.install(made.addons) is None
        return made

    return make


async def test_order_and_failures(master: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []
    addons, flow = master().addons, tflow.tflow()
    addons.add(*world(calls))
    for _ in range(2):
        calls.clear()
        await addons.handle_lifecycle(HttpRequestHook(flow))
        assert calls == ["a", "b", "b1", "b2", "c", "d", "e"]  # b3 is of the same chain as b2, which failed
    assert caplog.text.count("Addon error") == 4
    await addons.handle_lifecycle(HttpResponseHook(flow))
    assert len(calls) == 7


async def test_halt(master: Callable[[], Any]) -> None:
    calls: list[str] = []
    addons = master().addons
    addons.add(
        Addon(
            "a",
            calls,
            error=exceptions.AddonHalt(),  # type: ignore[no-untyped-call]
        ),
        Addon("b", calls),
    )
    await addons.trigger_event(HttpRequestHook(tflow.tflow()))
    assert calls == ["a"]


async def test_addons_come_and_go(master: Callable[[], Any]) -> None:
    calls: list[str] = []
    addons = master().addons
    first, second = Addon("a", calls), Addon("b", calls)

    async def request() -> list[str]:
        calls.clear()
        await addons.trigger_event(HttpRequestHook(tflow.tflow()))
        return list(calls)

    assert await request() == []
    addons.add(first)
    assert await request() == ["a"]
    addons.add(second)
    assert await request() == ["a", "b"]
    addons.remove(first)
    assert await request() == ["b"]
    second.request = lambda flow: calls.append("replaced")  # type: ignore[method-assign]
    assert await request() == ["replaced"]
    second.addons.append(Addon("late", calls))
    addons.trigger(hooks.ConfigureHook(set()))
    assert await request() == ["replaced", "late"]
    addons.clear()
    assert await request() == []


async def test_an_untested_version_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mitmproxy.version.VERSION", "99.0.0")
    master = Master(options.Options())
    why = dispatch.install(master.addons)
    assert why
    assert "99.0.0" in why
    assert master.addons.trigger_event.__func__ is addonmanager.AddonManager.trigger_event  # type: ignore[attr-defined]


async def test_a_real_proxy_with_it(confdir: Path, gate: FakeGate) -> None:
    class Installing:
        def load(self, loader: Any) -> None:
            dispatch.install(loader.master.addons)

        def request(self, flow: http.HTTPFlow) -> None:
            flow.request.headers["x-seen"] = "1"

    async with h1_server(shop) as up, running_proxy(confdir, gate, extra=(Installing(),)) as proxy:
        got = await curl(proxy.url, up.url("/a"), up.url("/b"))
        assert got.status == 200
        assert [r.get("x-seen") for r in up.requests] == ["1"] * 4
    assert [t.outcome for t in gate.tickets] == [Outcome.COMPLETE] * 2


async def test_who_is_not_of_mitmproxy_is_asked_each_time(master: Callable[[], Any]) -> None:
    """A script may give an addon a handler while the proxy runs, and nothing tells of it."""
    calls: list[str] = []
    addons = master().addons
    late, group = Idle(), Addon("group", calls, sub=())
    addons.add(late, group)

    async def request() -> list[str]:
        calls.clear()
        await addons.handle_lifecycle(HttpRequestHook(tflow.tflow()))
        return list(calls)

    assert await request() == ["group"]
    late.request = lambda flow: calls.append("late")  # type: ignore[attr-defined]
    group.addons.append(Async("sub", calls))
    assert await request() == ["late", "group", "sub"]
    del late.request  # type: ignore[attr-defined]
    assert await request() == ["group", "sub"]


async def test_what_cannot_be_called_is_told_as_ever(
    master: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []
    addons = master().addons
    odd = Idle()
    odd.request = "text"  # type: ignore[attr-defined]
    addons.add(odd, Addon("a", calls))
    await addons.handle_lifecycle(HttpRequestHook(tflow.tflow()))
    assert calls == ["a"]
    assert "Addon handler request" in caplog.text


async def test_an_addon_of_mitmproxys_own_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own:
        asked = 0

        def __getattr__(self, name: str) -> Any:
            if name == "request":
                self.asked += 1
            raise AttributeError(name)

    Own.__module__ = "mitmproxy.addons.own"
    addons: Any = Master(options.Options()).addons
    own = Own()
    addons.add(own)
    assert dispatch.install(addons) is None
    for _ in range(3):
        await addons.handle_lifecycle(HttpRequestHook(tflow.tflow()))
    assert own.asked == 1


async def test_once_and_never_over_somebody_elses() -> None:
    addons: Any = Master(options.Options()).addons
    assert dispatch.install(addons) is None
    first = addons.trigger_event
    assert dispatch.install(addons) is None
    assert addons.trigger_event == first

    others: Any = Master(options.Options()).addons
    own = others.trigger_event = others.trigger_event
    assert dispatch.install(others) is None
    assert others.trigger_event is own
