"""Tempo session v2: channels of the TIP-1034 reserve precompile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from proxy_addon.methods.abi import to_bytes, to_hex
from proxy_addon.methods.contract import EventLog
from proxy_addon.methods.tempo_session import calls
from proxy_addon.methods.tempo_session.events import (
    V2_OPENED,
    OpenedEvent,
    closed_topic,
    opened_topic,
    parse_v2_opened,
)
from proxy_addon.methods.tempo_session.session import EscrowState, Gas, TempoSession
from proxy_addon.methods.tempo_session.voucher import V2, authorized_signer
from proxy_addon.methods.tempo_tx import Call, TempoTransaction
from store.records import Channel, PaymentScope

RESERVE: Final = "0x4d50500000000000000000000000000000000000"


class TempoSessionV2(TempoSession):
    """`contract.Method` for ``tempo``/``session`` challenges with ``sessionProtocol: "v2"``."""

    version: str = "v2"
    escrows: Mapping[str, str] = {"*": RESERVE}
    close_takes_voucher: bool = False
    codec = V2
    # Measured: 312k, 64k, 46k, 52k. A first payment into a new place writes one slot more (250k, TIP-1000).
    gas = Gas(open=1_000_000, top_up=500_000, request_close=200_000, withdraw=400_000)
    usual_gas = Gas(open=312_000, top_up=64_000, request_close=46_000, withdraw=52_000)
    opened_topic = opened_topic(V2_OPENED)
    closed_topic = closed_topic(96)

    def channel_id(self, scope: PaymentScope, descriptor: Mapping[str, str]) -> str:
        """See `contract.Method.channel_id`."""
        parsed = calls.parse_descriptor(descriptor)
        expected = _descriptor(scope, salt=parsed["salt"], nonce_hash=parsed["expiringNonceHash"])
        for name, value in expected.items():
            # A zero signer and the payer's own address mean the same to the reserve, and give different ids.
            own_signer = name == "authorizedSigner" and parsed[name] == scope.voucher_signer
            if parsed[name] != value and not own_signer:
                raise ValueError(f"descriptor.{name} is {parsed[name]}: this scope has {value}")
        return calls.channel_id(parsed, escrow=scope.escrow, chain_id=scope.chain_id)

    def descriptor(self, scope: PaymentScope, salt: str, transaction: TempoTransaction) -> dict[str, str]:
        """The id depends on the opening's own bytes: on what its sender signs, whoever pays the fee."""
        nonce_hash = transaction.expiring_nonce_hash(to_bytes(scope.payer))
        return _descriptor(scope, salt=salt, nonce_hash=to_hex(nonce_hash))

    def open_calls(self, scope: PaymentScope, deposit: int, salt: str) -> tuple[Call, ...]:
        opening = calls.OpenCall(
            payee=scope.payee,
            operator=scope.discriminator,
            token=scope.token,
            deposit=deposit,
            salt=salt,
            authorized_signer=authorized_signer(scope),
        )
        return (Call(to_bytes(scope.escrow), opening.encode()),)

    def top_up_calls(self, channel: Channel, amount: int) -> tuple[Call, ...]:
        return (_call(channel, calls.encode_top_up(channel.descriptor, amount)),)

    def request_close_call(self, channel: Channel) -> Call:
        return _call(channel, calls.encode_request_close(channel.descriptor))

    def withdraw_call(self, channel: Channel) -> Call:
        return _call(channel, calls.encode_withdraw(channel.descriptor))

    def identity(self, channel: Channel) -> dict[str, Any]:
        return {"channelId": channel.channel_id, "descriptor": dict(channel.descriptor)}

    def parse_opened_event(self, log: EventLog) -> OpenedEvent:
        return parse_v2_opened(log)

    def encode_get_state(self, channel: Channel) -> bytes:
        return calls.encode_get_state(channel.channel_id)

    def parse_state(self, channel: Channel, data: bytes) -> EscrowState:
        """The reserve forgets a channel that is closed."""
        state = calls.parse_state(data)
        return EscrowState(
            exists=state.deposit > 0,
            deposit=state.deposit,
            settled=state.settled,
            close_requested_at=state.close_requested_at,
        )


def _descriptor(scope: PaymentScope, *, salt: str, nonce_hash: str) -> dict[str, str]:
    return {
        "payer": scope.payer,
        "payee": scope.payee,
        "operator": scope.discriminator,
        "token": scope.token,
        "salt": salt,
        "authorizedSigner": authorized_signer(scope),
        "expiringNonceHash": nonce_hash,
    }


def _call(channel: Channel, data: bytes) -> Call:
    return Call(to_bytes(channel.scope.escrow), data)
