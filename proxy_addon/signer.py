"""The only holder of keys. It signs what the record authorises, and nothing else.

Every signature is checked twice against the same record: by whoever asks, and here, from the bytes that are
signed. A voucher's digest is computed anew from the channel and the amount; a transaction is read back from
its signing payload and must do exactly what was announced. A mistake elsewhere ends here as `SignerRefused`.

A key is in one closure. No repr, pickle, copy or traceback shows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn, TypeAlias

from proxy_addon.core.errors import BursarError
from proxy_addon.methods.abi import keccak256, parse_address, to_hex
from proxy_addon.methods.tempo_session.guards import Guard, Guards
from proxy_addon.methods.tempo_session.guards_v1 import V1_GUARDS
from proxy_addon.methods.tempo_session.guards_v2 import V2_GUARDS
from proxy_addon.methods.tempo_session.voucher import CODECS, FAMILY
from proxy_addon.methods.tempo_tx import SECP256K1_ORDER, address_of
from store.lifecycle import PENDING_OPEN, ChannelStatus
from store.records import Channel, PaymentScope

try:
    from coincurve import PrivateKey
except ImportError as error:  # pragma: no cover - a broken installation
    raise ImportError(
        "coincurve, which signs, cannot be loaded: reinstall it (pip install --force-reinstall coincurve)"
    ) from error

_Sign: TypeAlias = Callable[[bytes], bytes]

GUARDS: Final[Mapping[tuple[str, str], Guards]] = {(FAMILY, "v1"): V1_GUARDS, (FAMILY, "v2"): V2_GUARDS}
"""By family and version of a channel's scope: whose transactions can be read back; any other is refused."""

_VOUCHER_STATUS: Final = PENDING_OPEN | {ChannelStatus.OPEN, ChannelStatus.DRAINING, ChannelStatus.CLOSING}
"""Where a voucher may be signed at all: draining still probes with the current voucher."""

_FORCED_STATUS: Final = frozenset(
    {ChannelStatus.OPEN, ChannelStatus.DRAINING, ChannelStatus.CLOSING, ChannelStatus.ASIDE}
)
"""Where something of ours may be in the escrow that the server need not help to get back."""


class SignerRefused(BursarError):
    """What was to be signed is not what the record authorises. Nothing was signed; this is a bug or an attack."""


class KeyRejected(BursarError):
    """What was given as a private key is none. The message never repeats it."""


