"""Payment-Receipt: the JSON of it, or (where the input does not begin with a brace) the field's text.

- Nothing but `RemoteProtocolError` is raised, and its words can go to a log.
- The field and the event are read alike; amounts are within their bounds; written again, it is the same receipt.
"""

from __future__ import annotations

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import FIELD_LIMIT
from proxy_addon.core.messages import Receipt, format_receipt, parse_receipt, parse_receipt_json
from proxy_addon.core.strict_json import b64url_encode
from tests.fuzz import samples
from tests.fuzz.oracle import amount, exact, loggable, lower_hex
from tests.fuzz.target import Target


def one_input(data: bytes) -> None:
    if not data.startswith(b"{"):
        try:
            check(parse_receipt(data.decode("utf-8", "surrogateescape")))
        except RemoteProtocolError as error:
            loggable(str(error))
        return
    try:
        told: Receipt | None = parse_receipt_json(data)
    except RemoteProtocolError as error:
        loggable(str(error))
        told = None
    field = b64url_encode(data)
    try:
        assert parse_receipt(field) == told
    except RemoteProtocolError:
        assert told is None or len(field) > FIELD_LIMIT
    if told is not None:
        check(told)


def check(found: Receipt) -> None:
    amount(found.accepted_cumulative)
    amount(found.spent)
    exact(found.units)
    lower_hex(found.channel_id, 32)
    lower_hex(found.tx_hash, 32)
    written = format_receipt(found)
    if len(written) <= FIELD_LIMIT:
        assert parse_receipt(written) == found


def seeds() -> dict[str, bytes]:
    charge = {
        "method": "tempo",
        "status": "success",
        "timestamp": "2026-01-15T12:00:00Z",
        "reference": "0xab",
    }
    return {
        "session.json": samples.dumps(samples.receipt()),
        "charge.json": samples.dumps(charge),
        "field": b64url_encode(samples.dumps(samples.receipt())).encode(),
        "padded": b"eyJtZXRob2QiOiJ0IiwidGltZXN0YW1wIjoidCIsInJlZmVyZW5jZSI6InIiLCJzdGF0dXMiOiJzdWNjZXNzIn0=",
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b'"method":',
            b'"intent":',
            b'"status":"success"',
            b'"timestamp":',
            b'"reference":',
            b'"challengeId":',
        ),
        *(
            b'"channelId":',
            b'"acceptedCumulative":',
            b'"spent":',
            b'"units":',
            b'"txHash":',
            b"null",
            b"\\ud800",
        ),
        *(b"340282366920938463463374607431768211456", b"1e9", b"-1", b"=", b"==", b"+", b"/", b"_", b"-"),
    ),
)
