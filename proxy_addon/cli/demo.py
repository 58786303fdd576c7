"""`bursar demo`: see it work, without money and without a network."""

from __future__ import annotations

import click


@click.command(name="demo")
def command() -> None:
    """A paid API, a simulated chain and an unmodified client, on this machine.

    \b
    Example:
      bursar demo
    """
    from proxy_addon.demo.run import main

    raise SystemExit(main())
