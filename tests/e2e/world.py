"""Fixtures: one dev chain and seller per test process; homes and proxies made to order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mitmproxy.certs import CertStore

from tests.e2e.proxies import Home, Proxy, mitmdump
from tests.peers.devnet import Devnet

MakeHome = Callable[..., Home]
MakeProxy = Callable[..., Proxy]


@pytest.fixture(scope="session")
def devnet() -> Iterator[Devnet]:
    """A seller who suggests deposits for a hundred requests."""
    with Devnet({"suggested-deposit": "1"}) as net:
        yield net


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mitmproxy's authority, made once: its key takes a while."""
    path = tmp_path_factory.mktemp("ca")
    CertStore.from_store(path, "mitmproxy", 2048)
    return path


@pytest.fixture(scope="session")
def make_home(devnet: Devnet, ca: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeHome:
    """A home with a fresh, funded wallet; see `Home.make`."""
    numbers = itertools.count()

    def make(**options: Any) -> Home:
        directory = tmp_path_factory.mktemp("home") / str(next(numbers))
        return Home.make(directory, devnet, ca, **options)

    return make


@pytest.fixture(scope="session")
def make_proxy(devnet: Devnet, make_home: MakeHome) -> Iterator[MakeProxy]:
    """A proxy that is not started yet: for a ``with``. All are gone at the end, whatever happened."""
    made: list[Proxy] = []

    def make(home: Home | None = None, *options: str, **settings: Any) -> Proxy:
        home = home or make_home(**settings)
        proxy = Proxy(home, mitmdump(home, devnet, *options))
        made.append(proxy)
        return proxy

    yield make
    for proxy in made:
        proxy.kill()
