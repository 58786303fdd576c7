from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from proxy_addon.demo.chain import SimulatedChain
from proxy_addon.demo.paid_api import PaidApi
from tests.unit.demo.wallet import Wallet

FUNDS = 5_000_000


@pytest.fixture
def chain() -> SimulatedChain:
    return SimulatedChain()


@pytest.fixture
def wallet(chain: SimulatedChain) -> Wallet:
    wallet = Wallet(chain)
    chain.fund(wallet.address, FUNDS)
    return wallet


@pytest.fixture
async def api(chain: SimulatedChain) -> AsyncIterator[PaidApi]:
    async with PaidApi(chain) as api:
        chain.fund(api.payee.address, FUNDS)
        yield api


@pytest.fixture
async def http(api: PaidApi) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=api.url, trust_env=False) as client:
        yield client
