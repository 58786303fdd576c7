"""Payment-Session-Snapshot: the JSON in it, or (where the input does not begin with a brace) the field's text.

- Nothing but `RemoteProtocolError` is raised, and its words can go to a log.
- The field and the challenge's member are read alike. Every integer is within its bounds.
- A snapshot proves something only with our own signature: none of these does, whatever the bytes are.
- Written again, it is the same snapshot.
"""

from __future__ import annotations

import json
from typing import Any

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import FIELD_LIMIT
from proxy_addon.core.snapshot import SessionSnapshot, parse_snapshot, snapshot_from
from proxy_addon.core.strict_json import b64url_encode, decode_object
from proxy_addon.methods.tempo_session.proof import proves
from tests.fuzz import samples
from tests.fuzz.oracle import amount, exact, loggable, lower_hex
from tests.fuzz.target import Target
from tests.unit.methods.samples import OTHER_ADDRESS, ours, scope


def one_input(data: bytes) -> None:
    if not data.startswith(b"{"):
        try:
            check(parse_snapshot(data.decode("utf-8", "surrogateescape")))
        except RemoteProtocolError as error:
            loggable(str(error))
        return
    try:
        told: SessionSnapshot | None = snapshot_from(decode_object(data, "snapshot"))
    except RemoteProtocolError as error:
        loggable(str(error))
        told = None
    field = b64url_encode(data)
    try:
        assert parse_snapshot(field) == told
    except RemoteProtocolError:
        assert told is None or len(field) > FIELD_LIMIT
    if told is not None:
        check(told)


# Its voucher signer signed none of the samples.
MINE = ours(scope=scope(voucher_signer=OTHER_ADDRESS))


def check(found: SessionSnapshot) -> None:
    for value in (
        found.accepted_cumulative,
        found.required_cumulative,
        found.deposit,
        found.settled,
        found.spent,
    ):
        amount(value)
    exact(found.chain_id)
    amount(found.close_requested_at)
    exact(found.units)
    lower_hex(found.channel_id, 32)
    lower_hex(found.escrow, 20)
    for name, part in found.descriptor.items():
        lower_hex(part, 32 if name in ("salt", "expiringNonceHash") else 20)
    if found.highest_voucher is not None:
        amount(found.highest_voucher.cumulative_amount)
        lower_hex(found.highest_voucher.signature)
    assert proves(MINE, found) is None
    assert parse_snapshot(b64url_encode(json.dumps(written(found)).encode())) == found


def written(found: SessionSnapshot) -> dict[str, Any]:
    values: dict[str, Any] = {
        "channelId": found.channel_id,
        "chainId": found.chain_id,
        "escrow": found.escrow,
        "descriptor": dict(found.descriptor),
        "acceptedCumulative": str(found.accepted_cumulative),
        "requiredCumulative": str(found.required_cumulative),
        "deposit": str(found.deposit),
        "settled": str(found.settled),
        "spent": str(found.spent),
    }
    if found.close_requested_at is not None:
        values["closeRequestedAt"] = str(found.close_requested_at)
    if found.units is not None:
        values["units"] = found.units
    if (voucher := found.highest_voucher) is not None:
        values["highestVoucher"] = {
            "channelId": voucher.channel_id,
            "cumulativeAmount": str(voucher.cumulative_amount),
            "signature": voucher.signature,
        }
    return values


def seeds() -> dict[str, bytes]:
    whole = samples.snapshot()
    bare = {name: value for name, value in whole.items() if name not in ("highestVoucher", "units")}
    return {
        "proof.json": samples.dumps(whole),
        "claim.json": samples.dumps({**bare, "closeRequestedAt": "1795420000"}),
        "field": b64url_encode(samples.dumps(bare)).encode(),
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b'"channelId":',
            b'"chainId":',
            b'"escrow":',
            b'"descriptor":{',
            b'"acceptedCumulative":',
            b'"deposit":',
        ),
        *(
            b'"requiredCumulative":',
            b'"settled":',
            b'"spent":',
            b'"closeRequestedAt":',
            b'"units":',
            b'"salt":',
        ),
        *(
            b'"highestVoucher":{',
            b'"cumulativeAmount":',
            b'"signature":',
            b"0x",
            b"null",
            b'"0"',
            b"1e1",
            b"99999999",
        ),
    ),
)
