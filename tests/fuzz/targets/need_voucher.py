"""The data of a ``payment-need-voucher`` event.

- Nothing but `RemoteProtocolError` is raised, and its words can go to a log.
- Text, bytes and a decoded object are read alike; amounts are within their bounds; written again, it is the same.
"""

from __future__ import annotations

import json

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import NeedVoucher, need_voucher_from, parse_need_voucher
from proxy_addon.core.strict_json import decode_object
from tests.fuzz import samples
from tests.fuzz.oracle import amount, loggable, lower_hex
from tests.fuzz.target import Target


def one_input(data: bytes) -> None:
    try:
        found = parse_need_voucher(data)
    except RemoteProtocolError as error:
        loggable(str(error))
        return
    amount(found.required_cumulative)
    amount(found.accepted_cumulative)
    amount(found.deposit)
    lower_hex(found.channel_id, 32)
    assert parse_need_voucher(data.decode()) == found
    assert need_voucher_from(decode_object(data, "event")) == found
    assert parse_need_voucher(json.dumps(written(found))) == found


def written(found: NeedVoucher) -> dict[str, str]:
    return {
        "channelId": found.channel_id,
        "requiredCumulative": str(found.required_cumulative),
        "acceptedCumulative": str(found.accepted_cumulative),
        "deposit": str(found.deposit),
    }


def seeds() -> dict[str, bytes]:
    return {
        "event.json": samples.dumps(samples.need_voucher()),
        "more.json": samples.dumps({**samples.need_voucher(), "unknown": [1, {"a": None}]}),
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b'"channelId":',
            b'"requiredCumulative":',
            b'"acceptedCumulative":',
            b'"deposit":',
            b"null",
            b"0x",
            b'"',
        ),
        *(
            b"340282366920938463463374607431768211456",
            b"1e9",
            b"NaN",
            b"Infinity",
            b"-0",
            b"\\u0022",
            b"{",
            b"[",
        ),
    ),
)
