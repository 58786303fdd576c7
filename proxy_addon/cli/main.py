"""The `bursar` command. Subcommands are imported when they run, so that `--help` answers at once."""

from __future__ import annotations

import importlib
from typing import Any, Final, cast

import click

from proxy_addon.cli.failure import debugging, failure_of

# name -> what `bursar --help` says of it; the module of that name holds a click command called `command`.
_COMMANDS: Final = {
    "init": "Make a wallet, a config and a certificate authority.",
    "faucet": "Get test money from the test network.",
    "doctor": "Check that everything is there that paying needs.",
    "run": "Run the proxy that pays.",
    "exec": "Run one command behind a proxy of its own, and say what it paid.",
    "env": "Print the variables that send a shell, a container or a service through the proxy.",
    "inspect": "Say what a URL asks for and what would be done about it, without paying.",
    "explain": "What a reason for not paying means, and what to do.",
    "demo": "See it work: a paid API, a simulated chain, an unmodified client.",
    "channels": "List, show and close payment channels.",
    "key": "The wallet's address, a new password, a new key.",
    "ledger": "What was paid, to whom, for what.",
    "pins": "The payees that hosts are held to.",
    "backup": "Copy the store and its ledger, while a proxy runs.",
    "reconcile": "Find out what is uncertain; go on from an older copy of the store.",
}


class Commands(click.Group):
    """The subcommands, by name; and the one place where errors become a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"proxy_addon.cli.{cmd_name}")
        return cast(click.Command, module.command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if args and args[0] not in _COMMANDS:
                raise click.UsageError(
                    f"no command {args[0]!r}; there are {', '.join(_COMMANDS)}", ctx
                ) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except Exception as error:
            if debugging():
                raise
            raise failure_of(error) from error


def _tell_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("bursar")
    except PackageNotFoundError:
        found = "(a checkout that is not installed)"
    click.echo(f"bursar {found}")
    ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_tell_version, help="Show it."
)
def bursar() -> None:
    """Pay HTTP 402 for programs that know nothing of payment.

    \b
    bursar init --network moderato --host api.example.com
    bursar exec -- curl https://api.example.com/paid

    \b
    Exit codes:
      0  done
      1  failed
      2  wrong usage
      3  the config or the wallet cannot be used
      4  the store cannot be used, or does not agree with the ledger
      5  refused by the policy or a limit
      `bursar exec` ends as its command did (126, 127: it could not be started).

    \b
    Environment:
      BURSAR_HOME      where config.toml is looked for, instead of ~/.bursar
      BURSAR_CONFIG    the config file, instead of config.toml in there
      BURSAR_PASSWORD  the wallet's password (or the variable that the config names)
      BURSAR_DEBUG=1   show tracebacks
    """


def main() -> None:
    """The entry point."""
    bursar(prog_name="bursar")


if __name__ == "__main__":
    main()
