"""Real samples that the seeds are made of: the ids, signatures and transactions of ``tests/vectors``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from proxy_addon.core.strict_json import b64url_encode

VECTORS: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "tempo_session.json").read_text()
)
OPENING: Final[dict[str, Any]] = VECTORS["openings"][0]
VOUCHER: Final[dict[str, Any]] = next(one for one in VECTORS["vouchers"] if one["version"] == "v2")

DETAILS: Final = {
    "chainId": OPENING["chain_id"],
    "escrowContract": VECTORS["escrow"],
    "sessionProtocol": "v2",
}
REQUEST: Final[dict[str, Any]] = {
    "amount": "10000",
    "currency": VECTORS["token"],
    "recipient": VECTORS["payee"],
    "suggestedDeposit": str(OPENING["deposit"]),
    "unitType": "request",
    "methodDetails": DETAILS,
}
V1_REQUEST: Final[dict[str, Any]] = {
    **REQUEST,
    "methodDetails": {"chainId": OPENING["chain_id"], "escrowContract": VECTORS["v1_escrow"]},
}


def dumps(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def challenge_field(request: dict[str, Any] = REQUEST) -> bytes:
    """A WWW-Authenticate value."""
    content = b64url_encode(json.dumps(request, separators=(",", ":")).encode())
    return (
        f'Payment id="c1", realm="api.example.com", method="tempo", intent="session", request="{content}",'
        ' expires="2026-01-15T12:00:00Z"'
    ).encode()


def need_voucher() -> dict[str, str]:
    return {
        "channelId": OPENING["channel_id"],
        "requiredCumulative": "30000",
        "acceptedCumulative": "20000",
        "deposit": str(OPENING["deposit"]),
    }


def receipt() -> dict[str, Any]:
    return {
        "method": "tempo",
        "intent": "session",
        "status": "success",
        "timestamp": "2026-01-15T12:00:00.000Z",
        "reference": OPENING["channel_id"],
        "challengeId": "c1",
        "channelId": OPENING["channel_id"],
        "acceptedCumulative": "20000",
        "spent": "10000",
        "units": 1,
        "txHash": OPENING["transaction_hash"],
    }


def snapshot() -> dict[str, Any]:
    return {
        "channelId": OPENING["channel_id"],
        "chainId": OPENING["chain_id"],
        "escrow": VECTORS["escrow"],
        "descriptor": OPENING["descriptor"],
        "acceptedCumulative": "20000",
        "requiredCumulative": "30000",
        "deposit": str(OPENING["deposit"]),
        "settled": "0",
        "spent": "10000",
        "units": 2,
        "highestVoucher": {
            "channelId": OPENING["channel_id"],
            "cumulativeAmount": VOUCHER["cumulativeAmount"],
            "signature": VOUCHER["signature"],
        },
    }
