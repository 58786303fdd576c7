"""That what was checked is what is dialled: the real proxy, a resolver that changes its mind, servers that count.

127.0.0.2 stands for a place that may be reached, 127.0.0.1 for one that may not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy import http
from mitmproxy.proxy.server_hooks import ServerConnectionHookData

from proxy_addon.core.addresses import Asker
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.egress import Egress
from proxy_addon.mitm import dialing
from proxy_addon.mitm.dialing import Dialing
from tests.unit.mitm.clients import Got, curl, raw
from tests.unit.mitm.proxy import Proxy, running_proxy
from tests.unit.places import BAD, GOOD, Names, foreign_address, places


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@contextlib.asynccontextmanager
async def checking(
    confdir: Path,
    *,
    allow: tuple[str, ...] = (GOOD,),
    extra: tuple[Any, ...] = (),
    egress: Any = None,
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """A proxy that holds its clients to `allow`, as the config would."""
    guard = Dialing()
    async with running_proxy(confdir, None, extra=(guard, *extra), **settings) as proxy:
        ports = [(1, 65535)]
        guard.open(egress or Egress(allow=allow, ports=ports, check_local_clients=True), proxy.master.addons)
        yield proxy


WAYS = [("plain", False, ()), ("connect", True, ()), ("lazy", True, ("lazy",)), ("tunnel", False, ("-p",))]


@pytest.fixture(params=WAYS, ids=[name for name, *_ in WAYS])
def way(request: pytest.FixtureRequest, pem: Path) -> tuple[Path | None, dict[str, Any], tuple[str, ...]]:
    """Through HTTP and through CONNECT alike: whether with TLS, mitmproxy's settings, curl's options."""
    _, tls, more = request.param
    settings = {"connection_strategy": "lazy"} if "lazy" in more else {}
    return (pem if tls else None), settings, tuple(option for option in more if option.startswith("-"))


Way = tuple[Path | None, dict[str, Any], tuple[str, ...]]


def refused(got: Got) -> bool:
    """By the proxy: a 502, or a CONNECT that failed with one (curl's 56, or 97 in some versions)."""
    return got.status == 502 if got.code == 0 else got.code in (56, 97)


async def test_the_checked_address_is_dialled(confdir: Path, names: Names, way: Way) -> None:
    pem, settings, options = way
    names["flip.test"] = [[GOOD], [BAD]]
    async with places(pem) as up, checking(confdir, **settings) as proxy:
        got = await curl(proxy.url, *options, up.url("flip.test"))
        assert (got.code, got.body) == (0, GOOD.encode())
        assert names.asked == ["flip.test"]
        assert up.at[BAD].connections == 0
        assert f"flip.test:{up.port}".encode() in up.at[GOOD].received
        if pem is not None:
            assert up.at[GOOD].sni == ["flip.test"]


async def test_what_it_turns_into_is_refused(confdir: Path, names: Names, way: Way) -> None:
    pem, settings, options = way
    names["flip.test"] = [[GOOD], [BAD]]
    async with places(pem) as up, checking(confdir, **settings) as proxy:
        assert (await curl(proxy.url, *options, up.url("flip.test"))).body == GOOD.encode()
        got = await curl(proxy.url, *options, up.url("flip.test"))  # a new connection
        assert refused(got)
        assert up.at[BAD].connections == 0
        assert f"flip.test:{up.port} is at 127.0.0.1 (loopback)" in proxy.log.text()


async def test_a_kept_connection_needs_no_second_look(confdir: Path, names: Names, pem: Path) -> None:
    names["flip.test"] = [[GOOD], [BAD]]
    for tls in (None, pem):
        names["flip.test"] = [[GOOD], [BAD]]
        names.asked.clear()
        async with places(tls) as up, checking(confdir) as proxy:
            got = await curl(proxy.url, *(up.url("flip.test", f"/{n}") for n in range(3)))
            assert got.body == GOOD.encode() * 3
            assert (up.at[GOOD].connections, names.asked) == (1, ["flip.test"])


async def test_of_several_addresses_those_that_may_be_dialled(confdir: Path, names: Names) -> None:
    """The first that answers, as without us; what may not be dialled is as if it were not there."""
    names["many.test"] = [[BAD, "127.0.0.3", GOOD]]
    async with places() as up, checking(confdir, allow=("127.0.0.3", GOOD)) as proxy:
        got = await curl(proxy.url, up.url("many.test"))
        assert got.body == GOOD.encode()
        assert up.at[BAD].connections == 0


FORMS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "LOCALHOST",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "0",
]


