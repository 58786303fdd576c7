"""Against mppx's own client, on a real mppx server and a development chain. Needs Node and the testbed's packages."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Final

from bench.homes import Charged, Home, check_books
from bench.processes import Failed, Process, environment
from bench.rows import Row, missing, of_rounds
from bench.world import World
from tests.peers.devnet import PEERS, Devnet, DevnetError, find_node

_CLIENT: Final = Path(__file__).with_name("mppx_client.mjs")
_FUNDS: Final = 500_000_000  # base units
_TITLE: Final = "CPU of a paid call, one at a time: (bursar run - plain mitmdump) / mppx's client"


def against(world: World) -> list[Row]:
    try:
        with Devnet({"suggested-deposit": "100"}) as net:
            return _measure(world, net)
    except DevnetError as error:
        return [missing("mppx-cpu", _TITLE, str(error).partition("\n")[0], goal=0.5, better="less", unit="×")]


def _measure(world: World, net: Devnet) -> list[Row]:
    rounds, requests = (3, 40) if world.quick else (7, 200)
    account = net.new_account(_FUNDS)
    host = net.http.partition("://")[2]
    rpc = f"{net.rpc_url}/proxy"
    wallet = (account.address, account.private_key)
    home = world.home(host=host, rpc=rpc, chain_id=net.chain_id, account=wallet)
    client = net.new_account(_FUNDS)
    command = [find_node(), "--input-type=module", "--eval", _CLIENT.read_text()]
    command += [f"{net.rpc_url}/mppx", net.http, client.private_key]
    cpus, rates, mine, theirs = [], [], [], []
    seen = {"ours": 0, "mppx": 0}
    with (
        world.ours(home) as ours,
        world.plain() as plain,
        Process(command, log=world.folder / "mppx.log", cwd=PEERS, env=environment()) as mppx,
    ):
        mppx.ask({"requests": 30})  # its channel is open, its code is compiled
        for proxy, path in ((ours, "/req"), (plain, "/free")):
            world.run(proxy.port, f"{net.http}{path}", connections=1, requests=30)
        for _ in range(rounds):
            task = {"connections": 1, "requests": requests}
            before = _requests(net)
            one = world.run(ours.port, f"{net.http}/req", pids=ours.pids, **task)
            between = _requests(net)
            other = mppx.ask({"requests": requests})
            after = _requests(net)
            floor = world.run(plain.port, f"{net.http}/free", pids=plain.pids, **task)
            seen["ours"] += between - before
            seen["mppx"] += after - between
            cpus.append((one["cpu"][0] - floor["cpu"][0]) / other["cpu"])
            rates.append(other["seconds"] / one["seconds"])
            mine.append((one["cpu"][0], floor["cpu"][0], requests / one["seconds"]))
            theirs.append((other["cpu"], requests / other["seconds"]))
    _agree(home, net)
    calls = rounds * requests
    middle = [median(one[at] for one in mine) for at in range(3)]
    mppx_cpu, mppx_rate = (median(one[at] for one in theirs) for at in range(2))
    return [
        Row(
            "mppx-requests",
            "upstream requests per warm paid call on mppx's server, bursar run",
            seen["ours"] / calls,
            1.01,
            "less",
            note=f"{calls} calls; mppx's own client: {seen['mppx'] / calls:.2f}",
        ),
        of_rounds(
            "mppx-cpu",
            _TITLE,
            cpus,
            goal=0.5,
            better="less",
            unit="×",
            note=f"({middle[0] / requests * 1e6:.0f} - {middle[1] / requests * 1e6:.0f}) µs"
            f" to {mppx_cpu / requests * 1e6:.0f} µs",
        ),
        of_rounds(
            "mppx-rate",
            "paid calls a second, one at a time, through the extra hop: bursar run / mppx's client",
            rates,
            goal=1.0,
            better="more",
            unit="×",
            note=f"{middle[2]:.0f}/s to {mppx_rate:.0f}/s",
        ),
    ]


def _requests(net: Devnet) -> int:
    return int(net.stats("/req").get("total", 0))


def _agree(home: Home, net: Devnet) -> None:
    books = [one for one in net.channels() if one["payer"].lower() == home.address]
    if not books:
        raise Failed("mppx's server knows of no channel of ours")
    check_books(
        home, Charged(sum(int(one["spent"]) for one in books), sum(int(one["units"]) for one in books))
    )
