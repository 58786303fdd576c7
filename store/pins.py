"""The payee that an origin is held to: the first that it was paid as, until a person says otherwise.

Set in the commit that opens the origin's first channel, or that raises what one may take; so of several processes
with different ideas one wins, and after a crash there is a pin exactly if there is money behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import orjson

from store.codec import seal, unseal
from store.contract import StoreError, Transaction, UnknownVersion
from store.records import Channel

_PIN: Final = b"p/"


@dataclass(frozen=True, slots=True)
class Pin:
    origin: str  # "https://api.example.com:443"
    payee: str
    since: int  # ms


class PayeeChanged(StoreError):
    """The origin is held to another payee; nothing was written."""

    def __init__(self, pin: Pin, payee: str) -> None:
        self.pin, self.payee = pin, payee
        super().__init__(f"{pin.origin} is held to the payee {pin.payee}, not {payee}")


def find(txn: Transaction, origin: str) -> Pin | None:
    value = txn.get(_PIN + origin.encode())
    return None if value is None else _decode(origin, value)


def all_of(txn: Transaction) -> tuple[Pin, ...]:
    return tuple(_decode(key[len(_PIN) :].decode(), value) for key, value in txn.scan(_PIN))


def hold(txn: Transaction, channel: Channel) -> None:
    """Hold the channel's origin to its payee. Raises `PayeeChanged` if it is held to another."""
    scope = channel.scope
    pin = find(txn, scope.origin)
    if pin is None:
        txn.put(_PIN + scope.origin.encode(), seal(orjson.dumps((scope.payee, channel.updated_at))))
    elif pin.payee != scope.payee:
        raise PayeeChanged(pin, scope.payee)


def forget(txn: Transaction, origin: str) -> bool:
    key = _PIN + origin.encode()
    if txn.get(key) is None:
        return False
    txn.delete(key)
    return True


def _decode(origin: str, value: bytes) -> Pin:
    payload = unseal(value, "pin")
    try:
        match orjson.loads(payload):
            case [str() as payee, int() as since] if type(since) is int:
                return Pin(origin, payee, since)
    except ValueError:
        pass
    raise UnknownVersion(f"the pin of {origin} is not one that this bursar reads; it was left as it is")
