"""A power cut takes what is not on the disk: what is there before a credential leaves, as the system saw it.

One payer runs under strace, with every byte that it writes. From the log its store can be rebuilt as it was on the
disk at any moment, and opened.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from proxy_addon.core.messages import parse_credential
from store import account, budgets
from store.channels import ChannelStore
from store.contract import StoreError, StoreUnavailable
from store.lifecycle import ChannelStatus
from store.lmdb_store import LmdbBackend
from store.records import Channel
from tests.crash import syscalls
from tests.crash.jobs import Job
from tests.crash.syscalls import Syscall, Write, image, writes_of
from tests.crash.world import World
from tests.crash.zygote import ROOT, Child

ACTS = ("open", "pay", "top-up", "close")
MORE_ACTS = ("burst", "stream", "write-off", "stream-mended", "top-up-failed", "force", "gone")
SECTOR = 512

_CREDENTIAL = re.compile(rb"Payment [A-Za-z0-9_-]{40,}")


@dataclass(frozen=True)
class Left:
    """A credential on its way into the socket."""

    action: str
    channel_id: str
    amount: int  # of its voucher; 0 for none
    at: int  # the line where the write began


@dataclass(frozen=True)
class Trace:
    calls: list[Syscall]
    directory: Path

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def data(self) -> list[Write]:
        return writes_of(self.calls, str(self.store / "data.mdb"))

    def left(self) -> list[Left]:
        found = []
        for call in self.calls:
            if call.name not in ("sendto", "sendmsg", "write", "writev") or "ledger" in call.path:
                continue
            for text in _CREDENTIAL.findall(call.data):
                payload = parse_credential(text.decode()).payload
                amount = int(payload.get("cumulativeAmount", 0))
                found.append(Left(payload["action"], payload["channelId"], amount, call.began))
        return found


async def _payer(directory: Path) -> None:
    """One life under strace, in a world of its own."""
    world = World("traced")
    ours, theirs = socket.socketpair()
    acts = ACTS + (MORE_ACTS if os.environ.get("BURSAR_LONG_TRACE") else ())
    job = Job(directory=directory, key=world.key, seed="traced", acts=tuple((act,) for act in acts))
    (directory / "job").write_bytes(pickle.dumps(job))
    process = await asyncio.create_subprocess_exec(
        *("strace", "-f", "-y", "-xx", "-s", str(syscalls.STRINGS), "-e", f"trace={syscalls.TRACED}"),
        *("-e", "signal=none", "-o", str(directory / "log")),
        *(sys.executable, "-m", "tests.crash.straced", str(theirs.fileno()), str(directory / "job")),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    heard: list[object] = []

    async def told(body: object) -> None:
        heard.append(body)

    child = Child(process.pid)
    child.reader, child.writer = await asyncio.open_connection(sock=ours)
    await world.serve(child, told)
    await process.wait()
    assert heard[-1] == ("done",), heard


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    if shutil.which("strace") is None:
        pytest.skip("there is no strace here: nothing shows in which order the system was asked")
    if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip(
            "strace may not trace here (ptrace is not allowed): nothing shows the order of the writes"
        )
    directory = tmp_path_factory.mktemp("traced")
    asyncio.run(_payer(directory))
    return Trace(syscalls.read(directory / "log"), directory)


# -- a store, from what a disk would have


@dataclass(frozen=True)
class Opened:
    channels: dict[str, Channel]

    def check(self) -> None:
        """What holds for any store, whenever its process died."""
        for channel in self.channels.values():
            account.check(channel)
            assert channel.authorised == channel.paid + channel.uncertain + channel.held + channel.free

    def covers(self, left: Iterable[Left]) -> None:
        for one in left:
            assert one.channel_id in self.channels, f"nothing on record of {one}"
            assert one.amount <= self.channels[one.channel_id].authorised, one


def put(directory: Path, content: bytes, *, in_use: bool) -> None:
    directory.mkdir(mode=0o700)
    if in_use:
        (directory / "owners").mkdir(mode=0o700)
    fd = os.open(directory / "data.mdb", os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(fd, content)
    os.close(fd)


@asynccontextmanager
async def rebuilt(directory: Path, content: bytes, *, in_use: bool = True) -> AsyncIterator[ChannelStore]:
    put(directory, content, in_use=in_use)
    store = ChannelStore(await LmdbBackend.open(directory))
    try:
        yield store
    finally:
        await store.close()
        shutil.rmtree(directory)


async def opened(directory: Path, content: bytes) -> Opened:
    async with rebuilt(directory, content) as store:
        channels = await store.all()
        counters = await store.counters()
    alive = sum(one.authorised for one in channels if one.status is not ChannelStatus.FAILED)
    for family in budgets.RAISED:
        counted = sum(value for key, value in counters.items() if key.startswith(family))
        if family == budgets.LIFETIME:
            counted += sum(value for key, value in counters.items() if key.startswith(budgets.REFUNDED))
        assert counted == alive, family
    found = Opened({channel.channel_id: channel for channel in channels})
    found.check()
    return found


def made(trace: Trace) -> int:
    """How many writes it takes until the store is one: its own marks are committed."""
    owners = next(
        call.began for call in trace.calls if f"{trace.store}/owners/" in call.data.decode(errors="replace")
    )
    return sum(write.ended < owners for write in trace.data)


# -- the order


def test_the_trace_has_it_all(trace: Trace) -> None:
    left = trace.left()
    assert {one.action for one in left} == {"open", "voucher", "topUp", "close"}
    assert len(left) > 15
    assert len(trace.data) > 50


async def test_what_is_signed_is_on_the_disk_before_it_leaves(trace: Trace, tmp_path: Path) -> None:
    """The disk as a power cut at that moment leaves it: only what a sync had brought there before."""
    await on_the_disk(trace, tmp_path)


async def test_without_the_syncs_it_would_not_be(trace: Trace, tmp_path: Path) -> None:
    calls = [call for call in trace.calls if call.name != "fdatasync"]
    with pytest.raises((AssertionError, StoreError)):
        await on_the_disk(replace(trace, calls=calls), tmp_path)


async def on_the_disk(trace: Trace, tmp_path: Path) -> None:
    data = trace.data
    highest: dict[str, int] = {}
    looked = 0
    for one in trace.left():
        if one.amount <= highest.get(one.channel_id, -1):
            continue  # the same voucher again
        highest[one.channel_id] = one.amount
        on_disk = [write for write in data if write.lasting is not None and write.lasting < one.at]
        assert on_disk, one
        found = await opened(tmp_path / str(looked), image(on_disk))
        found.covers([one])
        looked += 1
    assert looked > 10


async def test_a_transaction_is_on_the_disk_before_it_leaves(trace: Trace, tmp_path: Path) -> None:
    for number, one in enumerate(one for one in trace.left() if one.action in ("topUp", "open", "close")):
        on_disk = [write for write in trace.data if write.lasting is not None and write.lasting < one.at]
        channel = (await opened(tmp_path / str(number), image(on_disk))).channels[one.channel_id]
        if one.action == "close":
            assert (channel.status, channel.close_amount) == (ChannelStatus.CLOSING, one.amount)
        else:
            assert channel.pending is not None
            assert channel.pending.kind == {"open": "open", "topUp": "top_up"}[one.action]


def test_the_ledger_has_its_line_before_it_leaves(trace: Trace) -> None:
    """Written, that is: it need not be on the disk."""
    lines = [call for call in trace.calls if call.name == "write" and "/ledger/" in call.path]
    for one in trace.left():
        told = [line for line in lines if line.ended < one.at and one.channel_id.encode() in line.data]
        assert any(_names(line.data, one) for line in told), one


def _names(line: bytes, one: Left) -> bool:
    match one.action:
        case "topUp":
            return b'"kind":"top-up-sent"' in line
        case "close":
            return b'"kind":"close-sent"' in line and f'"cumulative":"{one.amount}"'.encode() in line
        case _:
            return f'"voucher":"{one.amount}"'.encode() in line


def test_the_directory_is_on_the_disk_before_anything_leaves(trace: Trace) -> None:
    """A file that is synced may still be lost with its name."""
    first = min(one.at for one in trace.left())
    synced = {
        call.path for call in trace.calls if call.name == "fsync" and call.ended < first and not call.result
    }
    assert {str(trace.store), str(trace.store.parent)} <= synced


# -- wherever the power is cut


async def test_every_prefix_of_what_was_written_is_a_store(trace: Trace, tmp_path: Path) -> None:
    data, left, begun = trace.data, trace.left(), made(trace)
    for length in range(begun, len(data) + 1):
        found = await opened(tmp_path / "store", image(data[:length]))
        cut = data[length].began if length < len(data) else sys.maxsize
        # What has left by then was synced before, so it is in every prefix that a disk can have.
        last = data[length - 1].began
        found.covers(one for one in left if one.at < min(last, cut))


async def test_a_store_that_was_being_made_is_made_or_refused(trace: Trace, tmp_path: Path) -> None:
    data = trace.data
    for length in range(made(trace)):
        content = image(data[:length])
        async with rebuilt(tmp_path / "store", content, in_use=False) as store:
            assert await store.all() == ()
        if content:
            continue
        with pytest.raises(StoreUnavailable, match="missing or empty"):
            async with rebuilt(tmp_path / "again", content):
                pass
        shutil.rmtree(tmp_path / "again")


async def test_writes_that_were_not_synced_may_be_lost_in_any_order(trace: Trace, tmp_path: Path) -> None:
    """A disk takes what it likes first, and of a page as many sectors as it has got to."""
    choose = random.Random(3)
    data, left, begun = trace.data, trace.left(), made(trace)
    moments = sorted({write.began for write in data[begun:]})
    for moment in choose.sample(moments, 30):
        sure = [write for write in data if write.lasting is not None and write.lasting < moment]
        maybe = [write for write in data if write.began <= moment and write not in sure]
        pages = [_torn(write, choose) if len(write.data) > SECTOR else write for write in maybe]
        some = [write for write in pages if choose.random() < 0.6]
        choose.shuffle(some)
        found = await opened(tmp_path / "store", image(itertools.chain(sure, some)))
        found.covers(one for one in left if one.at < moment)


def _torn(write: Write, choose: random.Random) -> Write:
    if choose.random() < 0.5:
        return write
    size = choose.randrange(0, len(write.data), SECTOR)
    return Write(write.offset, write.data[:size], write.began, write.ended, write.lasting)
