"""What a transaction must do to be signed, read back from the very bytes that are signed.

A guard knows from the record what was meant; it decodes the payload on its own and compares everything that
moves money: who is called, how often, with which arguments, and in which token the fee is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from proxy_addon.methods.abi import ZERO_ADDRESS, to_bytes, to_hex
from proxy_addon.methods.tempo_session.calls import (
    channel_id,
    parse_open,
    parse_request_close,
    parse_top_up,
    parse_withdraw,
)
from proxy_addon.methods.tempo_session.voucher import FAMILY
from proxy_addon.methods.tempo_tx import EXPIRING_NONCE_KEY, TempoTransaction, decode_for_signing
from store.records import Channel, PaymentScope

Finding: TypeAlias = tuple[str, object, object]
"""What it is about, what was found, what was meant."""


@dataclass(frozen=True, slots=True)
class CallGuard:
    """One call: whom it goes to, and what its data must say."""

    target: str
    read: Callable[[bytes], Sequence[Finding]]  # raises ValueError for the data of any other call


@dataclass(frozen=True, slots=True)
class Guard:
    """One transaction of the scope's payer: exactly these calls, in this order."""

    what: str  # "an opening", for the message
    scope: PaymentScope
    calls: tuple[CallGuard, ...]
    sponsored: bool = False

    def check(self, payload: bytes) -> None:
        """Raises ``ValueError`` unless `payload` is the signing payload of such a transaction."""
        transaction = decode_for_signing(payload)
        findings = self._envelope(transaction)
        for call, expected in zip(transaction.calls, self.calls, strict=False):
            findings += [*expected.read(call.data)]
            findings += [("target", to_hex(call.to), expected.target), ("value", call.value, 0)]
        for name, found, meant in findings:
            if found != meant:
                raise ValueError(f"{self.what} whose {name} is {found}, not {meant}")

    def _envelope(self, transaction: TempoTransaction) -> list[Finding]:
        fee_token = None if self.sponsored else to_bytes(self.scope.token)
        return [
            ("chain", transaction.chain_id, self.scope.chain_id),
            ("number of calls", len(transaction.calls), len(self.calls)),
            ("nonce key", transaction.nonce_key, EXPIRING_NONCE_KEY),
            ("sponsorship", transaction.sponsored, self.sponsored),
            ("fee token", transaction.fee_token, fee_token),
        ]


@dataclass(frozen=True, slots=True)
class Guards:
    """How the transactions of one version's channels are read."""

    opening: Callable[[PaymentScope, int, bool], Guard]  # scope, deposit, sponsored
    top_up: Callable[[Channel, int, bool], Guard]  # channel, amount, sponsored
    request_close: Callable[[Channel], Guard]
    withdraw: Callable[[Channel], Guard]


def own_signer(scope: PaymentScope) -> str:
    """The ``authorizedSigner`` of an opening: the zero address, where the payer signs the vouchers itself."""
    return ZERO_ADDRESS if scope.voucher_signer == scope.payer else scope.voucher_signer


def _opening(scope: PaymentScope, deposit: int, sponsored: bool) -> Guard:
    def read(data: bytes) -> list[Finding]:
        call = parse_open(data)
        return [
            ("payee", call.payee, scope.payee),
            ("operator", call.operator, scope.discriminator),
            ("token", call.token, scope.token),
            ("deposit", call.deposit, deposit),
            ("authorised signer", call.authorized_signer, own_signer(scope)),
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


GUARDS: Final[Mapping[tuple[str, str], Guards]] = {
    (FAMILY, "v2"): Guards(_opening, _top_up, _request_close, _withdraw),
}
"""By family and version of a channel's scope."""
