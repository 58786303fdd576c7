from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from eth_account import Account

from proxy_addon.chain import ChainClient
from proxy_addon.signer import Signer
from tests.e2e.world import ca, devnet, make_home, make_proxy
from tests.peers.devnet import Devnet

__all__ = ["ca", "devnet", "make_home", "make_proxy"]


@pytest.fixture(scope="module")
def net() -> Iterator[Devnet]:
    with Devnet() as devnet:
        yield devnet


@pytest.fixture
async def chain(net: Devnet) -> AsyncIterator[ChainClient]:
    client = ChainClient([f"{net.rpc_url}/proxy"], net.chain_id, timeout_s=10)
    yield client
    await client.aclose()


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def signer(net: Devnet) -> Signer:
    """A wallet that has never sent anything, with one dollar: the dearest case for gas."""
    account = Account.create()
    net.fund(account.address, 1_000_000)
    return Signer(bytes(account.key))
