"""What a payer does between two kills. Each act passes the crash points that name it in `points.TABLE`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from proxy_addon.mitm.gate import Outcome
from proxy_addon.payer import sockets
from proxy_addon.payer.forcing import GraceRunning
from store.lifecycle import FINAL, ChannelStatus
from store.records import Channel
from tests.crash.life import Life
from tests.crash.socket_life import converse

GRACE_S = 961
MOST_FOR_A_DEPOSIT = 16


async def pay(life: Life) -> None:
    for _ in range(3):
        await life.get()


async def burst(life: Life) -> None:
    await asyncio.gather(*(life.get() for _ in range(6)))


async def post(life: Life) -> None:
    await life.get("/quote?a=1", method="POST", body=b"order")


def fated(*fates: str, method: str = "GET", then: int = 1) -> Callable[[Life], Awaitable[None]]:
    """Requests whose payments meet these fates, and some that meet none."""

    async def act(life: Life) -> None:
        origin = life.origin
        if life.job.kill.point is not None:  # one whose deposit is not used up just now
            origin = life.fresh_origin()
            await life.get(origin=origin)
            await life.settled()
        await life.get(origin=origin, method=method, fates=fates)
        for _ in range(then):
            await life.get(origin=origin)

    return act


def ending(ends: Outcome) -> Callable[[Life], Awaitable[None]]:
    async def act(life: Life) -> None:
        await life.get(ends=ends)
        await life.get()

    return act


def opens(*fates: str) -> Callable[[Life], Awaitable[None]]:
    """A first payment on a new channel, and a second one."""

    async def act(life: Life) -> None:
        origin = life.fresh_origin()
        await life.get(origin=origin, fates=fates)
        await life.get(origin=origin)
        await life.settled()

    return act


def tops_up(*fates: str) -> Callable[[Life], Awaitable[None]]:
    """Until the deposit runs low, and is topped up; and a little on."""

    async def act(life: Life) -> None:
        origin = life.fresh_origin()
        for number in range(MOST_FOR_A_DEPOSIT):
            if number == 3:
                life.outbound_fates["POST"] = list(fates)
            await life.get(origin=origin)
            await life.settled()
        life.outbound_fates.clear()

    return act


async def _a_channel(life: Life) -> Channel | None:
    """One that nobody has; half closed only where the kill is not to fall on a step of a whole close."""
    await life.settled()
    await life.release()
    half = await life.channels(ChannelStatus.DRAINING, ChannelStatus.CLOSING, ChannelStatus.ASIDE)
    if half and life.job.kill.point is None and life.random.random() < 0.7:
        return life.random.choice(half)
    found = await life.channels(ChannelStatus.OPEN)
    return life.random.choice(found) if found else None


def closes(**fates: str) -> Callable[[Life], Awaitable[None]]:
    async def act(life: Life) -> None:
        channel = await _a_channel(life)
        if channel is None:
            return
        life.outbound_fates.update({method: [fate] for method, fate in fates.items()})
        await life.as_command("close", channel.channel_id)
        life.outbound_fates.clear()
        await life.get()

    return act


async def force(life: Life) -> None:
    channel = await _a_channel(life)
    if channel is not None:
        await _force(life, channel.channel_id)


async def _force(life: Life, channel_id: str) -> None:
    if isinstance(await life.as_command("force", channel_id), GraceRunning):
        await life.wire.ask(("warp", GRACE_S))
        await life.as_command("force", channel_id)


async def top_up_by_hand(life: Life) -> None:
    origin = life.fresh_origin()
    await life.get(origin=origin)
    await life.settled()
    await life.release()
    for channel in await life.channels(ChannelStatus.OPEN):
        if channel.scope.origin == origin:
            await life.as_command("top-up", channel.channel_id, 30_000)


def streams(**fates: str) -> Callable[[Life], Awaitable[None]]:
    async def act(life: Life) -> None:
        origin = life.fresh_origin()  # what is left over on another channel might be enough
        await life.get(origin=origin)
        await life.settled()
        life.outbound_fates.update({method: [fate] for method, fate in fates.items()})
        await life.get("/sse", origin=origin, units=3)
        life.outbound_fates.clear()
        await life.get(origin=origin)

    return act


def talks(
    *fates: str, units: int = 3, ends: str = "", opens: bool = False, **patched: float
) -> Callable[[Life], Awaitable[None]]:
    """A paid WebSocket whose frames meet these fates; what comes after it on its scope is paid for like ever."""

    async def act(life: Life) -> None:
        origin = life.fresh_origin()
        if not opens:
            await life.get(origin=origin)
            await life.settled()
        vars(sockets).update(patched)
        await converse(life, origin=origin, units=units, fates=fates, ends=ends)
        await life.get(origin=origin)
        await life.settled()

    return act


async def retry(life: Life) -> None:
    """A client that got an error tries again; first the server is asked what the first one has cost."""
    origin = life.fresh_origin()
    await life.get(origin=origin)
    await life.settled()
    await life.get(origin=origin, fates=["error-after"])
    await asyncio.sleep(0.002)  # what is uncertain since this very millisecond is not asked about
    await life.get(origin=origin)


async def release(life: Life) -> None:
    await life.get()
    await life.settled()
    await life.release()
    await life.get()


async def stop(life: Life) -> None:
    """An orderly end. Nothing can come after it."""
    await life.get()
    await life.gate.close()
    await life.parts.store.close()


async def close_all(life: Life) -> None:
    """Every deposit comes home."""
    for _ in range(3):
        await life.settled()
        await life.release()
        for channel in await life.channels():
            if channel.status in FINAL:
                continue
            await life.as_command("close", channel.channel_id)
            found = await life.parts.store.find(channel.channel_id)
            if found is not None and found.status not in FINAL:
                await _force(life, channel.channel_id)


ACTS: dict[str, Callable[[Life], Awaitable[None]]] = {
    "pay": pay,
    "burst": burst,
    "post": post,
    "open": opens(),
    "open-unknown": opens("error-after"),
    "open-lost": opens("lost-after"),
    "open-late": opens("late"),
    "open-failed": opens("error-before"),
    "open-refused": opens("refuse:verification-failed"),
    "top-up": tops_up(),
    "top-up-lost": tops_up("lost-after"),
    "top-up-failed": tops_up("error-before"),
    "top-up-by-hand": top_up_by_hand,
    "close": closes(),
    "close-lost": closes(POST="lost-after"),
    "close-not-taken": closes(POST="lost-before"),
    "reopen": closes(HEAD="error-before", GET="error-before"),
    "force": force,
    "stream": streams(),
    "stream-mended": streams(HEAD="refuse:payment-expired"),
    "stream-lost": streams(HEAD="lost-after"),
    "socket": talks(),
    "socket-opens": talks(opens=True),
    "socket-opens-lost": talks("lost-after", opens=True),
    "socket-opens-late": talks("late", opens=True),
    "socket-tops-up": talks(units=8),
    "socket-over-limit": talks(units=12),
    "socket-refreshes": talks(REFRESH_MS=10_000_000),
    "socket-refused": talks("refuse:verification-failed"),
    "socket-refused-later": talks("", "refuse:payment-expired"),
    "socket-fails": talks("", "error-after"),
    "socket-lost": talks("", "lost-after"),
    "socket-deaf": talks("", "deaf", FRAME_SECONDS=0.02),
    "socket-left": talks(ends="left"),
    "socket-dropped": talks(ends="dropped"),
    "socket-shut": talks(ends="shut"),
    "anew": fated("refuse:invalid-challenge"),
    "write-off": fated("refuse:session/insufficient-balance"),
    "bump": fated("refuse:session/delta-too-small"),
    "gone": fated("gone"),
    "distrust": fated("refuse:session/invalid-signature"),
    "error": fated("error-after"),
    "retry": retry,
    "lost": fated("lost-before", "lost-after"),
    "lost-post": fated("lost-after", method="POST"),
    "cut": ending(Outcome.CUT),
    "not-sent": ending(Outcome.NOT_SENT),
    "release": release,
    "stop": stop,
    "close-all": close_all,
}

USUAL = tuple(name for name in ACTS if name not in ("stop", "close-all"))
