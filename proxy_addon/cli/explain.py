"""`bursar explain`: what a reason means, and what to do about it."""

from __future__ import annotations

import difflib
import textwrap

import click

from proxy_addon.reasons import REASONS


@click.command(name="explain")
@click.argument("word", metavar="REASON")
def command(word: str) -> None:
    """What a reason in the ledger, the log or a Bursar-Reason header means, and the way out.

    \b
    Example:
      bursar explain over-max-price
    """
    reason = REASONS.get(word.strip().lower())
    if reason is None:
        near = difflib.get_close_matches(word, REASONS, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(REASONS)}"
        raise click.UsageError(f"no reason {word!r}{hint}")
    click.echo(f"{reason.word}\n{textwrap.fill(reason.means, 100)}\n→ {textwrap.fill(reason.mend, 98)}")
