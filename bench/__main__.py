"""``python -m bench``: measures, prints a table, writes ``bench/results.json``, the plots and the page's table.

Nothing here asserts a time. The exit code is 0 if everything could be measured, whatever the figures; 1 if something
could not, such as a run whose books did not agree: it has no figures.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.groups import GROUPS, chosen, wanted
from bench.processes import Failed
from bench.rows import Row
from bench.world import world


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every row with small counts")
    parser.add_argument("--only", default="", help="groups or rows, comma-separated; then nothing is written")
    parser.add_argument("--out", type=Path, default=None, help="write the JSON here, and nothing else")
    parser.add_argument(
        "--keep", action="store_true", help="keep the scratch folder, with all logs and stores"
    )
    parser.add_argument("--list", action="store_true", help="what there is")
    options = parser.parse_args(arguments)
    if options.list:
        for name, group in GROUPS.items():
            print(f"{name:12} {', '.join(group.rows)}")
        return 0
    try:
        names = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    machine = report.machine()
    print(report.shown_machine(machine), flush=True)
    rows: list[Row] = []
    failed = False
    for name in names:
        began = time.monotonic()
        print(f"\n{name} …", file=sys.stderr, flush=True)
        try:
            with world(quick=options.quick, keep=options.keep) as surroundings:
                if options.keep:
                    print(f"{name}: everything is kept in {surroundings.folder}", file=sys.stderr)
                found = GROUPS[name].measure(surroundings)
        except (Failed, AssertionError, OSError) as error:
            failed = True
            print(f"{name}: no figures: {error}", file=sys.stderr, flush=True)
            continue
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
        found = [row for row in found if wanted(row, options.only)]
        rows += found
        print(report.table(found), flush=True)
        if options.out is not None:
            report.write_json(options.out, rows)  # of a run that is interrupted, what it had
    if len(names) > 1:
        print(f"\n{report.table(rows)}")
    if options.out is None and not options.only:
        report.write_all(rows, machine, quick=options.quick)
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was started ends
    sys.exit(main())
