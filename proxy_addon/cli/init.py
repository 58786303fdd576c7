"""`bursar init`: a home with a config, a key and a certificate authority. Never overwrites anything."""

from __future__ import annotations

import shlex
import sys
import tomllib
from pathlib import Path

import click
from click.core import ParameterSource

from proxy_addon.cli.ca import ensure_ca, private_directory
from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import Home, default_home, json_option
from proxy_addon.cli.output import echo_json
from proxy_addon.cli.template import NETWORKS, Limits, Network, WalletChoice, render
from proxy_addon.cli.wallet import address_in_env, adopt_key, create_key, read_key, write_new
from store.amounts import parse_units


@click.command(name="init")
@click.option(
    "--home",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_home,
    show_default="~/.bursar",
    help="The directory to make.",
)
@click.option("--network", type=click.Choice(list(NETWORKS)), default="tempo", show_default=True)
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="A host that may be paid; repeatable.")
@click.option("--max-price", default=Limits.max_price, show_default=True, help="Per request.")
@click.option("--max-per-day", default=Limits.max_per_day, show_default=True, help="Per host and day.")
@click.option("--max-deposit", default=Limits.max_deposit, show_default=True, help="Per channel.")
@click.option("--total-per-day", default="5.00", show_default=True, help="All hosts together, a day.")
@click.option("--lifetime", default="100.00", show_default=True, help="All hosts together, ever.")
@click.option(
    "--import-key",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Take the key, in hex, from this file (- for stdin).",
)
@click.option("--key-env", metavar="NAME", help="Store no key: it will be in this environment variable.")
@click.option("--existing-key", is_flag=True, help="Go on with the key.json that is in the home already.")
@click.option("--non-interactive", is_flag=True, help="Ask nothing, even on a terminal.")
@json_option
def command(
    directory: Path,
    network: str,
    hosts: tuple[str, ...],
    max_price: str,
    max_per_day: str,
    max_deposit: str,
    total_per_day: str,
    lifetime: str,
    import_key: Path | None,
    key_env: str | None,
    existing_key: bool,
    non_interactive: bool,
    as_json: bool,
) -> None:
    """Make a wallet, a config and a certificate authority. Nothing is ever overwritten.

    The key is new unless --import-key, --key-env or --existing-key says otherwise. Its file is encrypted with
    the password in BURSAR_PASSWORD; without that you are asked for one; without an answer (or a terminal) a
    random one is made, and kept beside the key in a file that only you can read.

    \b
    Example:
      bursar init --network moderato --host api.example.com --max-price 0.05
    """
    if sum((import_key is not None, key_env is not None, existing_key)) > 1:
        raise click.UsageError("--import-key, --key-env and --existing-key exclude each other")
    home = Home(directory.expanduser().absolute())
    ask = not non_interactive and not as_json and sys.stdin.isatty()
    if ask:
        network, hosts, max_price, max_per_day = _ask(network, hosts, max_price, max_per_day)
    chosen = NETWORKS[network]
    limits = Limits(max_price, max_per_day, max_deposit)

    def config_text(wallet: WalletChoice, named: tuple[str, ...] = hosts) -> str:
        text = render(
            chosen, wallet, home.store, named, limits, total_per_day=total_per_day, lifetime=lifetime
        )
        _check(text, home)
        return text

    # What is wrong is said before anything exists; without a host, the limits are those of the one that will be added.
    config_text(WalletChoice(key_env=key_env or "X"), hosts or ("api.example.com",))
    _refuse_to_overwrite(home, new_key=key_env is None and not existing_key)
    secret = None if import_key is None else read_key(import_key)

    private_directory(home.directory)
    address: str | None
    if key_env is not None:
        address, wallet = address_in_env(key_env), WalletChoice(key_env=key_env)
    elif existing_key:
        address, wallet = adopt_key(home, ask=ask)
    else:
        address, wallet = create_key(home, secret, ask=ask)
    certificate = ensure_ca(home.ca)
    write_new(home.config, config_text(wallet))  # last: a home with a config is a whole one

    if as_json:
        echo_json(
            {
                "home": str(home.directory),
                "config": str(home.config),
                "address": address,
                "keystore": None if wallet.keystore is None else str(wallet.keystore),
                "password_file": None if wallet.password_file is None else str(wallet.password_file),
                "ca_certificate": str(certificate),
                "network": network,
                "chain": chosen.chain,
                "hosts": list(hosts),
            }
        )
    else:
        click.echo("\n".join(_told(home, chosen, wallet, address, hosts, certificate)))


