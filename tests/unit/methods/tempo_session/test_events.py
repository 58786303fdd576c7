from __future__ import annotations

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from proxy_addon.methods.tempo_session.events import ClosedEvent, closed_topic, parse_closed


@pytest.mark.parametrize("bits", [96, 256])
def test_the_end_of_a_channel_is_read(bits: int) -> None:
    kind = f"uint{bits}"
    assert (
        keccak(text=f"ChannelClosed(bytes32,address,address,{kind},{kind})").hex() == closed_topic(bits)[2:]
    )
    data = encode([kind, kind], [30_000, 20_000])
    assert parse_closed(data, bits) == ClosedEvent(30_000, 20_000)
    for bad in (b"", data[:-1], data + bytes(32)):
        with pytest.raises(ValueError, match="ChannelClosed"):
            parse_closed(bad, bits)


def test_an_amount_that_no_channel_holds_is_refused() -> None:
    for captured, refunded, name in ((2**96, 0, "settledToPayee"), (0, 2**96, "refundedToPayer")):
        with pytest.raises(ValueError, match=name):
            parse_closed(encode(["uint256", "uint256"], [captured, refunded]), 96)
