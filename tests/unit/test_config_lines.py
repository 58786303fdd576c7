from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from proxy_addon.config_lines import Locator, lines_of

ROOT = Path(__file__).resolve().parents[2]

TEXT = """\
mode = "pay"
[policy]
max_per_day = "5.00"  # [not.a.table]
[[policy.hosts]]
host = "a.example.com"
payees = [
  "0x1",
  "max_price = 9",
]
max_price = "0.10"
[[policy.hosts]]
"host" = "b = c"
max_price = "0.20"
[policy.hosts.inner]
x = 1
[chains."eip155:4217"]
rpc = ["http://a"]
[[chains."eip155:4217".tokens]]
symbol = "USD"
"""


def test_tables_and_keys() -> None:
    found = lines_of(TEXT)
    assert found["mode"] == 1
    assert found["policy.max_per_day"] == 3
    assert (found["policy.hosts[0]"], found["policy.hosts[0].max_price"]) == (4, 10)
    assert (found["policy.hosts[1]"], found["policy.hosts[1].host"]) == (11, 12)
    assert found["policy.hosts[1].inner.x"] == 15
    assert found["chains.eip155:4217.tokens[0].symbol"] == 19
    assert "not.a.table" not in found


def paths(value: Any, path: str = "") -> set[str]:
    """Every key of parsed TOML, as a locator names it."""
    match value:
        case dict():
            inner = {f"{path}.{key}" if path else key: one for key, one in value.items()}
            return set(inner) | {name for key, one in inner.items() for name in paths(one, key)}
        case [dict(), *_]:
            return {name for index, one in enumerate(value) for name in paths(one, f"{path}[{index}]")}
        case _:
            return set()


@pytest.mark.parametrize("text", [TEXT, (ROOT / "config.example.toml").read_text()], ids=["ours", "example"])
def test_all_that_is_in_a_file_is_found_where_it_is(text: str) -> None:
    found = lines_of(text)
    lines = text.splitlines()
    leaves = {name for name in paths(tomllib.loads(text)) if name in found}
    assert leaves >= {
        name for name in paths(tomllib.loads(text)) if not name.startswith("chains") and "." in name
    } - {"policy.hosts", "policy.clients", "policy.hosts[1].inner"}
    for name in leaves:
        assert name.rpartition(".")[2].partition("[")[0].strip('"') in lines[found[name] - 1]


@pytest.mark.parametrize(
    ("message", "places"),
    [
        ("over max_price 0.10 (policy.hosts[0]); raise it", "c.toml:4"),
        ("0.2 of policy.hosts[1].max_price = 0.2 are used", "c.toml:13"),
        ("policy.hosts[0].max_deposit = 1", "c.toml:4"),
        ("policy.max_lifetime = 1, policy.max_lifetime", "c.toml:2"),
        ("policy.hosts[0] and policy.hosts[1]", "c.toml:4, c.toml:11"),
    ],
)
def test_a_message_says_where(message: str, places: str) -> None:
    assert Locator(Path("/home/c.toml"), lines_of(TEXT))(message) == f"{message} [{places}]"


@pytest.mark.parametrize(
    "message", ["policy.hosts[7].max_price", "nothing to see", "is in no [[policy.hosts]] table"]
)
def test_a_message_that_names_no_line_stays(message: str) -> None:
    assert Locator(Path("/home/c.toml"), lines_of(TEXT))(message) == message
