"""The main job: a client that knows nothing of payment is served, through a crash, and every unit is accounted for."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import Got, finish, start
from tests.e2e.proxies import KEY_VARIABLE, ROOT, Home, Proxy, bursar, quiet_environment
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Devnet

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

PRICE = 10_000  # base units, of /req and /price
WARM = 20
ROUTES = ("/req", "/price")  # one for each of http and https


def both(kind: str, proxy: Proxy, net: Devnet, count: int) -> list[Got]:
    """`count` requests over http and as many over https, by two client processes at the same time."""
    urls = (f"{net.http}/req", f"{net.https}/price")
    return [got for running in [start(kind, proxy, url, count) for url in urls] for got in finish(running)]


def assert_served(answers: list[Got]) -> None:
    for got in answers:
        assert got.status == 200
        assert got.json["ok"] is True
        assert got.payment_fields == []


def close_all(home: Home) -> list[dict[str, str]]:
    environment = quiet_environment(**{KEY_VARIABLE: home.account.private_key, "PYTHONPATH": str(ROOT)})
    command = bursar(home, "channels", "close", "--all", "--json")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told: list[dict[str, str]] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize(
    ("launcher", "kind"),
    [
        ("bursar run", "curl"),
        ("mitmdump", "requests"),
        pytest.param("mitmdump", "httpx", marks=pytest.mark.long),
    ],
)
def test_open_reuse_crash_resume_close(
    devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy, launcher: str, kind: str
) -> None:
    devnet.admin("reset")
    home = make_home()
    books = Books(devnet, home)

    def new_proxy() -> Proxy:
        if launcher == "mitmdump":
            return make_proxy(home)
        return Proxy(home, bursar(home, "run", "--listen", "127.0.0.1:0"))

    with new_proxy() as proxy:
        # Cold: a channel is opened for each scheme.
        assert_served(both(kind, proxy, devnet, 1))
        assert stats(devnet.seller, *ROUTES) == {
            **{"total": 4, "withCredential": 2, "sent402": 2},
            **{"open": 2, "voucher": 0, "topUp": 0, "close": 0},
        }
        devnet.admin("reset")

        # Warm: one upstream request for each of the client's.
        assert_served(both(kind, proxy, devnet, WARM))
        assert stats(devnet.seller, *ROUTES) == {
            **{"total": 2 * WARM, "withCredential": 2 * WARM, "sent402": 0},
            **{"open": 0, "voucher": 2 * WARM, "topUp": 0, "close": 0},
        }
        books.agree(2 * (1 + WARM) * PRICE)
        proxy.kill()
        devnet.admin("reset")

        # A new process goes on with the same channels.
        with new_proxy() as second:
            assert_served(both(kind, second, devnet, 1))
            counted = stats(devnet.seller, *ROUTES)
            assert (counted["open"], counted["voucher"]) == (0, 2)
            assert len(books.channels()) == 2
            books.agree(2 * (2 + WARM) * PRICE)

    told = close_all(home)
    assert [one["status"] for one in told] == ["closed", "closed"]
    assert sum(int(one["captured"]) for one in told) == 2 * (2 + WARM) * PRICE
    books.agree(2 * (2 + WARM) * PRICE)
