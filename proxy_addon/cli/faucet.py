"""`bursar faucet`: test money for the wallet, from the test network itself."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import config_option, load_settings

if TYPE_CHECKING:
    from proxy_addon.config import Settings

TEST_NETWORKS: Final = {"eip155:42431": "Tempo Moderato"}
_WAIT_S: Final = 30.0
_AGAIN_S: Final = 0.5


@click.command(name="faucet")
@config_option
def command(config: Path) -> None:
    """Ask the test network for test money, and wait until it is there.

    Only test networks give money away; on any other chain this is refused.

    \b
    Example:
      bursar init --network moderato --host api.example.com && bursar faucet
    """
    settings = load_settings(config)
    for line in asyncio.run(ask(settings)):
        click.echo(line)


async def ask(settings: Settings) -> list[str]:
    """Fund the wallet; what it has then, per token. Raises `Failure`, `ChainUnavailable`."""
    from proxy_addon.chain import ChainClient
    from store.amounts import Token

    chains = [name for name in settings.chains if name in TEST_NETWORKS]
    if not chains:
        raise Failure(
            f"the config has no test network ({', '.join(TEST_NETWORKS)}): nobody gives away money elsewhere",
            ExitCode.CONFIG,
        )
    address = wallet_address(settings)
    name = chains[0]
    chain = settings.chains[name]
    client = ChainClient(chain.rpc, int(name.partition(":")[2]), chain.timeout_s)
    try:
        tokens = [Token(entry.address, entry.symbol, entry.decimals) for entry in chain.tokens]
        before = {token: await client.balance(token.address, address) for token in tokens}
        await client.request_test_money(address)
        deadline = time.monotonic() + _WAIT_S
        while True:
            after = {token: await client.balance(token.address, address) for token in tokens}
            if any(after[token] > before[token] for token in tokens):
                return [
                    f"{address} has {token.show(after[token])} on {TEST_NETWORKS[name]}" for token in tokens
                ]
            if time.monotonic() > deadline:
                raise Failure(
                    f"{TEST_NETWORKS[name]} took the request, but nothing has come; try `bursar doctor`"
                )
            await asyncio.sleep(_AGAIN_S)
    finally:
        await client.aclose()


def wallet_address(settings: Settings) -> str:
    """Of the wallet, without opening it where that can be. Raises `Failure`, `KeystoreError`, `ConfigError`."""
    from proxy_addon.keys import load_signer
    from proxy_addon.keystore import keystore_address

    if settings.wallet.keystore is not None and (found := keystore_address(settings.wallet.keystore)):
        return found
    return load_signer(settings).address
