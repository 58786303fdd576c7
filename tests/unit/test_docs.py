"""That the pages lead where they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def heading(text: str) -> str:
    """A heading as an anchor."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(heading, headings), f"{page.name} links to {target}"


def test_the_adrs_are_numbered_without_gaps() -> None:
    numbers = [int(path.name[:4]) for path in sorted((ROOT / "docs" / "adr").glob("*.md"))]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1


def test_the_page_on_the_house_names_every_room() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", text))
    inside = ROOT / "proxy_addon"
    rooms = {f"proxy_addon/{one.parent.name}/" for one in inside.glob("*/__init__.py")}
    modules = {one.name for one in inside.glob("*.py")} - {"__init__.py"}
    assert {"store/", *rooms, *modules} <= named, sorted({"store/", *rooms, *modules} - named)
    tops = (ROOT, ROOT / "store", inside)
    assert not [name for name in named if not any((top / name).exists() for top in tops)]
