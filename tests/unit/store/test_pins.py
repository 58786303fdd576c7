"""The payee that an origin is held to: read back as it was written, refused as anything else."""

from __future__ import annotations

from dataclasses import replace

import orjson
import pytest

from store import pins
from store.channels import ChannelStore
from store.codec import seal
from store.contract import UnknownVersion
from store.memory_store import MemoryBackend
from store.pins import PayeeChanged, Pin
from tests.properties.bank import proposed, scope_of

ORIGIN = "https://api.example.com:443"
CHANNEL = replace(proposed("0xc1", scope_of(), authorised=10), updated_at=77)
PAYEE = CHANNEL.scope.payee
OTHER = replace(CHANNEL, scope=replace(CHANNEL.scope, payee="0x" + "d" * 40))


async def test_the_first_payee_stays_until_it_is_forgotten() -> None:
    backend = MemoryBackend()
    store = ChannelStore(backend)
    assert await store.pin_of(ORIGIN) is None
    assert not await store.forget_pin(ORIGIN)
    await backend.transact(lambda txn: pins.hold(txn, CHANNEL))
    await backend.transact(lambda txn: pins.hold(txn, replace(CHANNEL, updated_at=99)))  # the same: since 77
    assert await store.pin_of(ORIGIN) == Pin(ORIGIN, PAYEE, 77)
    assert await store.pins() == (Pin(ORIGIN, PAYEE, 77),)
    assert await store.pin_of("https://other.example.com:443") is None
    with pytest.raises(
        PayeeChanged, match=f"{ORIGIN} is held to the payee {PAYEE}, not {OTHER.scope.payee}"
    ) as raised:
        await backend.transact(lambda txn: pins.hold(txn, OTHER))
    assert raised.value.pin == Pin(ORIGIN, PAYEE, 77)
    assert await store.forget_pin(ORIGIN)
    assert await store.pins() == ()
    await backend.transact(lambda txn: pins.hold(txn, OTHER))
    assert await store.pin_of(ORIGIN) == Pin(ORIGIN, OTHER.scope.payee, 77)


@pytest.mark.parametrize(
    "row",
    [b"", b"[]", b"{", b'["0xb"]', b'["0xb",true]', b'["0xb",1.0]', b'["0xb","1"]', b"[1,1]", b'["0xb",1,2]'],
)
async def test_a_pin_that_cannot_be_read_is_no_pin_that_is_not_there(row: bytes) -> None:
    backend = MemoryBackend()
    await backend.transact(lambda txn: txn.put(b"p/" + ORIGIN.encode(), seal(row)))
    store = ChannelStore(backend)
    for look in (store.pin_of(ORIGIN), store.pins()):
        with pytest.raises(UnknownVersion, match=f"the pin of {ORIGIN} is not one that this bursar reads"):
            await look
    await backend.transact(lambda txn: txn.put(b"p/" + ORIGIN.encode(), seal(orjson.dumps(["0xb", 5]))))
    assert await store.pin_of(ORIGIN) == Pin(ORIGIN, "0xb", 5)
