"""Every reason that the code can give is explained; and nothing is explained that it cannot give."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from proxy_addon.cli.main import bursar
from proxy_addon.reasons import REASONS, page

ROOT = Path(__file__).resolve().parents[2]
RAISED = {"LocalRefusal", "Refusal", "ChannelUnusable", "OpeningLimited", "kind", "__init__"}
WORD = re.compile(r"[a-z]+(-[a-z]+)*\Z")


def said() -> set[str]:
    """The first argument of whatever refuses; and what the gate itself says."""
    words = set()
    for path in (ROOT / "proxy_addon").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        words |= {
            node.value.value  # REASON: Final = "…"
            for node in tree.body
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "REASON"
            and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "reason":
                value = node.value
                either = (value.body, value.orelse) if isinstance(value, ast.IfExp) else (value,)
                words |= {one.value for one in either if isinstance(one, ast.Constant)}
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            first = node.args[0]
            if name in RAISED and isinstance(first, ast.Constant) and isinstance(first.value, str):
                words.add(first.value)
    return {word for word in words if isinstance(word, str) and WORD.match(word)}


def test_what_is_said_is_found() -> None:
    assert {"over-max-price", "limit-reached", "fenced", "destination-not-allowed", "unattributed"} <= said()


def test_each_is_explained() -> None:
    assert said() - set(REASONS) == set()


def test_nothing_is_explained_that_nobody_says() -> None:
    text = "\n".join(
        path.read_text() for path in (ROOT / "proxy_addon").rglob("*.py") if path.name != "reasons.py"
    )
    assert {word for word in REASONS if f'"{word}"' not in text} == set()


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "reasons.md").read_text() == page()


@pytest.mark.parametrize("word", REASONS)
def test_explained_on_the_command_line(word: str) -> None:
    done = CliRunner().invoke(bursar, ["explain", word])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{word}\n")
    assert "→ " in done.stdout


def test_an_unknown_word() -> None:
    done = CliRunner().invoke(bursar, ["explain", "over-max-prize"])
    assert done.exit_code == 2
    assert "did you mean over-max-price" in done.stderr
