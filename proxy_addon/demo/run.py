"""`bursar demo`: the whole story in a few seconds, on this machine alone.

A simulated chain and a paid API run in this process, on loopback. The proxy is the real one, in a process of its own,
with a config, a key and a store in a temporary home; the client is an unmodified curl. In the end everyone's books are
laid side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from proxy_addon.cli.failure import Failure
from proxy_addon.core.messages import parse_challenges
from proxy_addon.demo import books
from proxy_addon.demo.actors import Bursar, Curl, Page
from proxy_addon.demo.chain import PATH_USD, SimulatedChain
from proxy_addon.demo.failure import DemoFailed
from proxy_addon.demo.paid_api import PRICE, PaidApi
from proxy_addon.demo.rpc import RpcServer
from proxy_addon.keystore import create_keystore
from store.amounts import Token

OK: Final = 0
FAILED: Final = 1
NO_CURL: Final = 127
TERMINATED: Final = 128 + signal.SIGTERM

TOKEN: Final = Token(PATH_USD, "pathUSD", 6)
FUNDS: Final = 5_000_000
WARM_REQUESTS: Final = 5

_CONFIG: Final = """\
[wallet]
keystore = "{home}/key.json"
password_env = "BURSAR_PASSWORD"

[store]
directory = "{home}/store"

[policy]
max_per_day = "1.00"
max_lifetime = "1.00"

[[policy.hosts]]
host = "127.0.0.1:{port}"
max_price = "0.02"
max_per_day = "0.50"
max_deposit = "0.25"

[chains."eip155:{chain_id}"]
rpc = ["{rpc}"]

