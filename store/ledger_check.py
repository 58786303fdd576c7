"""Is the ledger what was written? Each journal's chain of hashes, and the anchors that the store keeps of it.

What it proves: up to its anchor, no line of a journal was altered, dropped, added or moved, and none is missing
at its end. The anchor is that of the process's last commit; it is the very end once the process has ended, by
whatever means, and another has started since. Behind the anchor of a process that runs (or has died since), a
line cannot be altered or taken out of the middle, but the end may be cut off.

Whoever can write the store can make both anew. A power cut may take lines that had an anchor; where the machine
was restarted before the journal was closed, a missing end is therefore doubtful and no proof.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from store import ledger_files, ledger_hash
from store.anchors import Anchor
from store.journal import Line, parse_line

_TORN: Final = b"~"
"""At the end of a line that was not written whole, and of which nothing left: see `journal.Journal.append`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written. `doubtful`: a power cut explains it as well."""

    kind: str
    text: str
    doubtful: bool = False


@dataclass(slots=True)
class JournalReport:
    """One journal, read once from end to end."""

    name: str
    files: int = 0
    lines: int = 0
    torn: int = 0  # lines that a full disk, or a crash, did not take whole
    chained: bool = True  # False: of before there were hashes
    anchor: Anchor | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def behind_anchor(self) -> int:
        """Lines whose end could be cut off unnoticed."""
        return 0 if self.anchor is None else max(0, self.lines - self.anchor.line)


def check_journal(
    name: str, files: Sequence[Path], anchor: Anchor | None, *, known: bool, boot: str
) -> tuple[JournalReport, Iterator[Line]]:
    """The journal's lines; and a report, which is complete once they have all been taken.

    `known`: the store keeps anchors, so that it should have one of this journal, unless it is from before.
    """
    report = JournalReport(name, len(files), anchor=anchor)
    return report, _Check(report, boot).run(files, known=known)


def check_missing(anchors: Mapping[str, Anchor], names: frozenset[str], boot: str) -> Iterator[JournalReport]:
    """The journals that the store knows of, and that are not there."""
    for name in sorted(anchors.keys() - names):
        anchor = anchors[name]
        if anchor.line:
            text = f"is gone, with at least {anchor.line} lines"
            finding = Finding("missing", text, doubtful=_cut_off(anchor, boot))
            yield JournalReport(name, anchor=anchor, findings=[finding])


def _cut_off(anchor: Anchor, boot: str) -> bool:
    """Was the machine restarted while the journal was not closed?"""
    return not anchor.closed and anchor.boot_id != boot


class _Check:
    def __init__(self, report: JournalReport, boot: str) -> None:
        self._report = report
        self._boot = boot
        self._last = 0
        self._digest: bytes | None = ledger_hash.first(report.name)

    def run(self, files: Sequence[Path], *, known: bool) -> Iterator[Line]:
        number = 0
        for path in files:
            before, number = number, ledger_files.journal_of(path)[1]
            if number != before + 1:
                self._find("missing", f"its file number {before + 1} is gone (the next one is {number})")
            for raw in ledger_files.raw_lines(path):
                if raw.endswith(_TORN):
                    self._report.torn += 1
                elif (line := parse_line(raw)) is None:
                    self._find("altered", f"what stands after line {self._last} is no line of a ledger")
                else:
                    self._line(line)
                    yield line
        self._end(known)

    def _line(self, line: Line) -> None:
        report, last = self._report, self._last
        if not report.lines and line.digest is None and report.anchor is None:
            report.chained = False
        report.lines += 1
        if line.number > last + 1:
            shown = str(last + 1) if line.number == last + 2 else f"{last + 1} to {line.number - 1}"
            self._find("dropped", f"line {shown} is missing")
        elif line.number <= last:
            self._find("reordered", f"line {line.number} stands after line {last}")
            return
        elif not self._follows(line):
            self._find("altered", f"line {line.number}, or the one before it, is not what was written")
        self._last, self._digest = line.number, line.digest
        anchor = report.anchor
        if anchor is not None and anchor.line == line.number and anchor.digest != line.digest:
            self._find(
                "altered", f"the store has seen another line {line.number}: what is up to there was rewritten"
            )

    def _follows(self, line: Line) -> bool:
        if not self._report.chained:
            return line.digest is None
        return self._digest is not None and line.digest == ledger_hash.link(self._digest, line.body)

    def _end(self, known: bool) -> None:
        report, anchor = self._report, self._report.anchor
        if anchor is None:
            if known and report.lines and report.chained:
                self._find(
                    "unknown", "is not known to the store: it is another store's, or the store is an old copy"
                )
            return
        if self._last < anchor.line:
            text = f"ends at line {self._last}, and the store has seen line {anchor.line}"
            self._find("cut-short", text, doubtful=_cut_off(anchor, self._boot))
        elif anchor.closed and self._last > anchor.line:
            self._find("added", f"goes on to line {self._last}, and was closed at line {anchor.line}")

    def _find(self, kind: str, text: str, *, doubtful: bool = False) -> None:
        self._report.findings.append(Finding(kind, text, doubtful))
