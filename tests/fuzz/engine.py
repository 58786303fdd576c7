"""One target under the coverage-guided fuzzer: ``python -m tests.fuzz.engine TARGET [OPTION …] [CORPUS …]``.

The options are libFuzzer's; files in place of a corpus are run once.
"""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    name, *arguments = sys.argv[1:]
    atheris = importlib.import_module("atheris")
    atheris.enabled_hooks.add(
        "str"
    )  # its hook of regular expressions takes no positions: the dictionary must do
    # Ours alone: what the libraries do is not what is looked for, and would drown it.
    with atheris.instrument_imports(include=["proxy_addon", "store"]):
        target = importlib.import_module("tests.fuzz.target").load(name)
    atheris.Setup([sys.argv[0], *arguments], target.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
