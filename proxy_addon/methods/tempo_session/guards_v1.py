"""Guards of the contract's calls (v1): where money moves, an approval of exactly as much goes before.

A call names its channel by the id alone: the id is made anew from the descriptor on record.
"""

from __future__ import annotations

from typing import Final

from proxy_addon.methods.tempo_session.guards import CallGuard, Finding, Guard, Guards
from proxy_addon.methods.tempo_session.v1_calls import (
    channel_id,
    parse_approve,
    parse_descriptor,
    parse_open,
    parse_request_close,
    parse_top_up,
    parse_withdraw,
)
from proxy_addon.methods.tempo_session.voucher import authorized_signer
from store.records import Channel, PaymentScope


def _opening(scope: PaymentScope, deposit: int, sponsored: bool) -> Guard:
    def read(data: bytes) -> list[Finding]:
        call = parse_open(data)
        return [
            ("payee", call.payee, scope.payee),
            ("token", call.token, scope.token),
            ("deposit", call.deposit, deposit),
            ("authorised signer", call.authorized_signer, authorized_signer(scope)),
        ]

    return Guard("an opening", scope, (_approval(scope, deposit), CallGuard(scope.escrow, read)), sponsored)


def _top_up(channel: Channel, amount: int, sponsored: bool) -> Guard:
    scope = channel.scope

    def read(data: bytes) -> list[Finding]:
        found, added = parse_top_up(data)
        return [*_same_channel(found, channel), ("additional deposit", added, amount)]

    return Guard("a top-up", scope, (_approval(scope, amount), CallGuard(scope.escrow, read)), sponsored)


def _request_close(channel: Channel) -> Guard:
    def read(data: bytes) -> list[Finding]:
        return _same_channel(parse_request_close(data), channel)

    return Guard("a close request", channel.scope, (CallGuard(channel.scope.escrow, read),))


def _withdraw(channel: Channel) -> Guard:
    def read(data: bytes) -> list[Finding]:
        return _same_channel(parse_withdraw(data), channel)

    return Guard("a withdrawal", channel.scope, (CallGuard(channel.scope.escrow, read),))


def _approval(scope: PaymentScope, amount: int) -> CallGuard:
    def read(data: bytes) -> list[Finding]:
        spender, approved = parse_approve(data)
        return [("approved spender", spender, scope.escrow), ("approved amount", approved, amount)]

    return CallGuard(scope.token, read)


def _same_channel(found: str, channel: Channel) -> list[Finding]:
    scope, descriptor = channel.scope, parse_descriptor(channel.descriptor)
    own = channel_id(descriptor, escrow=scope.escrow, chain_id=scope.chain_id)
    return [
        ("payer", descriptor["payer"], scope.payer),
        ("payee", descriptor["payee"], scope.payee),
        ("token", descriptor["token"], scope.token),
        ("channel", found, channel.channel_id),
        ("channel by its descriptor", own, channel.channel_id),
    ]


V1_GUARDS: Final = Guards(_opening, _top_up, _request_close, _withdraw)
