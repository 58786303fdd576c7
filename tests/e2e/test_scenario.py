"""The same life of a channel over both versions of the protocol."""

from __future__ import annotations

import pytest

from tests.e2e.scenario import POLICY, live
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("protocol", ["v2", pytest.param("v1", marks=pytest.mark.long)])
def test_a_channels_life(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, protocol: str) -> None:
    seller = devnet.seller
    if protocol == "v1":
        seller = devnet.start_server({"protocol": "v1", "suggested-deposit": "1"}, "scenario-v1")
    home = make_home(policy=POLICY)
    live(devnet, seller, home, lambda: make_proxy(home))