def _ask(
    network: str, hosts: tuple[str, ...], max_price: str, max_per_day: str
) -> tuple[str, tuple[str, ...], str, str]:
    """On a terminal: what no flag has said. Each question says what its answer decides."""
    open_questions = {
        name
        for name in ("network", "hosts", "max_price", "max_per_day")
        if click.get_current_context().get_parameter_source(name) is ParameterSource.DEFAULT
    }
    if "network" in open_questions:
        click.echo("Which network? On moderato, a test network, money is free; on tempo it is real.")
        network = click.prompt("Network", type=click.Choice(list(NETWORKS)), default=network)
    if "hosts" in open_questions:
        click.echo("\nWho may be paid? Hosts such as api.example.com; whoever is not named gets nothing.")
        answer: str = click.prompt("Hosts (empty: none for now)", default="", show_default=False)
        hosts = tuple(answer.replace(",", " ").split())
    if hosts and "max_price" in open_questions:
        click.echo(
            "\nThe most that one request may cost. A dearer one is not paid: its 402 reaches the client."
        )
        max_price = _ask_amount("Per request", max_price)
    if hosts and "max_per_day" in open_questions:
        click.echo("\nThe most that each host gets in a day (UTC). The config has limits in total, too.")
        max_per_day = _ask_amount("Per host and day", max_per_day)
    return network, hosts, max_price, max_per_day


def _ask_amount(question: str, default: str) -> str:
    def amount(text: str) -> str:
        try:
            parse_units(text, 6, "this")
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        return text

    answer: str = click.prompt(question, default=default, value_proc=amount)
    return answer


def _refuse_to_overwrite(home: Home, *, new_key: bool) -> None:
    if home.config.exists():
        raise Failure(
            f"{home.config} exists and is not overwritten: edit it, or name another --home", ExitCode.CONFIG
        )
    if new_key and home.keystore.exists():
        raise Failure(
            f"{home.keystore} exists and is not overwritten: --existing-key goes on with it,"
            " or name another --home",
            ExitCode.CONFIG,
        )


def _check(text: str, home: Home) -> None:
    """What is about to be written must load. Raises `ConfigError`."""
    from proxy_addon.config import parse  # pydantic is slow to import

    parse(tomllib.loads(text), str(home.config))


def _told(
    home: Home,
    network: Network,
    wallet: WalletChoice,
    address: str | None,
    hosts: tuple[str, ...],
    certificate: Path,
) -> list[str]:
    lines = [f"config       {home.config}"]
    if wallet.key_env is not None:
        lines += [f"key          in the environment variable {wallet.key_env}, kept nowhere"]
    else:
        lines += [f"key          {wallet.keystore} (encrypted; back it up)"]
        if wallet.password_file is not None:
            lines += [f"password     {wallet.password_file} (whoever reads both files has the money)"]
        else:
            lines += [f"password     yours: in {wallet.password_env} when the proxy runs, or asked for"]
    symbols = " or ".join(symbol for _, symbol, _ in network.tokens)
    options = "" if home == Home(default_home().absolute()) else f" --config {shlex.quote(str(home.config))}"
    lines += [
        f"certificate  {certificate}",
        f"network      {network.title}, {network.chain}",
        f"hosts        {', '.join(hosts) or 'none: nobody is paid until one is in the config'}",
        "",
        f"Send {symbols} on {network.title} to:",
        f"  {address or f'(set {wallet.key_env} to see it)'}",
        network.funding,
        "",
        "Then:",
        *([] if hosts else [f"  edit {home.config}: [[policy.hosts]] says who may be paid, and how much"]),
        f"  bursar exec{options} -- curl https://{hosts[0].removeprefix('*.') if hosts else 'api.example.com'}/",
        f"  bursar run{options}      # or one proxy for many clients",
    ]
    return lines
