"""A proxy that holds only the key of its vouchers: it spends what is deposited, and can do nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.accounting import Books, stats
from tests.e2e.clients import curl
from tests.e2e.proxies import KEY_VARIABLE, Home, rule, until
from tests.e2e.world import MakeHome, MakeProxy
from tests.peers.devnet import Account, Devnet

pytestmark = [pytest.mark.e2e, pytest.mark.fresh]

PRICE = 10_000
VOUCHER_VARIABLE = "E2E_VOUCHER_KEY"


def write(home: Home, net: Devnet, wallet: dict[str, str]) -> None:
    """The home's usual config with another [wallet], and a deposit for three requests."""
    text = home.config.read_text()
    start, end = text.index('["wallet"]'), text.index('["store"]')
    lines = [line for line in text[:start].splitlines() if line]
    table = ['["wallet"]', *(f'{key} = "{value}"' for key, value in wallet.items())]
    table += ['["wallet"."voucher_key"]', f'private_key_env = "{VOUCHER_VARIABLE}"', ""]
    home.config.write_text("\n".join([*lines, *table]) + text[end:])


def memory(pid: int) -> Iterator[bytes]:
    """All that a process has in memory and could write to."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if found is None:
                continue
            start, end = (int(part, 16) for part in found.groups())
            try:
                file.seek(start)
                yield file.read(end - start)
            except (OSError, OverflowError):
                continue  # the kernel's own


def holds(pid: int, account: Account) -> bool:
    digits = account.private_key.removeprefix("0x")
    forms = (bytes.fromhex(digits), digits.encode(), digits.upper().encode())
    return any(form in part for part in memory(pid) for form in forms)


def test_vouchers_only(devnet: Devnet, make_home: MakeHome, make_proxy: MakeProxy) -> None:
    devnet.admin("reset")
    hosts = [rule("127.0.0.1", max_deposit="0.03")]
    home = make_home(policy={"max_per_day": "5", "max_lifetime": "10", "hosts": hosts})
    delegate = devnet.new_account()
    books = Books(devnet, home)
    url = f"{devnet.http}/req"

    # Where both keys are, the channel is opened.
    write(home, devnet, {"private_key_env": KEY_VARIABLE})
    opener = make_proxy(home)
    opener.environment = {VOUCHER_VARIABLE: delegate.private_key}
    with opener:
        assert curl(opener, url).status == 200
        books.decided()
    assert books.channel().scope.voucher_signer == delegate.address.lower()

    # Where the proxy runs, the payer is known by address only.
    write(home, devnet, {"payer": home.account.address})
    proxy = make_proxy(home)
    proxy.environment = {VOUCHER_VARIABLE: delegate.private_key, KEY_VARIABLE: ""}
    with proxy:
        assert [curl(proxy, url).status for _ in range(2)] == [200, 200]
        assert proxy.process is not None
        assert holds(proxy.process.pid, delegate)  # so the search would find the other one, too
        assert not holds(proxy.process.pid, home.account)
        # The deposit is used up: more of it is for the payer's key.
        assert curl(proxy, url).status == 402
        assert home.ledger_of("decision")[-1]["reason"] == "no-payer-key"
        until(lambda: books.channel().held == 0, "every payment has its end")
    assert stats(devnet.seller, "/req")["open"] == 1
    books.agree(3 * PRICE)
