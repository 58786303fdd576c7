"""A short share of the long run."""

from __future__ import annotations

import pytest

from tests.e2e.test_streams import wide_policy
from tests.e2e.world import MakeHome, ca, devnet, make_home
from tests.peers.devnet import Devnet
from tests.soak.streams import CHANNELS, soak

__all__ = ["ca", "devnet", "make_home"]

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.long
def test_300_requests(devnet: Devnet, make_home: MakeHome) -> None:
    home = make_home(funds=60_000_000, policy=wide_policy(CHANNELS))
    told = soak(devnet, home, requests=300, seconds=60, seed=1)
    print(told)
    assert sum(told["done"].values()) == 300
    assert told["done"]["left"] > 0
