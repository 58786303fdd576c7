"""A ledger that ends anywhere: kill -9 in the middle of a line, or a power cut, which may take lines that were there.

One process is killed with requests in flight. Then its ledger is cut, byte by byte, and recovered as its next owner
would.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from proxy_addon.payer.parts import Parts
from proxy_addon.runtime import open_runtime
from store import account
from store.records import Channel
from tests.crash import life
from tests.crash.campaign import End, Tally, wallet
from tests.crash.jobs import Job, Kill
from tests.crash.zygote import Zygote

IN_FLIGHT = 4
MOST_BURSTS = 12


@dataclass(frozen=True)
class Left:
    """What a process that was killed has left of one channel."""

    channel: Channel
    ledger: Path
    parts: Parts

    @property
    def mark(self) -> int:
        """How many of its lines the record has seen."""
        assert self.channel.folded is not None
        return self.channel.folded.line

    @property
    def file(self) -> Path:
        assert self.channel.folded is not None
        return self.ledger / f"{self.channel.folded.journal}.jsonl"


@pytest.fixture
async def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Killed at the second ending of a burst: some requests have their end, some do not.

    Where the burst came in pieces, a commit for the last of them has folded the others in: then once more.
    """
    tally = Tally()
    async with Zygote() as zygote:
        for number in range(1, MOST_BURSTS + 1):
            directory = tmp_path / str(number)
            async with wallet(zygote, f"torn/{number}", tally) as one:
                await one.live(End("point", Kill("ledger.ended.before", IN_FLIGHT)), (("burst",),))
                assert tally.at["ledger.ended.before"] == number
                shutil.copytree(one.directory / "store", directory / "store")
                monkeypatch.setenv(life.KEY_VARIABLE, one.world.key.hex())
            assert tally.violations == []
            job = Job(directory=directory, key=b"", seed="torn")
            runtime = await open_runtime(life.settings_for(job.store), need_signer=True)
            try:
                (channel,) = [one for one in await runtime.store.all() if one.owner is not None]
                left = Left(channel, job.ledger, runtime.parts)
                if len(left.file.read_bytes().splitlines()) - left.mark >= IN_FLIGHT:
                    yield left
                    return
            finally:
                await runtime.close()
    pytest.fail(f"no burst of {MOST_BURSTS} was in one piece")


def cut(left: Left, directory: Path, sizes: Iterator[int]) -> Iterator[tuple[int, Channel, bool]]:
    """The channel as it is recovered from a ledger of each of these sizes (bytes), the largest first."""
    shutil.copytree(left.ledger, directory)
    file, parts = directory / left.file.name, replace(left.parts, ledger=directory)
    for size in sizes:
        with file.open("r+b") as opened:
            opened.truncate(size)
        recovered, whole = parts.recover(left.channel)
        account.check(recovered)
        assert recovered.authorised == left.channel.authorised
        assert not recovered.holds
        yield size, recovered, whole


def expected(left: Left, lines: list[bytes]) -> tuple[int, int]:
    """`paid` and `uncertain` by the whole lines after the record's mark, read in the simplest way."""
    channel = left.channel
    assert channel.folded is not None
    holds = {name: held.amount for name, held in channel.holds.items()}
    paid, uncertain = channel.paid, channel.uncertain
    for line in map(json.loads, lines):
        if (
            line["n"] <= channel.folded.line
            or line.get("channel") != channel.channel_id
            or "move" not in line
        ):
            continue
        move = line["move"]
        match move["kind"], move.get("ending"):
            case "sent", _:
                holds[move["request"]] = int(move["amount"])
            case "ended", "paid":
                paid += holds.pop(move["request"])
            case other:
                raise AssertionError(other)
    return paid, uncertain + sum(holds.values())


async def test_a_ledger_that_was_cut_anywhere(left: Left, tmp_path: Path) -> None:
    """Who died in the middle of a line had not sent what it names, or not heard of its end from anybody but us.

    A record that has seen lines which are gone has seen a power cut, or a hand: then all that was not paid may have
    been charged.
    """
    content = left.file.read_bytes()
    marked = size_of(content.splitlines(keepends=True)[: left.mark])
    last = size_of(content.splitlines(keepends=True)[-2:])
    sizes = [
        *range(len(content), len(content) - last, -1),
        *range(len(content) - last, marked, -97),
        *range(marked, -1, -211),
    ]
    states = set()
    for size, recovered, whole in cut(left, tmp_path / "cut", iter(sizes)):
        assert whole is (size >= marked), size
        if whole:
            lines = [line for line in content[:size].splitlines(keepends=True) if line.endswith(b"\n")]
            found = (recovered.paid, recovered.uncertain)
            assert found == expected(left, lines), size
            states.add(found)
        else:
            assert (recovered.paid, recovered.free) == (left.channel.paid, 0), size
    assert len(states) > IN_FLIGHT


def size_of(lines: list[bytes]) -> int:
    return sum(map(len, lines))
