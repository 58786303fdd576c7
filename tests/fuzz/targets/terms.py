"""The JSON inside a challenge's ``request``: what is asked for, and the snapshot in it.

- Nothing but `RemoteProtocolError` is raised, and its words can go to a log.
- A price is at least 1 and fits the voucher's integer type; addresses and ids have their size; the chain is a name
  of CAIP-2.
- The terms, written as a request again, are the same terms. A snapshot inside is read as in a field of its own.
"""

from __future__ import annotations

import json
import re
from typing import Any

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import Challenge, challenge_from
from proxy_addon.core.snapshot import snapshot_from
from proxy_addon.core.strict_json import b64url_encode
from proxy_addon.core.terms import Terms
from proxy_addon.methods.registry import resolve
from store.amounts import UINT96_MAX, UINT128_MAX
from tests.fuzz import samples
from tests.fuzz.oracle import amount, loggable, lower_hex
from tests.fuzz.target import Target
from tests.fuzz.targets.snapshot import check as check_snapshot

CHAIN = re.compile(r"eip155:[1-9][0-9]{0,15}")
LIMITS = {"v1": UINT128_MAX, "v2": UINT96_MAX}


def one_input(data: bytes) -> None:
    try:
        challenge = asks(data)
        terms = resolve(challenge).terms(challenge)
    except RemoteProtocolError as error:
        loggable(str(error))
        return
    check(terms)
    again = asks(json.dumps(request_of(terms)).encode())
    assert resolve(again).terms(again) == terms
    scope = resolve(challenge).scope(
        terms, payer="0x" + "11" * 20, voucher_signer="0x" + "22" * 20, origin="o"
    )
    assert scope.key.count("|") == 8
    details = challenge.request_json["methodDetails"]
    if details.get("sessionSnapshot") is not None:
        try:
            check_snapshot(snapshot_from(details["sessionSnapshot"]))
        except RemoteProtocolError as error:
            loggable(str(error))


def asks(request: bytes) -> Challenge:
    return challenge_from(
        {"id": "c", "realm": "r", "method": "tempo", "intent": "session", "request": b64url_encode(request)}
    )


def check(terms: Terms) -> None:
    limit = LIMITS[terms.version]
    assert terms.amount_limit == limit
    for value in (terms.price, terms.min_delta):
        assert type(value) is int
        assert 1 <= value <= limit
    amount(terms.suggested_deposit, limit)
    for address in (terms.escrow, terms.token, terms.payee, terms.discriminator or terms.payee):
        lower_hex(address, 20)
    lower_hex(terms.channel_hint, 32)
    assert CHAIN.fullmatch(terms.chain)
    assert terms.unit_type is None or (terms.unit_type.isprintable() and 0 < len(terms.unit_type) <= 64)
    assert type(terms.fee_payer) is bool


def request_of(terms: Terms) -> dict[str, Any]:
    details: dict[str, Any] = {
        "chainId": int(terms.chain.partition(":")[2]),
        "escrowContract": terms.escrow,
        "sessionProtocol": terms.version,
        "operator": terms.discriminator or None,
        "minVoucherDelta": str(terms.min_delta),
        "feePayer": terms.fee_payer,
        "channelId": terms.channel_hint,
    }
    return {
        "amount": str(terms.price),
        "currency": terms.token,
        "recipient": terms.payee,
        "suggestedDeposit": None if terms.suggested_deposit is None else str(terms.suggested_deposit),
        "unitType": terms.unit_type,
        "methodDetails": details,
    }


def seeds() -> dict[str, bytes]:
    snapshot = {
        **samples.REQUEST,
        "methodDetails": {**samples.DETAILS, "sessionSnapshot": samples.snapshot()},
    }
    everything = {
        **samples.REQUEST,
        "methodDetails": {
            **samples.DETAILS,
            "operator": samples.VECTORS["payee"],
            "minVoucherDelta": "5",
            "feePayer": True,
            "channelId": samples.VECTORS["openings"][0]["channel_id"],
        },
    }
    return {
        "v1.json": samples.dumps(samples.V1_REQUEST),
        "v2.json": samples.dumps(samples.REQUEST),
        "everything.json": samples.dumps(everything),
        "long_numbers.json": samples.dumps({**snapshot, "units": 10**79}).replace(
            b'"units": 2', b'"units": 1' + b"0" * 70
        ),
        "snapshot.json": samples.dumps(snapshot),
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b'"amount":',
            b'"currency":',
            b'"recipient":',
            b'"suggestedDeposit":',
            b'"unitType":',
            b'"operator":',
        ),
        *(
            b'"methodDetails":{',
            b'"chainId":',
            b'"escrowContract":',
            b'"sessionProtocol":',
            b'"minVoucherDelta":',
        ),
        *(
            b'"feePayer":',
            b'"channelId":',
            b'"sessionSnapshot":{',
            b"null",
            b"true",
            b'"v1"',
            b'"v2"',
            b"1e9",
            b"-",
        ),
        *(
            b"340282366920938463463374607431768211455",
            b"79228162514264337593543950336",
            b"0x",
            b"\\u",
            b"0",
            b"[[",
        ),
    ),
)
