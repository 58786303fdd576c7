"""A channel as the server tells it, when it offers to go on with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from proxy_addon.core import members
from proxy_addon.core.errors import RemoteProtocolError


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVoucher:
    """A voucher that the server shows: a proof if the signature is ours, otherwise nothing."""

    channel_id: str
    cumulative_amount: int
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSnapshot:
    """A channel as the server sees it. Only `highest_voucher` can prove anything."""

    channel_id: str
    chain_id: int
    escrow: str
    descriptor: Mapping[str, str]
    accepted_cumulative: int
    required_cumulative: int
    deposit: int
    settled: int
    spent: int
    close_requested_at: int | None = None  # Unix seconds
    units: int | None = None
    highest_voucher: SignedVoucher | None = None


_DESCRIPTOR: Final[dict[str, re.Pattern[str]]] = {
    "payer": members.ADDRESS,
    "payee": members.ADDRESS,
    "operator": members.ADDRESS,
    "token": members.ADDRESS,
    "salt": members.HEX32,
    "authorizedSigner": members.ADDRESS,
    "expiringNonceHash": members.HEX32,
}


def parse_snapshot(value: str) -> SessionSnapshot:
    """A Payment-Session-Snapshot field: base64url by the draft, padded base64 by mppx."""
    return snapshot_from(members.decode_field(value, "Payment-Session-Snapshot"))


def snapshot_from(members: object) -> SessionSnapshot:
    """``methodDetails.sessionSnapshot``."""
    what = "snapshot"
    members = members.as_object(members, what)
    descriptor = members.as_object(members.get("descriptor"), f"{what}.descriptor")
    chain_id = members.get("chainId")
    if type(chain_id) is not int or chain_id < 1:
        raise RemoteProtocolError(f"{what}.chainId is {ascii(chain_id)[:60]}: expected a positive integer")
    return SessionSnapshot(
        channel_id=members.hexadecimal(members, "channelId", what, members.HEX32),
        chain_id=chain_id,
        escrow=members.hexadecimal(members, "escrow", what, members.ADDRESS),
        descriptor={
            name: members.hexadecimal(descriptor, name, f"{what}.descriptor", form) for name, form in _DESCRIPTOR.items()
        },
        accepted_cumulative=members.amount(members, "acceptedCumulative", what),
        required_cumulative=members.amount(members, "requiredCumulative", what),
        deposit=members.amount(members, "deposit", what),
        settled=members.amount(members, "settled", what),
        spent=members.amount(members, "spent", what),
        close_requested_at=members.maybe_amount(members, "closeRequestedAt", what),
        units=members.units(members),
        highest_voucher=_voucher(members.get("highestVoucher"), f"{what}.highestVoucher"),
    )


def _voucher(value: object, what: str) -> SignedVoucher | None:
    if value is None:
        return None
    members = members.as_object(value, what)
    return SignedVoucher(
        channel_id=members.hexadecimal(members, "channelId", what, members.HEX32),
        cumulative_amount=members.amount(members, "cumulativeAmount", what),
        signature=members.hexadecimal(members, "signature", what, members.HEX),
    )


