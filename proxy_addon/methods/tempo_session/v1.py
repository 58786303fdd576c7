"""Tempo session v1: channels of a contract escrow.

The payer approves and opens (or tops up) in one transaction, so that no approval outlives it. The contract pays
the payee what the *close voucher* says, not what the server says was spent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from proxy_addon.methods.abi import ZERO_ADDRESS, to_bytes
from proxy_addon.methods.contract import EventLog
from proxy_addon.methods.tempo_session import v1_calls as calls
from proxy_addon.methods.tempo_session.events import (
    V1_OPENED,
    OpenedEvent,
    closed_topic,
    opened_topic,
    parse_v1_opened,
)
from proxy_addon.methods.tempo_session.session import EscrowState, Gas, TempoSession
from proxy_addon.methods.tempo_session.voucher import V1, authorized_signer
from proxy_addon.methods.tempo_tx import Call, TempoTransaction
from store.records import Channel, PaymentScope

ESCROWS: Final[Mapping[str, str]] = {
    "eip155:4217": "0x33b901018174ddabe4841042ab76ba85d4e24f25",
    "eip155:42431": "0xe1c4d3dce17bc111181ddf716f75bae49e61a336",
}
"""Any contract could call itself an escrow: only these are trusted without a word in the config."""


class TempoSessionV1(TempoSession):
    """`contract.Method` for ``tempo``/``session`` challenges with ``sessionProtocol: "v1"``, or with none."""

    version: str = "v1"
    escrows: Mapping[str, str] = ESCROWS
    close_takes_voucher: bool = True
    codec = V1
    # An opening writes five to seven new slots of 250k (TIP-1000), a top-up one for the approval, a withdrawal at
    # most the payer's balance.
    gas = Gas(open=2_000_000, top_up=800_000, request_close=200_000, withdraw=500_000)
    usual_gas = Gas(open=1_324_000, top_up=330_000, request_close=45_000, withdraw=62_000)
    opened_topic = opened_topic(V1_OPENED)
    closed_topic = closed_topic(256)

    def channel_id(self, scope: PaymentScope, descriptor: Mapping[str, str]) -> str:
        """See `contract.Method.channel_id`."""
        parsed = calls.parse_descriptor(descriptor)
        for name, value in _descriptor(scope, parsed["salt"]).items():
            own_signer = name == "authorizedSigner" and parsed[name] == scope.voucher_signer
            if parsed[name] != value and not own_signer:
                raise ValueError(f"descriptor.{name} is {parsed[name]}: this scope has {value}")
        return calls.channel_id(parsed, escrow=scope.escrow, chain_id=scope.chain_id)

    def descriptor(self, scope: PaymentScope, salt: str, transaction: TempoTransaction) -> dict[str, str]:
        return _descriptor(scope, salt)

    def open_calls(self, scope: PaymentScope, deposit: int, salt: str) -> tuple[Call, ...]:
        opening = calls.OpenCall(
            payee=scope.payee,
            token=scope.token,
            deposit=deposit,
            salt=salt,
            authorized_signer=authorized_signer(scope),
        )
        return (_approval(scope, deposit), Call(to_bytes(scope.escrow), opening.encode()))

    def top_up_calls(self, channel: Channel, amount: int) -> tuple[Call, ...]:
        return (
            _approval(channel.scope, amount),
            _call(channel, calls.encode_top_up(channel.channel_id, amount)),
        )

    def request_close_call(self, channel: Channel) -> Call:
        return _call(channel, calls.encode_request_close(channel.channel_id))

    def withdraw_call(self, channel: Channel) -> Call:
        return _call(channel, calls.encode_withdraw(channel.channel_id))

    def identity(self, channel: Channel) -> dict[str, Any]:
        return {"channelId": channel.channel_id}

    def parse_opened_event(self, log: EventLog) -> OpenedEvent:
        return parse_v1_opened(log)

    def encode_get_state(self, channel: Channel) -> bytes:
        return calls.encode_get_channel(channel.channel_id)

    def parse_state(self, channel: Channel, data: bytes) -> EscrowState:
        """The contract remembers a closed channel. Who pays is part of its id: another one under it is nonsense."""
        state = calls.parse_channel(data)
        if state.payer not in (ZERO_ADDRESS, channel.scope.payer):
            raise ValueError(f"its payer is {state.payer}, not {channel.scope.payer}")
        return EscrowState(
            exists=state.is_open,
            deposit=state.deposit,
            settled=state.settled,
            close_requested_at=state.close_requested_at,
        )


def _descriptor(scope: PaymentScope, salt: str) -> dict[str, str]:
    return {
        "payer": scope.payer,
        "payee": scope.payee,
        "token": scope.token,
        "salt": salt,
        "authorizedSigner": authorized_signer(scope),
    }


def _approval(scope: PaymentScope, amount: int) -> Call:
    return Call(to_bytes(scope.token), calls.encode_approve(scope.escrow, amount))


def _call(channel: Channel, data: bytes) -> Call:
    return Call(to_bytes(channel.scope.escrow), data)
