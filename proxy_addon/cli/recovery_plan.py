"""What `bursar channels recover` has found: what comes back, and what it costs. For people, and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from proxy_addon.cli.output import echo_json, short_id, table
from store.amounts import Token

if TYPE_CHECKING:
    from proxy_addon.payer.adopting import Findings, Lost


@dataclass(frozen=True, slots=True)
class Choice:
    """A channel that is not on record as one of ours, and what it costs to bring its deposit home by force."""

    chain: str
    one: Lost
    token: Token
    usual_fee: int
    most_fee: int
    most_at_once: int

    @property
    def name(self) -> str:
        return self.one.found.channel_id


def tell_plan(
    choices: Sequence[Choice],
    findings: Mapping[str, Findings],
    as_json: bool,
    *,
    wallet: Mapping[tuple[str, str], int],
    err: bool = False,
) -> None:
    if as_json:
        echo_json([choice_json(choice) for choice in choices])
        return
    if not choices:
        click.echo(nothing(findings), err=True)
        return
    amounts = ("DEPOSIT", "SETTLED", "COMES BACK", "USUAL FEE", "AT MOST")
    header = ("CHANNEL", "PAYEE", "VERSION", "OPENED IN", *amounts, "TOKEN", "STATE")
    click.echo(table(header, [_choice_row(choice) for choice in choices], right=amounts), err=err)
    for line in (*_sums(choices, wallet), *_others(findings)):
        click.echo(line, err=err)


def _choice_row(choice: Choice) -> tuple[str, ...]:
    one = choice.one

    def show(amount: int) -> str:
        return choice.token.show(amount).partition(" ")[0]

    if one.state.close_requested_at is not None:
        state = "close requested"
    else:
        state = "not on record" if one.record is None else f"on record as {one.record.status}"
    return (
        short_id(choice.name),
        short_id(one.found.scope.payee),
        one.found.scope.version,
        f"block {one.found.block_number}",
        *(show(amount) for amount in (one.state.deposit, one.state.settled, one.left)),
        *(show(amount) for amount in (choice.usual_fee, choice.most_fee)),
        choice.token.symbol,
        state,
    )


def _sums(choices: Sequence[Choice], wallet: Mapping[tuple[str, str], int]) -> list[str]:
    by_token: dict[tuple[str, str], list[Choice]] = {}
    for choice in choices:
        by_token.setdefault((choice.chain, choice.token.address), []).append(choice)
    lines = []
    for key, some in by_token.items():
        show = some[0].token.show
        left = show(sum(choice.one.left for choice in some))
        lines.append(
            f"{left} come back from {len(some)} channel{'s' if len(some) > 1 else ''}, less what payees can prove that"
            " they have not settled yet"
        )
        need = max(choice.most_at_once for choice in some)
        most, usual = sum(choice.most_fee for choice in some), sum(choice.usual_fee for choice in some)
        lines.append(
            f"by force that costs {show(usual)} in network fees as a rule, {show(most)} at most, of this wallet's;"
            " with the servers' help nothing"
        )
        if wallet.get(key, 0) < need:
            lines.append(
                f"but the wallet has {show(wallet.get(key, 0))}, and by force it must have {show(need)} at a time:"
                " fund it first"
            )
    return lines


def _others(findings: Mapping[str, Findings]) -> list[str]:
    known = sum(len(found.known) for found in findings.values())
    ended = sum(found.ended for found in findings.values())
    lines = []
    if known:
        lines.append(f"{known} more on record are left alone: see bursar channels list")
    if ended:
        lines.append(f"{ended} more are closed already")
    return lines


def nothing(findings: Mapping[str, Findings]) -> str:
    chains = ", ".join(f"{chain} up to block {found.head.number}" for chain, found in findings.items())
    more = "; ".join(_others(findings))
    return f"nothing to recover on {chains or 'any chain: the config names none'}" + (
        f" ({more})" if more else ""
    )


def choice_json(choice: Choice) -> dict[str, Any]:
    one = choice.one
    return {
        "channel": choice.name,
        "chain": choice.chain,
        "version": one.found.scope.version,
        "payee": one.found.scope.payee,
        "token": choice.token.address,
        "deposit": str(one.state.deposit),
        "settled": str(one.state.settled),
        "left": str(one.left),
        "close_requested_at": one.state.close_requested_at,
        "on_record": None if one.record is None else one.record.status.value,
        "block": one.found.block_number,
        "tx": one.found.tx_hash,
        "fee_usual": str(choice.usual_fee),
        "fee_most": str(choice.most_fee),
    }