[[chains."eip155:{chain_id}".tokens]]
address = "{token}"
symbol = "pathUSD"
decimals = 6
"""

Out = Callable[[str], None]


def main() -> int:
    """Runs the demo on standard output; the exit code."""

    async def until_told() -> int:
        task = asyncio.current_task()
        assert task is not None
        # As Ctrl-C does: end what was started, and leave nothing behind.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await run_demo()

    try:
        return asyncio.run(until_told())
    except asyncio.CancelledError:
        return TERMINATED


async def run_demo(out: Out = lambda line: print(line, flush=True)) -> int:
    """Tells the story, line by line, to `out`. 0 if all books agree, 1 if anything went wrong, 127 without curl."""
    try:
        curl = Curl()
    except DemoFailed as error:
        out(f"demo: {error}")
        return NO_CURL
    with _home() as home:
        try:
            rows = await _Story(out, curl, home).tell()
        except (DemoFailed, Failure) as error:
            out(f"demo failed: {error.message if isinstance(error, Failure) else error}")
            _show_log(out, home / "proxy.log")
            return FAILED
    found = books.differences(rows)
    if found:
        out("demo failed: the books do not agree (base units)")
        for line in found:
            out(f"  {line}")
        return FAILED
    served = 1 + WARM_REQUESTS + 1
    out(f"demo ok: {served} requests, {TOKEN.show(served * PRICE)} paid, all books agree to the base unit")
    return OK


class _Story:
    def __init__(self, out: Out, curl: Curl, home: Path) -> None:
        self._out = out
        self._curl = curl
        self._home = home
        self._steps = 0

    async def tell(self) -> list[books.Row]:
        """Raises `DemoFailed` or `Failure`; whatever happens, no process is left behind."""
        chain = SimulatedChain()
        async with RpcServer(chain) as rpc, PaidApi(chain) as api:
            bursar, payer = await self._set_up(chain, rpc, api)
            try:
                await self._refused(api)
                await self._first_paid(chain, api, bursar, payer)
                await self._warm(api)
                await self._killed(api, bursar)
                await self._closed(bursar)
                rows = await self._books(chain, api, bursar, payer)
            finally:
                await bursar.kill()
        return rows

    async def _set_up(self, chain: SimulatedChain, rpc: RpcServer, api: PaidApi) -> tuple[Bursar, str]:
        self._step("A simulated chain, a paid API and a wallet")
        password = secrets.token_urlsafe(16)
        signer = await asyncio.to_thread(create_keystore, self._home / "key.json", password)
        chain.fund(signer.address, FUNDS)
        chain.fund(api.payee.address, FUNDS)
        config = self._home / "config.toml"
        config.write_text(
            _CONFIG.format(
                home=self._home, port=api.port, chain_id=chain.chain_id, rpc=rpc.url, token=PATH_USD
            )
        )
        self._say(f"chain   {rpc.url}  (simulated: nothing here is Tempo's network, or real money)")
        self._say(f"API     {api.url}  /quote costs {TOKEN.show(PRICE)} a request")
        self._say(f"wallet  {signer.address}  with {TOKEN.show(FUNDS)}")
        self._say(f"config  {config}  (removed when the demo ends)")
        return Bursar(config, {"BURSAR_PASSWORD": password}), signer.address

    async def _refused(self, api: PaidApi) -> None:
        self._step("curl alone is asked to pay")
        page = await self._get(api, None)
        _expect(page, 402)
        challenges = parse_challenges(page.all("www-authenticate")).challenges
        if len(challenges) != 1:
            raise DemoFailed(f"expected one Payment challenge, got {page.all('www-authenticate')}")
        challenge = challenges[0]
        request = challenge.request_json
        self._say(
            f"WWW-Authenticate: Payment, {challenge.method}/{challenge.intent}:"
            f" {TOKEN.show(int(request['amount']))} a {request['unitType']}, until {challenge.expires}"
        )

    async def _first_paid(self, chain: SimulatedChain, api: PaidApi, bursar: Bursar, payer: str) -> None:
        self._step("The same curl, behind bursar")
        self._proxy = await bursar.start()
        self._say(f"bursar run --config …  listens on {self._proxy}, pid {bursar.pid}")
        page = await self._get(api, self._proxy)
        _expect(page, 200)
        leaked = [name for name, _ in page.headers if name.lower().startswith("payment")]
        if leaked:
            raise DemoFailed(f"the client was shown {', '.join(leaked)}")
        account = next(iter(api.payee.accounts.values()))
        opening = chain.transactions[account.opened_by]
        self._say(
            f"opened channel {account.channel_id[:18]}… with a deposit of {TOKEN.show(account.deposit)}"
        )
        self._say(
            f"the network took a fee of {TOKEN.show(opening.fee)}; the payer has"
            f" {TOKEN.show(chain.balance(payer))} left"
        )

    async def _warm(self, api: PaidApi) -> None:
        self._step(f"{WARM_REQUESTS} more requests, on the same channel")
        for _ in range(WARM_REQUESTS):
            before = len(api.log)
            _expect(await self._get(api, self._proxy, quiet=True), 200)
            seen = api.log[before:]
            if len(seen) != 1:
                raise DemoFailed(f"a warm request was {len(seen)} requests upstream: {seen}")
            self._say(f"200, upstream saw 1 request: {seen[0].method} {seen[0].path}, {seen[0].action}")
        self._one_channel(api)

    async def _killed(self, api: PaidApi, bursar: Bursar) -> None:
        self._step("kill -9, start again, and go on")
        pid = bursar.pid
        await bursar.kill()
        self._say(f"kill -9 {pid}")
        self._proxy = await bursar.start()
        self._say(f"bursar run --config …  listens on {self._proxy}, pid {bursar.pid}")
        _expect(await self._get(api, self._proxy), 200)
        self._one_channel(api)
        self._say("the same channel went on; nothing was opened, nothing was lost")

    async def _closed(self, bursar: Bursar) -> None:
        self._step("Close the channel: the payee gets what it earned, the rest comes back")
        await bursar.stop()
        self._say("$ bursar channels close --all")
        results = await bursar.command("channels", "close", "--all")
        if len(results) != 1 or "error" in results[0]:
            raise DemoFailed(f"expected one channel to be closed, got {results}")
        result = results[0]
        captured, refunded = TOKEN.show(int(result["captured"])), TOKEN.show(int(result["refunded"]))
        self._say(f"captured {captured}, refunded {refunded}")

    async def _books(
        self, chain: SimulatedChain, api: PaidApi, bursar: Bursar, payer: str
    ) -> list[books.Row]:
        self._step(f"Everyone's books, in {TOKEN.symbol}")
        channels, lines, _ = await asyncio.gather(
            bursar.command("channels", "list", "--all"),
            bursar.lines("ledger"),
            bursar.command("ledger", "--sum"),  # fails if ledger and store disagree
        )
        rows = books.audit(
            chain,
            api.payee,
            payer=payer,
            funded={payer: FUNDS, api.payee.address: FUNDS},
            expected=api.charged,
            channels=channels,
            lines=lines,
        )
        for line in books.table(rows, TOKEN):
            self._say(line)
        return rows

    async def _get(self, api: PaidApi, proxy: str | None, *, quiet: bool = False) -> Page:
        url = f"{api.url}/quote"
        page = await self._curl.get(url, proxy)
        if not quiet:
            self._say(f"$ curl {'' if proxy is None else f'-x {proxy} '}{url}")
            self._say(f"{page.status_line}  {page.body.decode(errors='replace').strip()[:100]}")
        return page

    def _one_channel(self, api: PaidApi) -> None:
        if len(api.payee.accounts) != 1:
            raise DemoFailed(f"{len(api.payee.accounts)} channels were opened where one was enough")

    def _step(self, title: str) -> None:
        self._steps += 1
        self._out("")
        self._out(f"{self._steps}. {title}")

    def _say(self, line: str) -> None:
        self._out(f"   {line}".rstrip())


def _expect(page: Page, status: int) -> None:
    if page.status != status:
        told = page.body.decode(errors="replace").strip()[:300]
        raise DemoFailed(f"expected status {status}, got {page.status_line}: {told}")


@contextlib.contextmanager
def _home() -> Iterator[Path]:
    """A directory for its owner only, removed in the end."""
    home = Path(tempfile.mkdtemp(prefix="bursar-demo-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _show_log(out: Out, log: Path) -> None:
    if log.exists():
        out("the proxy's log ends:")
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]:
            out(f"  {line}")


if __name__ == "__main__":
    sys.exit(main())
