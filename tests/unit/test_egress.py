"""Where connections may go: a table of who asks for what, with a resolver of the test's own."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.core.addresses import Asker, parse_ports
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.core.policy import HostRule, SpendPolicy
from proxy_addon.egress import Egress

NEAR, FAR, OURSELVES = Asker.NEAR, Asker.FAR, Asker.OURSELVES

NAMES = {
    "public.test": ["1.1.1.1", "2606:4700:4700::1111"],
    "paid.test": ["1.1.1.1"],
    "private.test": ["10.0.0.5"],
    "rebound.test": ["127.0.0.1"],
    "mixed.test": ["10.0.0.5", "1.1.1.1", "::1", "2606:4700:4700::1111"],
    "paid-inside.test": ["10.0.0.5"],
    "metadata.test": ["169.254.169.254"],
    "nat64.test": ["64:ff9b::a00:1", "64:ff9b::1.1.1.1"],
    "localhost": ["::1", "127.0.0.1"],
}


@pytest.fixture(autouse=True)
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that were looked up. What is no name of the table is what the system says of it."""
    real = socket.getaddrinfo
    seen: list[str] = []

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        if options.get("flags") == socket.AI_NUMERICHOST:
            return real(host, port, *args, **options)
        seen.append(host)
        name = host.lower().rstrip(".")
        if name.endswith(".test") and name not in NAMES:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info for one in NAMES.get(name, [host]) for info in real(one, port, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return seen


def policy(*patterns: str) -> SpendPolicy:
    rule = HostRule("policy.hosts[0]", "", "1", "1", "1", "1", 3, "3", 1, "0")
    return SpendPolicy(tuple(replace(rule, pattern=pattern) for pattern in patterns), {}, "1", "1")


PAID = policy("paid.test", "paid-inside.test:8080", "127.0.0.1", "localhost:3000", "10.0.0.5", "*.wild.test")


def egress(**options: Any) -> Egress:
    return Egress(PAID, **options)


async def goes_to(made: Egress, host: str, port: int, asker: Asker) -> list[str]:
    """The addresses that may be dialled; [] if it is refused."""
    try:
        return [str(info[4][0]) for info in await made.resolve(host, port, asker)]
    except LocalRefusal:
        return []


TABLE: list[tuple[dict[str, Any], str, int, Asker, list[str]]] = [
    # options; host, port, who asks; where it may go
    ({}, "public.test", 443, FAR, NAMES["public.test"]),
    ({}, "public.test", 443, OURSELVES, NAMES["public.test"]),
    ({}, "mixed.test", 443, FAR, ["1.1.1.1", "2606:4700:4700::1111"]),
    ({}, "nat64.test", 443, FAR, ["64:ff9b::101:101"]),
    *[
        ({}, host, 80, asker, [])
        for host in ("private.test", "rebound.test", "metadata.test")
        for asker in (FAR, OURSELVES)
    ],
    *[
        ({}, host, 80, FAR, [])
        for host in (
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "0",
            "::1",
            "::ffff:127.0.0.1",
            "LOCALHOST",
        )
    ],
    # What is paid, by name: nobody's word but the resolver's says where it is.
    ({}, "paid.test", 443, NEAR, ["1.1.1.1"]),
    ({}, "paid-inside.test", 8080, NEAR, []),
    ({}, "PAID-inside.test.", 8080, NEAR, []),
    ({}, "paid-inside.test", 8080, OURSELVES, []),
    ({"allow": ["10.0.0.0/8"]}, "paid-inside.test", 8080, NEAR, ["10.0.0.5"]),
    ({"allow": ["paid-inside.test"]}, "paid-inside.test", 8080, NEAR, ["10.0.0.5"]),
    ({"allow": ["10.0.0.0/8:8080"]}, "paid-inside.test", 8080, OURSELVES, ["10.0.0.5"]),
    ({"allow": ["10.0.0.0/8:8081"]}, "paid-inside.test", 8080, NEAR, []),
    ({"allow": ["other.test"]}, "paid-inside.test", 8080, NEAR, []),
    # What is paid, as an address or localhost: the address itself, and not for other machines.
    ({}, "127.0.0.1", 5000, NEAR, ["127.0.0.1"]),
    ({}, "127.0.0.1", 5000, OURSELVES, ["127.0.0.1"]),
    ({}, "10.0.0.5", 80, NEAR, ["10.0.0.5"]),
    ({}, "10.0.0.5", 80, FAR, []),
    ({}, "localhost", 3000, NEAR, NAMES["localhost"]),
    ({}, "localhost", 3000, FAR, []),
    ({}, "127.1", 5000, OURSELVES, []),
    ({}, "2130706433", 5000, OURSELVES, []),
    ({}, "10.0.0.6", 80, OURSELVES, ["10.0.0.6"]),  # out of a channel's record: it was written there once
    # Ports of clients on other machines.
    *[({}, "public.test", port, FAR, []) for port in (22, 25, 8080, 65535)],
    ({}, "public.test", 25, OURSELVES, NAMES["public.test"]),
    ({"ports": [(8000, 8999)]}, "public.test", 8080, FAR, NAMES["public.test"]),
    ({"ports": [(8000, 8999)]}, "public.test", 443, FAR, []),
    ({"ports": [(8000, 8999)]}, "paid.test", 443, FAR, ["1.1.1.1"]),
    ({"ports": []}, "public.test", 443, FAR, []),
    ({"allow": ["public.test:25"]}, "public.test", 25, FAR, NAMES["public.test"]),
    ({"allow": ["private.test:25"]}, "public.test", 25, FAR, []),
    ({"allow": ["127.0.0.1:3000"]}, "127.0.0.1", 3000, FAR, ["127.0.0.1"]),
    ({"allow": ["127.0.0.1:3000"]}, "rebound.test", 3000, FAR, ["127.0.0.1"]),
    ({"allow": ["127.0.0.1:3000"]}, "127.0.0.1", 80, FAR, []),
    ({"allow": ["127.0.0.1"]}, "127.0.0.1", 5432, FAR, []),
    ({"allow": ["127.0.0.1"]}, "127.0.0.1", 80, FAR, ["127.0.0.1"]),
    ({"allow": ["localhost"]}, "localhost", 80, FAR, NAMES["localhost"]),
    ({"allow": ["127.0.0.1"]}, "localhost", 80, FAR, ["127.0.0.1"]),
    ({"allow": ["localhost"]}, "127.0.0.1", 80, FAR, []),
    ({"allow": ["localhost"]}, "rebound.test", 80, FAR, []),
    ({"allow": ["169.254.169.254"]}, "metadata.test", 80, FAR, ["169.254.169.254"]),
    # Clients on this machine, where the config holds them to it.
    ({"check_local_clients": True}, "public.test", 443, NEAR, NAMES["public.test"]),
    ({"check_local_clients": True}, "public.test", 25, NEAR, []),
    ({"check_local_clients": True}, "rebound.test", 80, NEAR, []),
    ({"check_local_clients": True}, "::1", 80, NEAR, []),
    ({"check_local_clients": True}, "127.0.0.1", 5000, NEAR, ["127.0.0.1"]),
]


@pytest.mark.parametrize(
    ("options", "host", "port", "asker", "where"), TABLE, ids=[f"{i}-{t[1]}" for i, t in enumerate(TABLE)]
)
async def test_where_a_connection_may_go(
    options: dict[str, Any], host: str, port: int, asker: Asker, where: list[str]
) -> None:
    made = egress(**options)
    assert made.checks(host, port, asker)
    assert await goes_to(made, host, port, asker) == where


@pytest.mark.parametrize(
    ("host", "port", "checked"),
    [
        ("public.test", 25, False),
        ("127.0.0.2", 80, False),
        ("rebound.test", 80, False),
        ("paid.test", 443, True),
        ("paid.test", 80, True),  # plain http: not payable, but only the request will say what is spoken
        ("paid.test", 8443, False),
        ("PAID.test.", 443, True),
        ("x.wild.test", 443, True),
        ("wild.test", 443, False),
        ("127.0.0.1", 80, True),
        ("localhost", 3000, True),
        ("localhost", 3001, False),
    ],
)
def test_what_is_checked_for_clients_on_this_machine(host: str, port: int, checked: bool) -> None:
    assert egress().checks(host, port, NEAR) is checked
    assert egress(check_local_clients=True).checks(host, port, NEAR)
    assert egress().checks(host, port, FAR)


async def test_one_look_up_and_only_after_the_port(looked_up: list[str]) -> None:
    await goes_to(egress(), "public.test", 25, FAR)
    assert looked_up == []
    await goes_to(egress(), "public.test", 443, FAR)
    assert looked_up == ["public.test"]


async def test_a_name_that_does_not_exist_is_no_refusal() -> None:
    with pytest.raises(socket.gaierror):
        await egress().resolve("none.test", 443, FAR)


async def test_a_refusal_names_the_way_out() -> None:
    with pytest.raises(LocalRefusal) as caught:
        await egress().resolve("metadata.test", 80, FAR)
    assert caught.value.reason == "destination-not-allowed"
    assert str(caught.value) == (
        "metadata.test:80 is at 169.254.169.254 (link-local), where a client on another machine may not go; if it"
        ' should: [egress].allow = ["169.254.169.254:80"]'
    )
    with pytest.raises(LocalRefusal) as caught:
        await egress().resolve("public.test", 25, FAR)
    assert "public.test:25 is on a port" in str(caught.value)
    with pytest.raises(LocalRefusal) as caught:
        await egress().resolve("::1", 80, FAR)
    assert '[egress].allow = ["[::1]:80"]' in str(caught.value)
    # What it names is what helps.
    assert await goes_to(egress(allow=["169.254.169.254:80"]), "metadata.test", 80, FAR) == [
        "169.254.169.254"
    ]
    assert await goes_to(egress(allow=["[::1]:80"]), "::1", 80, FAR) == ["::1"]


@pytest.mark.parametrize(
    ("host", "refused"),
    [
        ("127.0.0.1", True),
        ("2130706433", True),
        ("0x7f.1", True),
        ("[::1]", True),
        ("localhost", True),
        ("x.LocalHost.", True),
        ("1.1.1.1", False),
        ("rebound.test", False),  # somebody else looks it up
        ("bad name", False),
    ],
)
def test_what_is_known_without_a_look_up(host: str, refused: bool, looked_up: list[str]) -> None:
    assert (egress().refusal_unresolved(host, 80, FAR) is not None) is refused
    assert egress().refusal_unresolved("127.0.0.2", 80, NEAR) is None
    assert egress().refusal_unresolved("127.0.0.1", 80, NEAR) is None
    assert looked_up == []


async def test_the_loop_goes_on_while_a_name_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    asked, go_on = asyncio.Event(), asyncio.Event()
    stuck = loop.run_in_executor

    def in_executor(executor: Any, function: Any, *args: Any) -> Any:
        async def slow() -> Any:
            asked.set()
            await go_on.wait()
            return await stuck(executor, function, *args)

        return asyncio.ensure_future(slow())

    monkeypatch.setattr(loop, "run_in_executor", in_executor)
    resolving = asyncio.create_task(egress().resolve("public.test", 443, FAR))
    await asyncio.wait_for(asked.wait(), 30)
    assert not resolving.done()
    go_on.set()
    assert len(await resolving) == 2


def test_ports_as_the_config_has_them() -> None:
    made = Egress(ports=[parse_ports("1-1023"), parse_ports(8443)])
    assert not made._off_list(8443, FAR)
    assert not made._off_list(25, FAR)
    assert made._off_list(1024, FAR)
    assert not made._off_list(1024, OURSELVES)
