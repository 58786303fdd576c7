"""Every row of the client matrix: an unmodified client, the variables of `bursar env`, a real paid server.

``make clients`` runs all rows and writes `docs/clients.md`; the quick ones are in every run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.matrix import DOCUMENT, Result, results, text
from tests.clients.table import CLIENTS, Client
from tests.e2e.accounting import Books, stats
from tests.e2e.proxies import CA_CERTIFICATE, Proxy, bursar, quiet_environment, until
from tests.e2e.world import MakeHome, ca, devnet, make_home, make_proxy
from tests.peers.devnet import Devnet, Seller

__all__ = ["ca", "devnet", "make_home", "make_proxy"]

pytestmark = pytest.mark.e2e

ALL = os.environ.get("BURSAR_CLIENTS") == "all"
PAGE = """<!doctype html><title>Paid</title>
<img src="image.svg"><p id="p">not yet</p><script src="script.js"></script>"""
SCRIPT = "document.getElementById('p').textContent = 'the ' + 'script was paid for'"
IMAGE = '<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


@dataclass(frozen=True)
class Shop:
    net: Devnet
    seller: Seller
    proxy: Proxy
    books: Books


def make_files(folder: Path) -> None:
    """What is sold file by file: a page, and a repository that git can clone without a server of its own."""
    folder.mkdir()
    (folder / "page.html").write_text(PAGE)
    (folder / "script.js").write_text(SCRIPT)
    (folder / "image.svg").write_text(IMAGE)
    work = folder.parent / "work"
    identity = {
        f"GIT_{who}_{what}": "someone@example.com"
        for who in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", *arguments], check=True, capture_output=True, env=quiet_environment(**identity)
        )

    git("init", "-q", "-b", "main", str(work))
    (work / "paid.txt").write_text("content that was paid for\n")
    git("-C", str(work), "add", ".")
    git("-C", str(work), "commit", "-q", "-m", "one")
    git("clone", "-q", "--bare", str(work), str(folder / "repository.git"))
    git("-C", str(folder / "repository.git"), "update-server-info")


@pytest.fixture(scope="module")
def shop(devnet: Devnet, make_home: MakeHome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("sold") / "files"
    make_files(folder)
    seller = devnet.start_server({"suggested-deposit": "1", "files": folder}, "files")
    home = make_home()
    proxy = Proxy(home, bursar(home, "run", "--listen", "127.0.0.1:0"))
    try:
        with proxy:
            yield Shop(devnet, seller, proxy, Books(devnet, home, seller))
    finally:
        proxy.kill()
        devnet.stop_server(seller)


@pytest.fixture(scope="module")
def environment(shop: Shop) -> dict[str, str]:
    """What a user's shell has after ``eval "$(bursar env)"``."""
    printed = subprocess.run(
        bursar(shop.proxy.home, "env", "--url", shop.proxy.url),
        env=quiet_environment(PYTHONPATH=str(Path(__file__).parents[2])),
        capture_output=True,
        text=True,
        check=True,
    )
    script = f"{printed.stdout}\nenv -0"
    shell = subprocess.run(["sh", "-c", script], env=quiet_environment(), capture_output=True, check=True)
    variables = dict(line.split("=", 1) for line in shell.stdout.decode().split("\0") if line)
    return variables | {"BURSAR_TEST_CA": str(shop.proxy.home.ca / CA_CERTIFICATE)}


def version_of(client: Client) -> str | None:
    """What it says of itself; None if it is not installed."""
    if any(shutil.which(tool) is None for tool in {client.tool, client.version[0]}):
        return None
    told = subprocess.run(
        client.version, capture_output=True, text=True, check=False, env=quiet_environment()
    )
    found = re.search(r"\d+(?:\.\d+)+", told.stdout)
    return found[0] if told.returncode == 0 and found else None


@pytest.mark.parametrize("client", [pytest.param(one, id=one.name.replace(" ", "-")) for one in CLIENTS])
def test_a_client_is_paid_for(
    client: Client, shop: Shop, environment: dict[str, str], tmp_path: Path
) -> None:
    if not (client.quick or ALL):
        pytest.skip("slow: `make clients` runs it")
    version = version_of(client)
    if version is None:
        results.append(Result(client, None))
        pytest.skip(f"{client.name} is not installed here: {client.package}")
    shop.seller.admin("reset")
    values = {"{url}": f"{shop.seller.https}/req", "{base}": shop.seller.https, "{scratch}": str(tmp_path)}
    command = [
        re.sub(r"\{\w+\}", lambda found: values.get(found[0], found[0]), part) for part in client.command
    ]
    done = subprocess.run(
        command, env=environment, capture_output=True, timeout=100, check=False, stdin=subprocess.DEVNULL
    )
    output = done.stdout.decode()
    assert client.shows in output, (done.returncode, output, done.stderr.decode())
    assert done.returncode == 0
    assert stats(shop.seller, "/req", "/files/", "/v1/chat/completions")["withCredential"] >= client.paid
    until(lambda: all(one.held == 0 for one in shop.books.channels()), "every payment has its end")
    shop.books.bounded()
    results.append(Result(client, version))


@pytest.mark.skipif(not ALL, reason="`make clients` writes it")
def test_the_document_is_written() -> None:
    """Last of this file: the rows are there, with the versions that ran."""
    assert [one.client for one in results] == list(CLIENTS)
    DOCUMENT.write_text(text(results))


def test_the_document_has_every_row() -> None:
    """It is as new as the table: each client, with its note, and whether it ran."""
    written = DOCUMENT.read_text()
    for client in CLIENTS:
        row = next((line for line in written.splitlines() if line.startswith(f"| {client.name} |")), "")
        assert row.endswith(f"| {client.note} |"), f"{client.name}: run `make clients` again"
