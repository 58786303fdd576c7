"""A WebSocket server that says anything, in any order: nothing escapes, the limits hold, the account stays whole."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.mitm.gate import Outcome
from store import account
from tests.unit.payer.shop import Payer, Shop
from tests.unit.payer.test_sockets import PATHS, Seller, connected

PER_STREAM = 60_000
amounts = st.one_of(st.integers(-1, 12).map(lambda n: n * 10_000), st.integers(0, 2**130))
ids = st.sampled_from(["ours", "0x" + "22" * 32, "", None])
said = st.one_of(
    st.tuples(st.just("message"), st.one_of(st.text(max_size=20), st.integers(), st.none())),
    st.tuples(st.just("payment-need-voucher"), st.tuples(ids, amounts)),
    st.tuples(st.just("payment-receipt"), st.tuples(ids, amounts)),
    st.tuples(
        st.sampled_from(["payment-close-ready", "payment-error", "payment-new", "authorization"]), amounts
    ),
    st.tuples(st.just("raw"), st.text(max_size=30)),
    st.tuples(st.just("honest need"), st.none()),
)


def told(seller: Seller, name: str, data: Any) -> str | bool:
    ours = seller.shop.account.channel_id
    match name, data:
        case "raw", text:
            return seller.socket.heard(text)
        case "honest need", _:
            seller.need()
            return False
        case "payment-need-voucher", (channel, amount):
            data = {
                "channelId": ours if channel == "ours" else channel,
                "requiredCumulative": str(amount),
                "acceptedCumulative": "0",
                "deposit": "1",
            }
        case "payment-receipt", (channel, amount):
            data = seller.receipt(channelId=ours if channel == "ours" else channel, spent=str(amount))
    return seller.say(name, data)


async def story(directory: Path, frames: list[tuple[str, Any]], outcome: Outcome) -> None:
    shop = Shop()
    limits: dict[str, Any] = {**PATHS, "max_per_stream": "0.06", "max_stream_step": "0.03"}
    payer = Payer(shop, directory, **limits)
    payer.honest = False  # its receipts are lies, so its own books are no measure
    seller = await connected(payer, shop)
    for name, data in frames:
        heard = told(seller, name, data)
        if name == "message":
            assert heard == data if isinstance(data, str) else heard in (True, False)
        elif name == "raw":
            assert heard is True or '"mpp"' in data
        else:
            assert heard is False  # nothing of the payment reaches the client
        await asyncio.sleep(0)
        account.check(payer.till.channel)
        assert payer.till.channel.authorised <= PER_STREAM
        for frame in seller.socket.outgoing:
            assert json.loads(frame)["mpp"] == "authorization"
    seller.socket.finished(outcome)
    await payer.close()  # it audits counters, records and what was durable before each signature


@settings(max_examples=max(10, settings().max_examples // 4), deadline=None)
@given(st.lists(said, max_size=25), st.sampled_from([Outcome.CUT, Outcome.COMPLETE, Outcome.LOST]))
def test_whatever_it_says(frames: list[tuple[str, Any]], outcome: Outcome) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(story(Path(directory), frames, outcome))
