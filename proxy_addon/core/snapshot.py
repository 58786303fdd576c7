"""A channel as the server tells it, when it offers to go on with one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.members import EXACT_LIMIT, Members


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedVoucher:
    """A voucher that the server shows: a proof if the signature is ours, otherwise nothing."""

    channel_id: str
    cumulative_amount: int
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSnapshot:
    """A claim, but for `highest_voucher`; whether its parts make up `channel_id` is for the method to check."""

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


def parse_snapshot(value: str) -> SessionSnapshot:
    """A Payment-Session-Snapshot field: base64url by the draft, padded base64 by mppx."""
    return _snapshot(Members.of_field(value, "Payment-Session-Snapshot"))


def snapshot_from(value: object) -> SessionSnapshot:
    """``methodDetails.sessionSnapshot`` of a challenge. Raises `RemoteProtocolError` naming the member."""
    return _snapshot(Members.of(value, "sessionSnapshot"))


def _snapshot(read: Members) -> SessionSnapshot:
    chain_id = read.values.get("chainId")
    if type(chain_id) is not int or not 1 <= chain_id <= EXACT_LIMIT:
        raise RemoteProtocolError(
            f"{read.what}.chainId is {ascii(chain_id)[:60]}: expected a positive integer"
        )
    return SessionSnapshot(
        channel_id=read.hash("channelId"),
        chain_id=chain_id,
        escrow=read.address("escrow"),
        descriptor=_descriptor(read.inner("descriptor")),
        accepted_cumulative=read.amount("acceptedCumulative"),
        required_cumulative=read.amount("requiredCumulative"),
        deposit=read.amount("deposit"),
        settled=read.amount("settled"),
        spent=read.amount("spent"),
        close_requested_at=read.maybe_amount("closeRequestedAt"),
        units=read.units(),
        highest_voucher=_voucher(read.inner("highestVoucher")) if read.has("highestVoucher") else None,
    )


def _descriptor(read: Members) -> dict[str, str]:
    return {
        "payer": read.address("payer"),
        "payee": read.address("payee"),
        "operator": read.address("operator"),
        "token": read.address("token"),
        "salt": read.hash("salt"),
        "authorizedSigner": read.address("authorizedSigner"),
        "expiringNonceHash": read.hash("expiringNonceHash"),
    }


def _voucher(read: Members) -> SignedVoucher:
    return SignedVoucher(
        channel_id=read.hash("channelId"),
        cumulative_amount=read.amount("cumulativeAmount"),
        signature=read.octets("signature"),
    )
