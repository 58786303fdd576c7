"""Read the request of a ``tempo``/``session`` challenge, strictly.

What the server writes decides how much we sign and to whom: anything that is not exactly a number, an address
or a known word is refused with the name of its field. Unknown fields are ignored, as the draft asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from proxy_addon.core.errors import RemoteProtocolError, UnsupportedChallenge
from proxy_addon.core.terms import Terms
from proxy_addon.methods.abi import ZERO_ADDRESS, parse_address, parse_bytes32
from proxy_addon.methods.tempo_session.voucher import FAMILY
from store.amounts import UINT96_MAX, UINT128_MAX, parse_wire

if TYPE_CHECKING:
    from proxy_addon.core.messages import Challenge

DEFAULT_CHAIN_ID: Final = 4217
PROTOCOLS: Final = ("v1", "v2")
_AMOUNT_LIMITS: Final = {"v1": UINT128_MAX, "v2": UINT96_MAX}
_CHAIN_ID_LIMIT: Final = 2**53 - 1  # a JSON number beyond that is not exact everywhere
_TEXT_LIMIT: Final = 64


def session_protocol(challenge: Challenge) -> str:
    """``v1`` or ``v2``. A challenge that names none means v1.

    Raises `UnsupportedChallenge` for another version, `RemoteProtocolError` if the request has no such place.
    """
    value = _details(challenge).get("sessionProtocol")
    if value is None:
        return "v1"
    if value not in PROTOCOLS:
        raise UnsupportedChallenge(
            f"methodDetails.sessionProtocol is {_shown(value)}: this proxy knows {' and '.join(PROTOCOLS)}"
        )
    return str(value)


def parse_terms(challenge: Challenge, version: str) -> Terms:
    """The terms of a session challenge of this version, v1 or v2.

    Raises `UnsupportedChallenge` if it is of another method, intent or version; `RemoteProtocolError`, naming
    the field, if it is malformed. Says nothing about whether the escrow, the token or the price is acceptable.
    """
    if (challenge.method, challenge.intent) != ("tempo", "session"):
        raise UnsupportedChallenge(f"{challenge.method}/{challenge.intent} is not tempo/session")
    protocol = session_protocol(challenge)
    if protocol != version:
        raise UnsupportedChallenge(f"methodDetails.sessionProtocol is {protocol}, not {version}")
    details = _details(challenge)
    try:
        return _terms(challenge.request_json, details, version)
    except ValueError as error:
        raise RemoteProtocolError(f"tempo/session challenge: {error}") from error


def _terms(request: Mapping[str, Any], details: Mapping[str, Any], version: str) -> Terms:
    limit = _AMOUNT_LIMITS[version]
    price = parse_wire(request.get("amount"), "amount", limit=limit)
    if price == 0:
        raise ValueError("amount is 0: a session sells something")
    token = parse_address(request.get("currency"), "currency")
    payee = parse_address(request.get("recipient"), "recipient")
    if payee in (ZERO_ADDRESS, token):
        raise ValueError(f"recipient is {payee}: nobody who can be paid")
    min_delta = _optional_amount(details, "minVoucherDelta", "methodDetails.minVoucherDelta", limit)
    operator = details.get("operator") if version == "v2" else None
    hint = details.get("channelId")
    return Terms(
        family=FAMILY,
        version=version,
        chain=f"eip155:{_chain_id(details.get('chainId'))}",
        escrow=parse_address(details.get("escrowContract"), "methodDetails.escrowContract"),
        token=token,
        payee=payee,
        discriminator=_discriminator(operator, version),
        price=price,
        amount_limit=limit,
        min_delta=max(1, min_delta or 0),
        suggested_deposit=_optional_amount(request, "suggestedDeposit", "suggestedDeposit", limit),
        unit_type=_unit_type(request.get("unitType")),
        fee_payer=_flag(details.get("feePayer"), "methodDetails.feePayer"),
        channel_hint=None if hint is None else parse_bytes32(hint, "methodDetails.channelId"),
    )


def _details(challenge: Challenge) -> Mapping[str, Any]:
    details = challenge.request_json.get("methodDetails")
    if not isinstance(details, dict):
        raise RemoteProtocolError(
            f"tempo/session challenge: methodDetails is {_shown(details)}: expected an object with escrowContract"
        )
    return details


def _discriminator(operator: object, version: str) -> str:
    """v2: the operator, the zero address if the challenge names none. v1 has no such thing."""
    if version != "v2":
        return ""
    return ZERO_ADDRESS if operator is None else parse_address(operator, "methodDetails.operator")


def _chain_id(value: object) -> int:
    if value is None:
        return DEFAULT_CHAIN_ID
    if type(value) is not int or not 0 < value <= _CHAIN_ID_LIMIT:  # bool is an int, and no chain
        raise ValueError(f"methodDetails.chainId is {_shown(value)}: expected a JSON number such as 4217")
    return value


def _optional_amount(source: Mapping[str, Any], name: str, what: str, limit: int) -> int | None:
    value = source.get(name)
    return None if value is None else parse_wire(value, what, limit=limit)


def _unit_type(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_LIMIT or not value.isprintable():
        raise ValueError(f"unitType is {_shown(value)}: expected a short word such as 'request'")
    return value


def _flag(value: object, what: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ValueError(f"{what} is {_shown(value)}: expected true or false")
    return value


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
