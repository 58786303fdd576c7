"""A script for a mitmdump of its own: the replay with a fake gate. What the gate does is in the environment."""

from __future__ import annotations

import os

from mitmproxy import ctx

from proxy_addon.mitm.paying import Limits
from proxy_addon.mitm.replay import Replay
from tests.unit.mitm.fake_gate import CANARY, PAY, FakeGate

gate = FakeGate()
if os.environ.get("BURSAR_TEST_WARM"):
    gate.now = PAY
for method in os.environ.get("BURSAR_TEST_FAIL", "").split():
    gate.fail[method] = RuntimeError(f"secret {CANARY}")

addons = [Replay(gate, ctx.master.addons, Limits(repeatable_body=1 << 32))]
