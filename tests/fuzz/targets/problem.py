"""A problem body: the first line is its content type.

- Nothing but `RemoteProtocolError` is raised, and its words can go to a log.
- None exactly where the content type is another; integers are within their bounds; written again, it is the same.
- Whatever its kind is, the table of repairs has a way out for it.
"""

from __future__ import annotations

import json

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import PROBLEM_BASE, parse_problem
from proxy_addon.core.repair import Tries, Way, way_out
from tests.fuzz import samples
from tests.fuzz.oracle import amount, loggable
from tests.fuzz.target import Target
from tests.unit.methods.samples import channel

KIND = "application/problem+json"


def one_input(data: bytes) -> None:
    head, _, body = data.partition(b"\n")
    content_type = head.decode("utf-8", "surrogateescape")
    try:
        found = parse_problem(content_type, body)
    except RemoteProtocolError as error:
        loggable(str(error))
        return
    if found is None:
        assert not content_type.lower().startswith(KIND + ";")
        return
    assert found.status is None or 0 <= found.status < 1000
    amount(found.required_top_up)
    kind = found.kind
    assert kind in (None, "unreadable") or found.type == PROBLEM_BASE + kind
    loggable(kind or "")
    for voucher in (1, 10_000):
        assert way_out(402, kind, voucher, channel(), Tries()) in Way
    written = {
        "type": found.type,
        "title": found.title,
        "detail": found.detail,
        "status": found.status,
        "challengeId": found.challenge_id,
        "requiredTopUp": None if found.required_top_up is None else str(found.required_top_up),
    }
    assert parse_problem(KIND, json.dumps(written, ensure_ascii=False).encode()) == found


def seeds() -> dict[str, bytes]:
    short = {
        "type": f"{PROBLEM_BASE}session/insufficient-balance",
        "title": "Insufficient balance",
        "status": 402,
        "detail": "Requested 10000, available 0.",
        "requiredTopUp": "10000",
        "challengeId": "c1",
    }
    first = {"type": f"{PROBLEM_BASE}payment-required", "title": "Payment Required", "status": 402}
    return {
        "insufficient": KIND.encode() + b"\n" + samples.dumps(short),
        "required": KIND.encode() + b"; charset=utf-8\n" + samples.dumps(first),
        "html": b"text/html\n<html>",
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"application/problem+json",
            b"; charset=utf-8",
            b"\n",
            b'"type":',
            b'"status":',
            b'"requiredTopUp":',
        ),
        *(
            b"https://paymentauth.org/problems/",
            b"session/",
            b"verification-failed",
            b"delta-too-small",
            b"null",
        ),
        *(
            b'"challengeId":',
            b"channel-finalized",
            b"signer-mismatch",
            b"\\udfff",
            b"1e3",
            b"-1",
            b"99999999999999",
        ),
    ),
)
