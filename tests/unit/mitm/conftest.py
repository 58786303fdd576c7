from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from mitmproxy import certs
from mitmproxy.certs import CertStore

from tests.unit.mitm.fake_gate import FakeGate
from tests.unit.mitm.servers import make_certificate
from tests.unit.mitm.wires import WIRES, Wiring


@pytest.fixture(scope="session")
def confdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One CA for all runs: making its key takes a while."""
    path = tmp_path_factory.mktemp("mitmproxy")
    CertStore.from_store(path, "mitmproxy", 2048)
    return path


@pytest.fixture(scope="session", autouse=True)
def _key_read_once() -> Iterator[None]:
    """Every proxy of this process reads the same key, and checking that its primes are such takes a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certs, "load_pem_private_key", functools.cache(certs.load_pem_private_key))
        yield


@pytest.fixture(scope="session")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def gate() -> FakeGate:
    return FakeGate()


@pytest.fixture(params=WIRES, ids=lambda wire: wire.name)
def wiring(request: pytest.FixtureRequest, confdir: Path, pem: Path) -> Wiring:
    return Wiring(request.param, confdir, pem)


@pytest.fixture
def h2_wiring(confdir: Path, pem: Path) -> Wiring:
    return Wiring(WIRES[2], confdir, pem)


@pytest.fixture
def plain_wiring(confdir: Path, pem: Path) -> Wiring:
    return Wiring(WIRES[0], confdir, pem)
