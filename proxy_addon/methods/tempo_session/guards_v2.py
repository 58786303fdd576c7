"""Guards of the reserve's calls (v2): one call, which carries the channel's whole descriptor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from proxy_addon.methods.tempo_session.calls import (
    channel_id,
    parse_open,
    parse_request_close,
    parse_top_up,
    parse_withdraw,
)
from proxy_addon.methods.tempo_session.guards import CallGuard, Finding, Guard, Guards
from proxy_addon.methods.tempo_session.voucher import authorized_signer
from store.records import Channel, PaymentScope


def _opening(scope: PaymentScope, deposit: int, sponsored: bool) -> Guard:
    def read(data: bytes) -> list[Finding]:
        call = parse_open(data)
        return [
            ("payee", call.payee, scope.payee),
            ("operator", call.operator, scope.discriminator),
            ("token", call.token, scope.token),
            ("deposit", call.deposit, deposit),
            ("authorised signer", call.authorized_signer, authorized_signer(scope)),
        ]

    return Guard("an opening", scope, (CallGuard(scope.escrow, read),), sponsored)


def _top_up(channel: Channel, amount: int, sponsored: bool) -> Guard:
    def read(data: bytes) -> list[Finding]:
        descriptor, added = parse_top_up(data)
        return [*_same_channel(descriptor, channel), ("additional deposit", added, amount)]

    return Guard("a top-up", channel.scope, (CallGuard(channel.scope.escrow, read),), sponsored)


def _request_close(channel: Channel) -> Guard:
    def read(data: bytes) -> list[Finding]:
        return _same_channel(parse_request_close(data), channel)

    return Guard("a close request", channel.scope, (CallGuard(channel.scope.escrow, read),))


def _withdraw(channel: Channel) -> Guard:
    def read(data: bytes) -> list[Finding]:
        return _same_channel(parse_withdraw(data), channel)

    return Guard("a withdrawal", channel.scope, (CallGuard(channel.scope.escrow, read),))


def _same_channel(descriptor: Mapping[str, str], channel: Channel) -> list[Finding]:
    """The call's descriptor is that of the record, and is what the channel's id was made of."""
    scope = channel.scope
    found = channel_id(descriptor, escrow=scope.escrow, chain_id=scope.chain_id)
    return [
        ("descriptor", descriptor, dict(channel.descriptor)),
        ("payer", descriptor["payer"], scope.payer),
        ("payee", descriptor["payee"], scope.payee),
        ("token", descriptor["token"], scope.token),
        ("channel", found, channel.channel_id),
    ]


V2_GUARDS: Final = Guards(_opening, _top_up, _request_close, _withdraw)