@pytest.mark.parametrize("host", FORMS)
async def test_an_address_in_any_form_is_refused(confdir: Path, host: str) -> None:
    async with places() as up, checking(confdir) as proxy:
        for head in (
            f"GET http://{host}:{up.port}/ HTTP/1.1\r\nHost: {host}:{up.port}\r\nConnection: close\r\n\r\n",
            f"CONNECT {host}:{up.port} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        ):
            answer = await raw(proxy.port, head.encode())
            assert answer.startswith(b"HTTP/1.1 502"), answer
        assert [place.connections for place in up.at.values()] == [0, 0]


async def test_a_websocket_goes_the_same_way(confdir: Path, names: Names) -> None:
    names["flip.test"] = [[BAD]]
    async with places() as up, checking(confdir) as proxy:
        answer = await raw(
            proxy.port,
            f"GET http://flip.test:{up.port}/ HTTP/1.1\r\nHost: flip.test\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode(),
        )
        assert answer.startswith(b"HTTP/1.1 502")
        assert up.at[BAD].connections == 0


async def test_raw_bytes_in_a_tunnel_go_the_same_way(confdir: Path, names: Names) -> None:
    """Also for hosts that mitmproxy is told to leave alone."""
    names["flip.test"] = [[BAD]]
    async with places() as up, checking(confdir, connection_strategy="lazy", ignore_hosts=["flip"]) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(f"CONNECT flip.test:{up.port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(b"SSH-2.0-x\r\n" + b"\0" * 100)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        assert up.at[BAD].connections == 0


# -- when the look-up is not ours after all


class Elsewhere:
    """Another addon, which sends the connection somewhere else after it was checked."""

    def server_connect(self, data: ServerConnectionHookData) -> None:
        assert data.server.address
        data.server.address = (BAD, data.server.address[1])


async def test_a_connection_that_went_elsewhere_gets_no_byte(confdir: Path, names: Names, way: Way) -> None:
    pem, settings, options = way
    names["flip.test"] = [[GOOD]]
    async with places(pem) as up, checking(confdir, extra=(Elsewhere(),), **settings) as proxy:
        got = await curl(proxy.url, *options, up.url("flip.test"))
        assert got.code != 0 or got.status == 502
        assert up.at[BAD].connections <= 1
        assert (up.at[BAD].received, up.at[BAD].sni) == (b"", [])
        assert "was not made to what was checked: cut" in proxy.log.text()


async def test_a_loop_with_a_resolver_of_its_own(
    confdir: Path, names: Names, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the name is looked up twice; what comes of it is looked at."""
    pem, settings, options = way
    monkeypatch.setattr(dialing, "_pinning", lambda resolve: resolve)
    names["flip.test"] = [[GOOD], [BAD]]
    async with places(pem) as up, checking(confdir, **settings) as proxy:
        got = await curl(proxy.url, *options, up.url("flip.test"))
        assert got.code != 0 or got.status == 502
        assert (up.at[BAD].received, up.at[BAD].sni) == (b"", [])
        assert "was not made to what was checked: cut" in proxy.log.text()
        names["same.test"] = [[GOOD]]
        assert (await curl(proxy.url, *options, up.url("same.test"))).body == GOOD.encode()


async def test_the_checked_address_is_this_connections_alone(confdir: Path, names: Names) -> None:
    """What runs later, on behalf of the same connection, looks names up anew."""
    seen: list[Any] = []

    class Later:
        async def requestheaders(self, flow: http.HTTPFlow) -> None:
            seen.append(dialing._pin.get())

        response = responseheaders = request = requestheaders

    names["flip.test"] = [[GOOD]]
    async with places() as up, checking(confdir, extra=(Later(),)) as proxy:
        await curl(proxy.url, up.url("flip.test"), up.url("flip.test"))
    assert seen == [None] * 8


# -- what cannot be checked


class Broken:
    def __init__(self, **fails: Exception) -> None:
        self.fails = fails

    def checks(self, host: str, port: int, asker: object) -> bool:
        if "checks" in self.fails:
            raise self.fails["checks"]
        return True

    async def resolve(self, host: str, port: int, asker: object) -> list[Any]:
        raise self.fails["resolve"]


@pytest.mark.parametrize("where", ["checks", "resolve"])
async def test_a_check_that_fails_makes_no_connection(confdir: Path, where: str, way: Way) -> None:
    pem, settings, options = way
    broken = Broken(**{where: KeyError("c4n4ry")})
    async with places(pem) as up, checking(confdir, egress=broken, **settings) as proxy:
        assert refused(await curl(proxy.url, *options, up.url(GOOD)))
        assert [place.connections for place in up.at.values()] == [0, 0]
        assert "checking a destination failed, no connection is made: KeyError at" in proxy.log.text()
        assert "c4n4ry" not in proxy.log.text()


async def test_a_name_that_does_not_exist_fails_as_without_us(confdir: Path, names: Names) -> None:
    async with checking(confdir) as proxy:
        ours = await curl(proxy.url, "http://none.test/")
    async with running_proxy(confdir, None) as proxy:
        plain = await curl(proxy.url, "http://none.test/")
    assert ours.status == 502
    assert ours.body == plain.body


# -- whom it is not for


@pytest.mark.parametrize("held", [False, True])
async def test_clients_on_this_machine_are_held_to_it_if_the_config_says_so(
    confdir: Path, names: Names, held: bool
) -> None:
    names["flip.test"] = [[BAD]]
    async with (
        places() as up,
        checking(confdir, egress=Egress(check_local_clients=held, ports=[(1, 65535)])) as proxy,
    ):
        for host in (BAD, "flip.test"):
            got = await curl(proxy.url, up.url(host))
            assert refused(got) if held else got.body == BAD.encode()


async def test_an_address_that_the_operator_wrote_is_not_checked(confdir: Path) -> None:
    async with places() as up:
        mode = [f"reverse:http://{BAD}:{up.port}"]
        async with checking(confdir, mode=mode) as proxy:
            answer = await raw(proxy.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert answer.endswith(BAD.encode())


async def test_behind_an_upstream_proxy_what_is_no_name_is_refused(confdir: Path, names: Names) -> None:
    """The other proxy looks names up; it is the operator's, and at an address of the operator's choice."""
    async with places() as up:
        mode = [f"upstream:http://{BAD}:{up.port}"]
        async with checking(confdir, mode=mode) as proxy:
            assert (await curl(proxy.url, "http://flip.test/")).body == BAD.encode()
            assert b"GET http://flip.test/ HTTP/1.1" in up.at[BAD].received
            before = up.at[BAD].received
            for url in (
                "http://169.254.169.254/",
                "http://2130706433/",
                "http://localhost/",
                "https://[::1]/",
            ):
                assert refused(await curl(proxy.url, url)), url
            assert up.at[BAD].received == before
    assert names.asked == []


async def test_the_proxy_does_not_connect_to_itself(confdir: Path, names: Names) -> None:
    """mitmproxy knows itself by its usual names; a name that leads to it would go round and round."""
    names["self.test"] = [["127.0.0.1"]]
    async with checking(confdir, egress=Egress()) as proxy:
        for host in ("self.test", "127.1", "0", "2130706433", "localhost"):
            got = await asyncio.wait_for(curl(proxy.url, f"http://{host}:{proxy.port}/"), 30)
            assert got.status == 502, host
        assert "is this proxy itself" in proxy.log.text()


async def test_a_far_client_is_not_told_what_a_name_is(confdir: Path, names: Names) -> None:
    names["inside.test"] = [["10.1.2.3"]]
    address = foreign_address()
    async with checking(confdir, listen_host="0.0.0.0") as proxy:
        assert (
            "other machines reach this proxy" not in proxy.log.text()
        )  # it was opened later than it started
        got = await curl(f"http://{address}:{proxy.port}", "http://inside.test/")
        assert got.status == 502
        assert b"10.1.2.3" not in got.body
        assert b"is no place that this proxy connects to" in got.body
        assert "inside.test:80 is at 10.1.2.3 (private)" in proxy.log.text()


def test_a_refusal_is_told_in_full_on_this_machine_only() -> None:
    refusal = LocalRefusal("x", "a.test:80 is at 10.0.0.1")
    assert dialing._told(refusal, "a.test", 80, Asker.NEAR) == "bursar: a.test:80 is at 10.0.0.1"
    assert "10.0.0.1" not in dialing._told(refusal, "a.test", 80, Asker.FAR)
