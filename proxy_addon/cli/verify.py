"""`bursar ledger verify`: is the ledger what was written, and do ledger, store and chain say the same?"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from proxy_addon.cli.failure import ExitCode
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.lines import Entry
from proxy_addon.cli.output import echo_json, printable, table
from proxy_addon.cli.records import open_store, view_of
from proxy_addon.cli.sums import add_up, differences
from store import account, budgets, seal
from store.account import Grown, IllegalMove, Sent
from store.journal import boot_id
from store.ledger_check import Finding, JournalReport, check_journal, check_missing
from store.ledger_files import journals
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from store.channels import ChannelStore

_SHOWN: Final = 10
"""Findings of one journal that are shown one by one: a file that was replaced has one for each line."""


@dataclass(slots=True)
class Books:
    """What all the journals together say."""

    reports: list[JournalReport] = field(default_factory=list)
    paid: dict[str, int] = field(default_factory=dict)  # by channel
    closing: dict[str, int] = field(default_factory=dict)  # what of that a close has adjusted
    vouchers: dict[str, int] = field(
        default_factory=lambda: defaultdict(int)
    )  # the highest that left, by channel


@dataclass(frozen=True, slots=True)
class Verdict:
    books: Books
    disagreements: Sequence[Finding]  # between ledger, store and chain
    channels: int
    chain: bool  # was it asked?

    @property
    def findings(self) -> Iterator[tuple[str, Finding]]:
        for report in self.books.reports:
            for finding in report.findings:
                yield f"journal {report.name}", finding
        for finding in self.disagreements:
            yield "", finding

    @property
    def good(self) -> bool:
        return all(finding.doubtful for _, finding in self.findings)


@click.command(name="verify")
@config_option
@click.option("--chain", "ask_chain", is_flag=True, help="Compare deposits and closes with the chain, too.")
@json_option
def verify(config: Path, ask_chain: bool, as_json: bool) -> None:
    """Prove that no line of the ledger was altered, dropped, added or moved, and that ledger and store agree.

    Each line carries a hash over the line before it, and the store keeps how far each journal went with every
    commit. Exit code 4 if anything is not as it was written. Works while a proxy runs.

    \b
    Examples:
      bursar ledger verify
      bursar ledger verify --chain --json
    """
    settings = load_settings(config)
    verdict = asyncio.run(_verify(settings, ask_chain=ask_chain))
    if as_json:
        echo_json(_as_json(verdict))
    else:
        _tell(verdict)
    if not verdict.good:
        raise SystemExit(int(ExitCode.STORE))


async def _verify(settings: Settings, *, ask_chain: bool) -> Verdict:
    if settings.store.backend == "lmdb" and not settings.store.directory.exists():
        return Verdict(Books(), (), 0, ask_chain)  # looking does not make one
    store = await open_store(settings)
    try:
        for attempt in range(3):
            size = _size(settings.store.ledger)
            # The anchors first, the records last: what is written meanwhile is then behind both.
            books = await _read(settings, store)
            channels, counters = await store.books()
            views = [view_of(settings, store, channel).channel for channel in channels]
            found = [*_of_channels(books, views), *_of_counters(channels, counters)]
            if not found or attempt == 2 or _size(settings.store.ledger) == size:
                break
        if (why := await _why_old(settings, store)) is not None:
            found.insert(0, Finding("old-copy", f"{why}; nothing is signed until it is reconciled"))
    finally:
        await store.close()
    if ask_chain:
        found += await _of_chain(settings, views)
    return Verdict(books, found, len(channels), ask_chain)


async def _why_old(settings: Settings, store: ChannelStore) -> str | None:
    """As the next process will find it."""
    where = settings.store
    sealed = [] if where.seal is None else seal.read(where.seal)  # before the store: see `store.presence`
    standing = await store.commits.standing()
    return standing.doubt or seal.why_old(sealed, standing, str(where.directory.absolute()))


async def _read(settings: Settings, store: ChannelStore) -> Books:
    """Every line of every journal, once."""
    anchors = await store.commits.anchors()
    known = settings.store.backend != "memory"
    books, boot = Books(), boot_id()
    lines: list[Iterator[Entry]] = []
    names = journals(settings.store.ledger)
    for name, files in names.items():
        report, found = check_journal(name, files, anchors.get(name), known=known, boot=boot)
        books.reports.append(report)
        lines.append(Entry(name, line) for line in found)
    sums = add_up(_noting_vouchers(books.vouchers, lines))
    books.paid, books.closing = sums.paid_by_channel, sums.closing
    books.reports += check_missing(anchors, frozenset(names), boot)
    return books


def _noting_vouchers(vouchers: dict[str, int], journals_: Sequence[Iterator[Entry]]) -> Iterator[Entry]:
    """One journal after the other: what they add up to does not depend on the order."""
    for entries in journals_:
        for entry in entries:
            match entry.line.move:
                case Sent(hold):
                    voucher = hold.voucher
                case Grown():
                    voucher = entry.line.move.voucher
                case _:
                    voucher = entry.units("cumulative") if entry.text("kind") == "close-sent" else 0
            channel_id = entry.line.channel_id
            if channel_id is not None and voucher > vouchers[channel_id]:
                vouchers[channel_id] = voucher
            yield entry


def _of_channels(books: Books, channels: Sequence[Channel]) -> Iterator[Finding]:
    """Record by record: its own sums, what the ledger has paid, and what has left."""
    cut = any(finding.doubtful for report in books.reports for finding in report.findings)
    for one in differences(books.paid, channels, closing=books.closing):
        lost = cut and one.store is not None and one.ledger < one.store
        yield Finding("paid", one.text, doubtful=one.doubted or lost)
    for channel in channels:
        try:
            account.check(channel)
        except IllegalMove as error:
            yield Finding("record", str(error))
        highest = books.vouchers.get(channel.channel_id, 0)
        if highest > channel.authorised:
            yield Finding(
                "voucher",
                f"channel {channel.channel_id}: the ledger has a voucher of {highest} sent, the store only"
                f" {channel.authorised} authorised: the store is older than its ledger",
            )


def _of_counters(channels: Sequence[Channel], counters: Mapping[str, int]) -> Iterator[Finding]:
    """Token by token: each family of budgets counts exactly what was ever authorised."""
    authorised: dict[str, int] = defaultdict(int)
    for channel in channels:
        if channel.status is not ChannelStatus.FAILED:
            authorised[channel.scope.token] += channel.authorised
    counted: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for key, amount in counters.items():
        family, _, rest = key.partition("/")
        if f"{family}/" in (*budgets.RAISED, budgets.REFUNDED):
            counted[rest.partition("/")[0]]["lifetime" if family == "refunded" else family] += amount
    for token in sorted({*authorised, *counted}):
        for family in ("host-day", "total-day", "lifetime"):
            if counted[token][family] != authorised[token]:
                yield Finding(
                    "counters",
                    f"token {token}: {authorised[token]} are authorised in all, and the {family} budgets have"
                    f" counted {counted[token][family]}",
                )


async def _of_chain(settings: Settings, channels: Sequence[Channel]) -> list[Finding]:
    """Channel by channel: what is in the escrow, and what was captured at a close."""
    from proxy_addon.core.errors import ChainUnavailable
    from proxy_addon.methods.registry import method_of
    from proxy_addon.runtime import open_chains

    chains, found = open_chains(settings), list[Finding]()
    try:
        for channel in channels:
            name = f"channel {channel.channel_id}"
            chain = chains.get(channel.scope.chain)
            if chain is None:
                found.append(
                    Finding("chain", f"{name}: the config has no endpoint for {channel.scope.chain}")
                )
                continue
            if channel.status is ChannelStatus.MOVED:
                continue
            try:
                method = method_of(channel.scope.family, channel.scope.version)
                state = await method.read_channel(chain, channel)
                closing = None
                if channel.status is ChannelStatus.CLOSED:
                    closing = await method.read_closing(chain, channel, state.block)
            except (ChainUnavailable, KeyError) as error:
                found.append(Finding("chain", f"{name} cannot be compared: {error}"))
                continue
            found += (Finding("chain", f"{name}: {text}") for text in _compared(channel, state, closing))
    finally:
        for chain in chains.values():
            await chain.aclose()
    return found


def _compared(channel: Channel, state: Any, closing: Any) -> Iterator[str]:
    pending = channel.pending.deposit if channel.pending is not None else 0
    match channel.status:
        case ChannelStatus.FAILED if state.exists:
            yield "it is failed on record, and open on the chain"
        case ChannelStatus.CLOSED if state.exists:
            yield "it is closed on record, and open on the chain"
        case ChannelStatus.CLOSED if closing is None:
            yield "no event of the chain tells any more how it was closed"
        case ChannelStatus.CLOSED if (closing.captured, closing.refunded) != (
            channel.captured,
            channel.refunded,
        ):
            yield (
                f"the chain has {closing.captured} captured and {closing.refunded} refunded, the record"
                f" {channel.captured} and {channel.refunded}"
            )
        case status if status in FINAL or status in PENDING_OPEN:
            pass
        case _ if not state.exists:
            yield "it is gone from the chain: bursar channels close writes down what became of it"
        case _:
            if state.deposit not in (channel.deposit, channel.deposit + pending):
                yield f"the chain has a deposit of {state.deposit}, the record {channel.deposit}"
            if state.settled > channel.authorised:
                yield f"the chain has {state.settled} settled, the record only {channel.authorised} authorised"


# -- telling


def _tell(verdict: Verdict) -> None:
    rows = [
        (report.name, str(report.files), str(report.lines), str(report.behind_anchor), _state(report))
        for report in verdict.books.reports
    ]
    if rows:
        click.echo(
            table(
                ("JOURNAL", "FILES", "LINES", "UNANCHORED", "STATE"),
                rows,
                right=("FILES", "LINES", "UNANCHORED"),
            )
        )
    shown: dict[str, int] = defaultdict(int)
    for where, finding in verdict.findings:
        shown[where] += 1
        if shown[where] <= _SHOWN or not where:
            doubt = " (a power cut may have done that)" if finding.doubtful else ""
            click.echo(f"bursar: {printable(f'{where} {finding.text}'.strip())}{doubt}", err=True)
    for where, number in shown.items():
        if where and number > _SHOWN:
            click.echo(f"bursar: {where}: {number - _SHOWN} more findings (--json has all)", err=True)
    if not rows and verdict.good:
        click.echo("nothing in the ledger", err=True)
    elif not any(True for _ in verdict.findings):
        lines = sum(report.lines for report in verdict.books.reports)
        agreed = "ledger, store and chain" if verdict.chain else "ledger and store"
        click.echo(f"{lines} lines are as they were written; {agreed} agree on {verdict.channels} channels.")


def _state(report: JournalReport) -> str:
    if any(not finding.doubtful for finding in report.findings):
        return "not as it was written"
    if report.findings:
        return "doubtful"
    if not report.chained and report.lines:
        return "unchained: from before lines carried hashes"
    if report.anchor is None:
        return "empty" if not report.lines else "chained"
    return "verified, closed" if report.anchor.closed else "verified"


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "good": verdict.good,
        "chain": verdict.chain,
        "channels": verdict.channels,
        "journals": [
            {
                "journal": report.name,
                "files": report.files,
                "lines": report.lines,
                "torn": report.torn,
                "chained": report.chained,
                "anchor": _anchor(report),
                "findings": [_finding(one) for one in report.findings],
            }
            for report in verdict.books.reports
        ],
        "disagreements": [_finding(one) for one in verdict.disagreements],
    }


def _anchor(report: JournalReport) -> dict[str, Any] | None:
    anchor = report.anchor
    return (
        None
        if anchor is None
        else {
            "line": anchor.line,
            "hash": anchor.digest.hex(),
            "closed": anchor.closed,
            "boot": anchor.boot_id,
        }
    )


def _finding(one: Finding) -> dict[str, Any]:
    return {"kind": one.kind, "text": one.text, "doubtful": one.doubtful}


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("*")) if directory.is_dir() else 0
