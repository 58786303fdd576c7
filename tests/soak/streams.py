"""Metered streams and plain requests for a long time, with clients that leave: ``python -m tests.soak.streams``.

A quarter of the clients leave at some point. Nobody hangs, nothing is left over in the proxy (tasks, sockets), and
the chain, the seller, the store and the ledger agree to the base unit when it is over.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from mitmproxy.certs import CertStore

from store.lifecycle import ChannelStatus
from store.records import Channel
from tests.e2e.accounting import Books
from tests.e2e.proxies import Home, Proxy, mitmdump, until
from tests.e2e.test_main_job import close_all
from tests.e2e.test_streams import peak_memory, swarm, wide_policy
from tests.peers.devnet import Devnet

CHANNELS = 24
AT_ONCE = 40
SPARE = {"tasks": 2, "files": 40}  # two pools, to the seller and to the chain, keep twenty connections each


def soak(net: Devnet, home: Home, *, requests: int, seconds: int, seed: int) -> dict[str, Any]:
    """At most `seconds` of `requests`. Returns what it took; raises `AssertionError`."""
    net.admin("reset")
    books = Books(net, home)
    watched = home.directory / "tasks"
    script = Path(__file__).with_name("watch.py")
    proxy = Proxy(home, [*mitmdump(home, net), "-s", str(script), "--set", "flow_detail=0"])
    proxy.environment["WATCH_FILE"] = str(watched)
    url = f"{net.http}/sse?n=4&delay=10&deposit=0.5"
    with proxy:
        swarm(proxy, url, 1, beside=1)  # what is loaded once is there now
        until(watched.is_file, "the tasks are counted")
        before = left_over(proxy, watched)
        told = swarm(proxy, url, requests, at_once=AT_ONCE, leave=25, streams=30, seconds=seconds, seed=seed)

        def settled() -> bool:
            now = left_over(proxy, watched)
            return all(now[name] <= before[name] + SPARE[name] for name in now)

        try:
            until(settled, f"no more tasks and files than {before}")
        except AssertionError as error:
            raise AssertionError(f"{error}, but {left_over(proxy, watched)}") from None
        told |= {"before": before, "after": left_over(proxy, watched), "memory_mib": peak_memory(proxy)}
        books.bounded()
        for channel in books.decided():
            assert channel.status is ChannelStatus.FAILED or agrees(books, channel), channel
    close_all(home)
    charged = sum(int(one["spent"]) for one in net.channels() if mine(one, home))
    books.agree(charged)
    return told | {"charged": charged, "channels": len(books.channels())}


def left_over(proxy: Proxy, watched: Path) -> dict[str, int]:
    assert proxy.process is not None
    folder = f"/proc/{proxy.process.pid}/fd"
    return {"tasks": int(watched.read_text()), "files": len(os.listdir(folder))}


def agrees(books: Books, channel: Channel) -> bool:
    """Is what the seller has charged between what we think it has for sure, and what it may have?"""
    spent = int(books.seller.channel(channel.channel_id)["spent"])
    return channel.held == 0 and channel.paid <= spent <= channel.paid + channel.uncertain


def mine(book: dict[str, Any], home: Home) -> bool:
    return str(book["payer"]).lower() == home.account.address.lower()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="no new requests after that")
    parser.add_argument("--requests", type=int, default=3000, help="how many, at most")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with Devnet({"suggested-deposit": "1"}) as net, tempfile.TemporaryDirectory(prefix="soak-") as folder:
        ca = Path(folder) / "ca"
        ca.mkdir()
        CertStore.from_store(ca, "mitmproxy", 2048)
        home = Home.make(Path(folder) / "home", net, ca, funds=60_000_000, policy=wide_policy(CHANNELS))
        seconds = int(options.minutes * 60)
        print(json.dumps(soak(net, home, requests=options.requests, seconds=seconds, seed=options.seed)))


if __name__ == "__main__":
    main()
