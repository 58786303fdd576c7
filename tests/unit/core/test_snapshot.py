"""A channel as the server tells it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.snapshot import SessionSnapshot, SignedVoucher, parse_snapshot, snapshot_from

HASH = "0x" + "AB" * 32
ADDRESS = "0x" + "Cd" * 20

SNAPSHOT: dict[str, Any] = {
    "acceptedCumulative": "250000",
    "chainId": 4217,
    "channelId": HASH,
    "closeRequestedAt": "1736165100",
    "deposit": "500000",
    "descriptor": {
        "payer": ADDRESS,
        "payee": ADDRESS,
        "operator": ADDRESS,
        "token": ADDRESS,
        "salt": HASH,
        "authorizedSigner": ADDRESS,
        "expiringNonceHash": HASH,
        "unknown": "x",
    },
    "escrow": ADDRESS,
    "highestVoucher": {"channelId": HASH, "cumulativeAmount": "250000", "signature": "0x" + "EF" * 65},
    "requiredCumulative": "250025",
    "settled": "100000",
    "spent": "250000",
    "units": 7,
}

EXPECTED = SessionSnapshot(
    channel_id=HASH.lower(),
    chain_id=4217,
    escrow=ADDRESS.lower(),
    descriptor={
        "payer": ADDRESS.lower(),
        "payee": ADDRESS.lower(),
        "operator": ADDRESS.lower(),
        "token": ADDRESS.lower(),
        "salt": HASH.lower(),
        "authorizedSigner": ADDRESS.lower(),
        "expiringNonceHash": HASH.lower(),
    },
    accepted_cumulative=250000,
    required_cumulative=250025,
    deposit=500000,
    settled=100000,
    spent=250000,
    close_requested_at=1736165100,
    units=7,
    highest_voucher=SignedVoucher(
        channel_id=HASH.lower(), cumulative_amount=250000, signature="0x" + "ef" * 65
    ),
)


def test_in_a_challenge() -> None:
    assert snapshot_from(SNAPSHOT) == EXPECTED


def test_in_a_field() -> None:
    data = json.dumps(SNAPSHOT).encode()
    assert parse_snapshot(base64.b64encode(data).decode()) == EXPECTED  # mppx
    assert parse_snapshot(base64.urlsafe_b64encode(data).decode().rstrip("=")) == EXPECTED  # the draft


def test_what_may_be_absent() -> None:
    least = {
        name: value
        for name, value in SNAPSHOT.items()
        if name not in ("closeRequestedAt", "units", "highestVoucher")
    }
    read = snapshot_from(least)
    assert (read.close_requested_at, read.units, read.highest_voucher) == (None, None, None)


@pytest.mark.parametrize(
    "name", ["acceptedCumulative", "channelId", "deposit", "escrow", "requiredCumulative", "settled", "spent"]
)
@pytest.mark.parametrize("value", [None, 1, "x", "-1"])
def test_malformed(name: str, value: object) -> None:
    with pytest.raises(RemoteProtocolError, match=rf"sessionSnapshot\.{name} is "):
        snapshot_from(SNAPSHOT | {name: value})


@pytest.mark.parametrize("chain", [None, 0, -1, 1.0, "4217", True])
def test_chain(chain: object) -> None:
    with pytest.raises(
        RemoteProtocolError, match=r"sessionSnapshot\.chainId is .*: expected a positive integer"
    ):
        snapshot_from(SNAPSHOT | {"chainId": chain})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"descriptor": None}, r"sessionSnapshot\.descriptor is no JSON object"),
        ({"descriptor": SNAPSHOT["descriptor"] | {"salt": ADDRESS}}, r"descriptor\.salt is "),
        ({"descriptor": SNAPSHOT["descriptor"] | {"payer": HASH}}, r"descriptor\.payer is "),
        ({"highestVoucher": "x"}, r"highestVoucher is no JSON object"),
        (
            {"highestVoucher": SNAPSHOT["highestVoucher"] | {"signature": "0x"}},
            r"highestVoucher\.signature is ",
        ),
        (
            {"highestVoucher": SNAPSHOT["highestVoucher"] | {"signature": "0x123"}},
            r"highestVoucher\.signature is ",
        ),
        ({"closeRequestedAt": 1736165100}, r"closeRequestedAt is 1736165100"),
    ],
)
def test_malformed_parts(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RemoteProtocolError, match=complaint):
        snapshot_from(SNAPSHOT | changes)


@pytest.mark.parametrize("value", ["", "e30", "%", "x" * 16385])
def test_malformed_fields(value: str) -> None:
    with pytest.raises(RemoteProtocolError, match=r"Payment-Session-Snapshot"):
        parse_snapshot(value)


def test_no_object() -> None:
    with pytest.raises(RemoteProtocolError, match="sessionSnapshot is no JSON object"):
        snapshot_from("x")


@pytest.mark.parametrize("chain", [1, 2, 2**53 - 1])
def test_the_chains_that_there_can_be(chain: int) -> None:
    assert snapshot_from(SNAPSHOT | {"chainId": chain}).chain_id == chain


@pytest.mark.parametrize("chain", [2**53, 2**63])
def test_a_chain_that_json_cannot_carry(chain: int) -> None:
    with pytest.raises(RemoteProtocolError, match="expected a positive integer"):
        snapshot_from(SNAPSHOT | {"chainId": chain})


def test_a_field_may_be_as_long_as_fields_are() -> None:
    data = json.dumps(SNAPSHOT).encode()
    value = base64.b64encode(data).decode()
    assert parse_snapshot(value + " " * (16_384 - len(value))) == EXPECTED
    with pytest.raises(
        RemoteProtocolError, match="Payment-Session-Snapshot has 16385 bytes, over the limit of 16384"
    ):
        parse_snapshot(value + " " * (16_385 - len(value)))
