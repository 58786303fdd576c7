"""Who may come in, and what a proxy that stands open says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mitmproxy import connection, http, options
from mitmproxy.addons import proxyauth

from proxy_addon.mitm import door, peers
from tests.unit.mitm.clients import curl
from tests.unit.mitm.proxy import running_proxy
from tests.unit.mitm.servers import Exchange, Exchange2, h1_server
from tests.unit.places import foreign_address


def chosen(**values: Any) -> options.Options:
    made = options.Options()
    for name, value in {"proxyauth": None, **values}.items():
        if name not in made:
            made.add_option(name, type(value) if value is not None else str | None, value, "")
        else:
            made.update(**{name: value})  # type: ignore[no-untyped-call]
    return made


def flow_from(peer: str, url: str) -> http.HTTPFlow:
    client = connection.Client(peername=(peer, 9), sockname=("192.0.2.9", 8), timestamp_start=0)
    flow = http.HTTPFlow(client, connection.Server(address=None))
    flow.request = http.Request.make("GET", url)
    return flow


@pytest.mark.parametrize(
    ("peer", "url", "values", "says"),
    [
        ("127.0.0.1", "https://a.test/", {}, None),
        ("::1", "http://a.test/", {}, None),
        ("192.0.2.7", "https://a.test/", {}, "on another machine"),
        ("::ffff:192.0.2.7", "https://a.test/", {}, "on another machine"),
        ("192.0.2.7", "https://a.test/", {"proxyauth": "a:b"}, None),
        ("192.0.2.7", "https://a.test/", {"proxyauth": "@file"}, None),
        ("192.0.2.7", "https://a.test/", {"proxyauth": "any"}, "on another machine"),
        ("192.0.2.7", "https://a.test/", {"proxyauth": ""}, "on another machine"),
        ("", "https://a.test/", {}, "on another machine"),  # a socket without addresses
        ("127.0.0.1", "https://a.test/", {"ssl_insecure": True}, "ssl_insecure"),
        ("127.0.0.1", "http://a.test/", {"ssl_insecure": True}, None),
    ],
)
def test_who_is_paid_for(peer: str, url: str, values: dict[str, Any], says: str | None) -> None:
    why = door.why_unpaid(flow_from(peer, url), chosen(**values))
    assert (why is None) == (says is None)
    assert says is None or says in str(why)


@pytest.mark.parametrize(
    ("listening", "proxyauth", "doors"),
    [
        ([("127.0.0.1", 1)], None, ""),
        ([("::1", 1, 0, 0), ("127.8.8.8", 2)], None, ""),
        ([("::ffff:127.0.0.1", 1, 0, 0)], None, ""),
        ([("0.0.0.0", 8402), ("::", 8402, 0, 0)], None, "0.0.0.0:8402, [::]:8402"),
        ([("127.0.0.1", 1), ("192.0.2.7", 2)], None, "192.0.2.7:2"),
        ([("somewhere", 2)], None, "somewhere:2"),
        ([("0.0.0.0", 8402)], "a:b", ""),
        ([("0.0.0.0", 8402)], "any", "0.0.0.0:8402"),
    ],
)
def test_where_it_stands_open(listening: list[Any], proxyauth: str | None, doors: str) -> None:
    assert door.open_doors(listening, chosen(proxyauth=proxyauth)) == doors


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({}, [("0.0.0.0", 8080)]),
        ({"listen_host": "127.0.0.1", "listen_port": 1}, [("127.0.0.1", 1)]),
        ({"listen_host": "localhost"}, [("127.0.0.1", 8080)]),
        ({"listen_host": "::"}, [("::", 8080)]),
        (
            {"listen_host": "127.0.0.1", "mode": ["regular@192.0.2.7:3", "socks5"]},
            [("192.0.2.7", 3), ("127.0.0.1", 1080)],
        ),
        ({"mode": ["regular@:5"]}, [("0.0.0.0", 5)]),
        ({"mode": ["reverse:http://a.test@127.0.0.1:6"]}, [("127.0.0.1", 6)]),
        ({"mode": ["local"]}, []),
    ],
)
def test_where_it_is_going_to_listen(values: dict[str, Any], where: list[tuple[str, int]]) -> None:
    assert door.to_listen(chosen(**values)) == where


async def test_the_password_of_a_client_is_on_no_flow(confdir: Path) -> None:
    seen: list[Any] = []

    async def hello(x: Exchange | Exchange2) -> None:
        await x.respond(200, b"hello")

    class Looker:
        def response(self, flow: http.HTTPFlow) -> None:
            seen.append((str(flow.get_state()), peers.user_of(flow, chosen(proxyauth="agent:c4n4ry"))))

    async with (
        h1_server(hello) as up,
        running_proxy(confdir, None, extra=(door.Door(), Looker()), proxyauth="agent:c4n4ry") as proxy,
    ):
        for tunnel in ((), ("-p",)):
            got = await curl(proxy.url, *tunnel, "--proxy-user", "agent:c4n4ry", up.url("/"))
            assert got.body == b"hello"
        assert (await curl(proxy.url, "--proxy-user", "agent:wrong", up.url("/"))).status == 407
    paid = [one for one in seen if "hello" in one[0]]
    assert [user for _, user in paid] == ["agent"] * 2
    assert all("c4n4ry" not in state for state, _ in seen)
    assert isinstance(proxy.master.addons.get("proxyauth"), proxyauth.ProxyAuth)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("password", [None, "a:b"])
async def test_a_proxy_that_stands_open_says_so_once(confdir: Path, password: str | None) -> None:
    settings: dict[str, Any] = {"proxyauth": password} if password else {}
    async with running_proxy(confdir, None, extra=(door.Door(),), listen_host="0.0.0.0", **settings) as proxy:
        await curl(f"http://{foreign_address()}:{proxy.port}", "http://127.0.0.1:9/")
        said = proxy.log.text().count("it asks them for no password: they are not paid for")
        assert said == (0 if password else 1)
