"""A store with very many channels: look-ups, and the proxy's start."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import replace
from statistics import median

from bench.homes import TOKEN, Home
from bench.proxies import Proxy
from bench.rows import Row
from bench.world import World
from proxy_addon.cli.records import open_store
from proxy_addon.config import load
from proxy_addon.methods.tempo_session.v2 import RESERVE
from store.lifecycle import ChannelStatus
from store.records import Channel, PaymentScope

_AT_ONCE = 2000


def many_channels(world: World) -> list[Row]:
    few, many = (500, 5_000) if world.quick else (1_000, 100_000)
    small, home = world.home(), world.home()
    for one in (small, home):
        with world.ours(one):
            pass  # makes the store, and its seal
    asyncio.run(_fill(small, few))
    asyncio.run(_fill(home, many))
    lookups = asyncio.run(_look((small, few), (home, many)))
    first = _start(world, small)
    late = [(_start(world, home), _start_plain(world)) for _ in range(3 if world.quick else 5)]
    over = [one[0] - other[0] for one, other in late]
    return [
        Row(
            "lookup",
            f"look-up of a scope among {many:,} channels / among {few:,}",
            lookups[1] / lookups[0],
            1.5,
            "less",
            "×",
            note=f"{lookups[1]:.1f} µs to {lookups[0]:.1f} µs",
        ),
        Row(
            "start",
            f"start of the proxy with {many:,} channels, over mitmdump's own",
            median(over),
            0.3,
            "less",
            "s",
            spread=(min(over), max(over)),
            note=f"{median(one[0] for one, _ in late):.2f} s to {median(one[0] for _, one in late):.2f} s;"
            f" with {few:,} channels {first[0]:.2f} s",
        ),
        Row(
            "start-cpu",
            f"CPU time of the same start with {many:,} channels, over mitmdump's own",
            median(one[1] - other[1] for one, other in late),
            unit="s",
        ),
    ]


def _start(world: World, home: Home) -> tuple[float, float]:
    with world.ours(home) as proxy:
        return _took(proxy)


def _start_plain(world: World) -> tuple[float, float]:
    with world.plain() as proxy:
        return _took(proxy)


def _took(proxy: Proxy) -> tuple[float, float]:
    """Seconds until it listened: by the clock, and of CPU."""
    from bench.load import cpu_seconds

    return time.monotonic() - proxy.began, cpu_seconds(proxy.pid)


async def _fill(home: Home, count: int) -> None:
    """Put so many channels on record."""
    store = await open_store(load(home.config))
    try:
        for start in range(0, count, _AT_ONCE):
            numbers = range(start, min(count, start + _AT_ONCE))
            await asyncio.gather(*(store.adopt(_channel(home, number), ()) for number in numbers))
    finally:
        await store.close()


async def _look(*sizes: tuple[Home, int]) -> list[float]:
    """The median of a look-up in each store, in µs: in turns, over scopes in no order, each looked up before.

    The first touch of a page costs what memory costs; a minute later the machine is another one.
    """
    chosen = random.Random(1)
    stores = [await open_store(load(home.config)) for home, _ in sizes]
    try:
        scopes = [
            [_channel(home, chosen.randrange(count)).scope for home, count in sizes] for _ in range(1000)
        ]
        took: list[list[int]] = [[] for _ in sizes]
        for again in (False, True):
            for each in scopes:
                for number, (store, scope) in enumerate(zip(stores, each, strict=True)):
                    began = time.perf_counter_ns()
                    found = await store.get(scope)
                    if again:
                        took[number].append(time.perf_counter_ns() - began)
                    assert found is not None
        return [median(one) / 1000 for one in took]
    finally:
        for store in stores:
            await store.close()


def _channel(home: Home, number: int) -> Channel:
    """An idle one, of a host of its own."""
    payee = f"0x{number + 1:040x}"
    zero = "0x" + "00" * 20
    scope = PaymentScope(
        family="tempo-session",
        version="v2",
        chain="eip155:42431",
        escrow=RESERVE,
        token=TOKEN,
        payee=payee,
        payer=home.address,
        voucher_signer=home.address,
        discriminator=zero,
        origin=f"https://shop-{number}.example",
    )
    descriptor = {
        "payer": home.address,
        "payee": payee,
        "operator": zero,
        "token": TOKEN,
        "salt": f"0x{number:064x}",
        "authorizedSigner": zero,
        "expiringNonceHash": f"0x{number:064x}",
    }
    now = time.time_ns() // 1_000_000
    blank = Channel(
        channel_id=f"0x{number + 1:064x}",
        scope=scope,
        descriptor=descriptor,
        resource=f"{scope.origin}/paid",
        status=ChannelStatus.OPEN,
    )
    return replace(blank, deposit=1_000_000, opened_at=now, updated_at=now)
