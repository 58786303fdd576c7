"""Writes the seeds into the corpus, the same ones every time: ``python -m tests.fuzz.seeds``."""

from __future__ import annotations

from tests.fuzz.target import CORPUS, NAMES, load


def main() -> None:
    for name in NAMES:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in load(name).seeds().items():
            (folder / file).write_bytes(data)


if __name__ == "__main__":
    main()