class Signer:
    """Signs vouchers and a channel's transactions with secp256k1 keys, kept in memory only.

    Usually one key does both. A channel may name another key for its vouchers: a machine that holds only that one
    can spend what is in the channels that exist, and can neither open one nor move anything else of the payer's.
    """

    __slots__ = ("_sign", "_sign_transaction", "address", "voucher_signer")

    def __init__(self, key: bytes, voucher_key: bytes | None = None) -> None:
        """The payer's key, and that of the vouchers if it is another one. Raises `KeyRejected`.

        Keys are 32 bytes; the caller drops its own copies.
        """
        sign, self.address = _enclose(key)
        self._sign_transaction: _Sign | None = sign
        self._sign, self.voucher_signer = (
            (sign, self.address) if voucher_key is None else _enclose(voucher_key)
        )

    @classmethod
    def from_hex(cls, text: str, voucher_text: str | None = None) -> Signer:
        """From 64 hex digits each, with or without 0x. Raises `KeyRejected`."""
        return cls(parse_key(text), None if voucher_text is None else parse_key(voucher_text))

    @classmethod
    def of_vouchers(cls, voucher_key: bytes, *, payer: str) -> Signer:
        """One that signs vouchers for channels of `payer` and no transactions: the payer's key is elsewhere.

        Raises `KeyRejected`, and ``ValueError`` if `payer` is no address.
        """
        signer = cls(voucher_key)
        signer.address = parse_address(payer, "payer")
        if signer.address != signer.voucher_signer:
            signer._sign_transaction = None
        return signer

    @property
    def signs_transactions(self) -> bool:
        """False: it holds no key of the payer, so that it can neither open, top up nor close by force."""
        return self._sign_transaction is not None

    def sign_voucher(self, digest: bytes, channel: Channel, amount: int) -> bytes:
        """65 bytes r ‖ s ‖ v over the voucher of `channel` for the cumulative `amount` (base units).

        Promises that the voucher stays within the record given: amount ≤ authorised ≤ deposit, a status that
        pays, and while closing the closing amount at most. The record must be durable before this is called;
        the signature itself need not be kept, the same amount always gives the same one.
        Raises `SignerRefused`, and then nothing was signed.
        """
        self._check_channel(channel, amount)
        codec = CODECS.get((channel.scope.family, channel.scope.version))
        if codec is None:
            _refuse(f"no vouchers are known for {channel.scope.family}/{channel.scope.version}")
        if digest != codec.digest_for(channel, amount):
            _refuse(f"the digest is not that of {amount} on channel {channel.channel_id}")
        return self._sign(digest)

    def opening(self, scope: PaymentScope, *, deposit: int, sponsored: bool = False) -> GuardedSigner:
        """What signs one opening transaction of `scope`, with exactly `deposit`. Raises `SignerRefused`."""
        if scope.voucher_signer != self.voucher_signer:
            _refuse(f"the voucher signer would be {scope.voucher_signer}, not {self.voucher_signer}")
        return self._guarded(self._guards(scope).opening(scope, deposit, sponsored))

    def topping_up(self, channel: Channel, *, amount: int, sponsored: bool = False) -> GuardedSigner:
        """What signs one transaction that adds exactly `amount` to the deposit of `channel`, and does nothing else.

        Raises `SignerRefused`, also for a channel that is not open or has a transaction of ours on its way.
        """
        shown = f"a top-up of {amount} on channel {channel.channel_id}"
        if channel.status is not ChannelStatus.OPEN:
            _refuse(f"{shown}: the channel is {channel.status}")
        if channel.pending is not None:
            _refuse(f"{shown}: {channel.pending.tx_hash} may still be on its way")
        if amount <= 0:
            _refuse(f"{shown}: it adds nothing")
        if channel.scope.voucher_signer != self.voucher_signer:
            _refuse(
                f"{shown}: its voucher signer is {channel.scope.voucher_signer}, not {self.voucher_signer}"
            )
        return self._guarded(self._guards(channel.scope).top_up(channel, amount, sponsored))

    def requesting_close(self, channel: Channel) -> GuardedSigner:
        """What signs the request that starts a forced close of `channel`. Raises `SignerRefused`."""
        self._check_forced(channel)
        return self._guarded(self._guards(channel.scope).request_close(channel))

    def withdrawing(self, channel: Channel) -> GuardedSigner:
        """What signs the withdrawal that ends a forced close of `channel`. Raises `SignerRefused`."""
        self._check_forced(channel)
        return self._guarded(self._guards(channel.scope).withdraw(channel))

    def _guarded(self, guard: Guard) -> GuardedSigner:
        if guard.scope.payer != self.address:
            _refuse(f"the payer of {guard.what} is {guard.scope.payer}, we sign for {self.address}")
        if self._sign_transaction is None:
            _refuse(
                f"{guard.what} needs the key of the payer {self.address}; here is only that of its voucher signer"
                f" {self.voucher_signer}"
            )
        return GuardedSigner(self.address, guard, self._sign_transaction)

    def _guards(self, scope: PaymentScope) -> Guards:
        guards = GUARDS.get((scope.family, scope.version))
        if guards is None:
            _refuse(f"transactions of {scope.family}/{scope.version} cannot be checked")
        return guards

    def _check_forced(self, channel: Channel) -> None:
        if channel.status not in _FORCED_STATUS:
            _refuse(f"a forced close of channel {channel.channel_id}: it is {channel.status}")

    def _check_channel(self, channel: Channel, amount: int) -> None:
        shown = f"a voucher of {amount} on channel {channel.channel_id}"
        if channel.scope.payer != self.address:
            _refuse(f"{shown}: its payer is {channel.scope.payer}, not {self.address}")
        if channel.scope.voucher_signer != self.voucher_signer:
            _refuse(f"{shown}: its signer is {channel.scope.voucher_signer}, not {self.voucher_signer}")
        if channel.status not in _VOUCHER_STATUS:
            _refuse(f"{shown}: the channel is {channel.status}")
        if not 0 < amount <= channel.authorised:
            _refuse(f"{shown}: authorised are {channel.authorised}")
        if amount > channel.ceiling:
            _refuse(f"{shown}: the deposit is {channel.ceiling}")
        if channel.status is ChannelStatus.CLOSING and amount > (channel.close_amount or 0):
            _refuse(f"{shown}: it is closing with {channel.close_amount}")

    def __repr__(self) -> str:
        own = self.voucher_signer == self.address
        return (
            f"Signer({self.address})" if own else f"Signer({self.address}, vouchers by {self.voucher_signer})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signer is never pickled or copied: it holds a key")


class GuardedSigner:
    """`contract.TransactionSigner` for one purpose: signs that transaction, any number of times, no other."""

    __slots__ = ("_guard", "_sign", "_signed", "address")

    def __init__(self, address: str, guard: Guard, sign: _Sign) -> None:
        self.address = address
        self._guard = guard
        self._sign = sign
        self._signed: bytes | None = None

    def sign_transaction(self, payload: bytes) -> bytes:
        """Raises `SignerRefused` unless `payload` is the transaction that was announced, and the first one."""
        if self._signed is not None and self._signed != payload:
            _refuse(f"a second, different transaction for {self._guard.what}")
        try:
            self._guard.check(payload)
        except ValueError as error:
            raise SignerRefused(f"the signer refuses: {error}") from error
        self._signed = payload
        return self._sign(keccak256(payload))

    def __repr__(self) -> str:
        return f"GuardedSigner({self.address}, {self._guard.what} to {self._guard.scope.payee})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signer is never pickled or copied: it holds a key")


def parse_key(text: str) -> bytes:
    """32 bytes from hex. Raises `KeyRejected`, which does not repeat what it was given."""
    digits = text.strip().removeprefix("0x")
    try:
        key = bytes.fromhex(digits) if len(digits) == 64 else b""
    except ValueError:
        key = b""
    if len(key) != 32:
        raise KeyRejected("a private key is 64 hex digits, with or without 0x in front")
    return key


def _enclose(key: bytes) -> tuple[_Sign, str]:
    """A function that signs a digest, and the address it signs for; the key is in the closure alone."""
    if len(key) != 32 or not 0 < int.from_bytes(key, "big") < SECP256K1_ORDER:
        raise KeyRejected("a private key is 32 bytes, and between 1 and the order of secp256k1")
    private = PrivateKey(key)

    def sign(digest: bytes) -> bytes:
        """RFC 6979 and a low s, by libsecp256k1: the same digest always gives the same bytes."""
        signature = private.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([signature[64] + 27])

    return sign, to_hex(address_of(private.public_key))


def _refuse(why: str) -> NoReturn:
    raise SignerRefused(f"the signer refuses: {why}")
