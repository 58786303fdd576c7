"""Imports point one way, the pure rooms are pure, keys are in one hand, no room is crowded.

The rules are data; `violations` reads a tree of source files without running it.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
CROWDED, TOO_LONG = 400, 500
LONGEST = {"proxy_addon.addon": 200}  # wiring only

PURE_STORE = ("store.amounts", "store.records", "store.lifecycle", "store.account", "store.budgets")
CORE = "proxy_addon.core"

ROOMS: Final[dict[str, tuple[str, ...]]] = {
    # The longest name that fits a module is its room; what it may import of this project, besides its room.
    "store": (),
    **dict.fromkeys(PURE_STORE, PURE_STORE),
    CORE: PURE_STORE,
    "proxy_addon.methods": (CORE, *PURE_STORE),
    "proxy_addon.mitm": (CORE,),
    "proxy_addon.config": (
        CORE,
        "proxy_addon.config_errors",
        "proxy_addon.config_lines",
        "proxy_addon.config_tables",
        "proxy_addon.config_types",
        "store.amounts",
    ),
    "proxy_addon.config_tables": ("proxy_addon.config_types",),
    "proxy_addon.config_errors": ("proxy_addon.config_tables",),
    "proxy_addon.config_lines": (),
    "proxy_addon.reasons": (),
    "proxy_addon.config_types": (CORE, "store.amounts"),
    "proxy_addon.audit": ("store",),
    "proxy_addon.exchange": (),
    "proxy_addon.outbound": (CORE, "proxy_addon.egress", "proxy_addon.exchange"),
    "proxy_addon.egress": (CORE,),
    "proxy_addon.hardening": (),
    "proxy_addon.rpc_answers": (CORE, "proxy_addon.methods"),
    "proxy_addon.agreement": (CORE,),
    "proxy_addon.chain": (
        CORE,
        "proxy_addon.agreement",
        "proxy_addon.rpc_answers",
        "proxy_addon.methods",
        "proxy_addon.outbound",
        "proxy_addon.egress",
    ),
    "proxy_addon.signer": (CORE, "proxy_addon.methods", *PURE_STORE),
    "proxy_addon.private_file": (),
    "proxy_addon.secret_sources": (CORE, "proxy_addon.private_file"),
    "proxy_addon.keystore": (CORE, "proxy_addon.private_file", "proxy_addon.signer"),
    "proxy_addon.keys": (
        "proxy_addon.hardening",
        "proxy_addon.config",
        "proxy_addon.config_tables",
        "proxy_addon.keystore",
        "proxy_addon.secret_sources",
        "proxy_addon.signer",
    ),
    "proxy_addon.payer": (
        CORE,
        "store",
        "proxy_addon.audit",
        "proxy_addon.chain",
        "proxy_addon.methods",
        "proxy_addon.mitm.gate",  # the protocol that it fulfils; nothing else of the replay
        "proxy_addon.outbound",
        "proxy_addon.egress",
        "proxy_addon.signer",
    ),
    "proxy_addon.watchdog": (
        CORE,
        "store",
        "proxy_addon.audit",
        "proxy_addon.chain",
        "proxy_addon.methods",
        "proxy_addon.payer",
    ),
    # From here on down: what wires the rooms together. Nobody below imports anything of these.
    "proxy_addon.runtime": (
        CORE,
        "store",
        "proxy_addon.audit",
        "proxy_addon.chain",
        "proxy_addon.config",
        "proxy_addon.config_tables",
        "proxy_addon.egress",
        "proxy_addon.keys",
        "proxy_addon.methods",
        "proxy_addon.outbound",
        "proxy_addon.payer",
        "proxy_addon.signer",
        "proxy_addon.watchdog",
    ),
    "proxy_addon.addon": (
        CORE,
        "proxy_addon.config",
        "proxy_addon.config_tables",
        "proxy_addon.mitm",
        "proxy_addon.payer.gate",
        "proxy_addon.runtime",
        "store.contract",
    ),
    "proxy_addon.cli": ("proxy_addon", "store"),
    "proxy_addon.demo": (
        CORE,
        "proxy_addon.methods",
        "proxy_addon.keystore",
        # The command beside it, for how it talks to people and looks after children.
        "proxy_addon.cli.failure",
        "proxy_addon.cli.supervise",
        *PURE_STORE,
    ),
}

PURE: Final = (CORE, *PURE_STORE)
PURE_LIBRARIES: Final = (
    *("__future__", "base64", "binascii", "collections", "dataclasses", "datetime", "decimal", "enum"),
    *("functools", "hashlib", "hmac", "ipaddress", "itertools", "json", "math", "operator", "re", "types"),
    *("typing", "urllib.parse", "orjson", "pydantic"),
)
"""What the pure rooms may import besides: nothing that reads a clock, a socket, a file or a dice."""

LIBRARIES: Final[dict[str, tuple[str, ...]]] = {
    # Who alone may import it: modules, or rooms.
    "lmdb": ("store.lmdb_store", "store.lmdb_env", "store.lmdb_pages"),
    "mitmproxy": ("proxy_addon.mitm", "proxy_addon.addon", "proxy_addon.cli", "proxy_addon.payer"),
    "eth_account": ("proxy_addon.signer", "proxy_addon.keystore", "proxy_addon.cli"),
    "eth_keys": ("proxy_addon.signer", "proxy_addon.keystore", "proxy_addon.cli"),
    "coincurve": ("proxy_addon.signer", "proxy_addon.methods.tempo_tx", "proxy_addon.demo"),
    "httpx": ("proxy_addon.chain", "proxy_addon.outbound", "proxy_addon.egress"),
    "click": ("proxy_addon.cli",),
}
PRIVATE_KEYS: Final = (
    "proxy_addon.signer",
    "proxy_addon.demo",
)  # the demo's payee signs with a key of its own
CLOCKS: Final = frozenset({"now", "utcnow", "today"})


class Module(NamedTuple):
    name: str
    tree: ast.Module
    lines: int


def modules(root: Path) -> dict[str, Module]:
    found = {}
    for top in ("store", "proxy_addon"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = path.read_text(encoding="utf-8")
            found[name] = Module(name, ast.parse(text, str(path)), len(text.splitlines()))
    return found


def within(name: str, rooms: str | tuple[str, ...]) -> bool:
    rooms = (rooms,) if isinstance(rooms, str) else rooms
    return any(name == room or name.startswith(room + ".") for room in rooms)


def imports(module: Module, known: dict[str, Module]) -> Iterator[str]:
    """Full names of all that is imported, wherever in the file; a submodule rather than its package."""
    for node in ast.walk(module.tree):
        match node:
            case ast.Import(names=names):
                yield from (one.name for one in names)
            case ast.ImportFrom(module=base, names=names, level=0) if base is not None:
                for one in names:
                    full = f"{base}.{one.name}"
                    yield full if full in known else base
            case ast.ImportFrom():
                yield "a relative import"


def room_of(name: str) -> str | None:
    fitting = [room for room in ROOMS if within(name, room)]
    return max(fitting, key=len, default=None)


def violations(root: Path) -> list[str]:
    known = modules(root)
    return sorted({f"{name}: {what}" for name, one in known.items() for what in _wrong_with(one, known)})


def _wrong_with(module: Module, known: dict[str, Module]) -> Iterator[str]:
    name = module.name
    if name == "proxy_addon":
        if module.tree.body:
            yield "a package's __init__ is empty"
        return
    room = room_of(name)
    if room is None:
        yield "belongs to no room; give it one in tests/unit/test_architecture.py"
        return
    for imported in imports(module, known):
        top = imported.partition(".")[0]
        if imported == "a relative import":
            yield imported
        elif top in ("store", "proxy_addon"):
            if not within(imported, (room, *ROOMS[room])) or (room in PURE_STORE and imported == "store"):
                yield f"imports {imported}"
        elif within(name, PURE) and not within(imported, PURE_LIBRARIES):
            yield f"is pure, and imports {imported}"
        elif top in LIBRARIES and not within(name, LIBRARIES[top]):
            yield f"imports {imported}; only {', '.join(LIBRARIES[top])} may"
    yield from _wrong_calls(module)
    limit = LONGEST.get(name, TOO_LONG)
    if module.lines > limit:
        yield f"has {module.lines} lines, over {limit}: split it by subject"


def _wrong_calls(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        match node:
            case ast.ImportFrom(module="coincurve", names=names) if not within(module.name, PRIVATE_KEYS):
                if any(one.name in ("PrivateKey", "*") for one in names):
                    yield "touches private keys"
            case ast.Attribute(attr="PrivateKey") if not within(module.name, PRIVATE_KEYS):
                yield "touches private keys"
            case ast.Attribute(attr=attr, value=ast.Name(id="datetime" | "date")) if within(
                module.name, PURE
            ):
                if attr in CLOCKS:
                    yield f"is pure, and calls {attr}"
            case ast.Call(func=ast.Name(id="open" | "input" | "print" | "__import__" as called)):
                if within(module.name, PURE):
                    yield f"is pure, and calls {called}"


# -- this project


def test_the_house_is_as_planned() -> None:
    assert violations(ROOT) == []


def test_rooms_that_get_crowded_are_named() -> None:
    crowded = {one.name: one.lines for one in modules(ROOT).values() if one.lines > CROWDED}
    for name, lines in crowded.items():
        warnings.warn(f"{name} has {lines} lines: time to split it by subject", stacklevel=1)
    assert len(crowded) <= 5, crowded


def test_all_of_the_source_is_looked_at() -> None:
    found = modules(ROOT)
    for name in (
        "store.account",
        "proxy_addon.core.policy",
        "proxy_addon.mitm.layer",
        "proxy_addon.payer.till",
    ):
        assert found[name].lines > 20


# -- a house that is not


def house(root: Path, **files: str) -> list[str]:
    """Violations of a tree; `files` by module name with double underscores for dots."""
    for name, text in {"store": "", "proxy_addon": "", **files}.items():
        is_package = name in ("store", "proxy_addon")
        path = root / (name.replace("__", "/") + ("/__init__.py" if is_package else ".py"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return violations(root)


@pytest.mark.parametrize(
    ("where", "text", "says"),
    [
        ("store__journal", "from proxy_addon.core.errors import X", "imports proxy_addon.core.errors"),
        ("store__journal", "import proxy_addon", "imports proxy_addon"),
        ("store__channels", "import lmdb", "imports lmdb; only store.lmdb_store"),
        ("store__channels", "def f():\n    from lmdb import open", "imports lmdb; only"),
        ("store__account", "from store.channels import X", "imports store.channels"),
        ("store__account", "import store", "imports store"),
        ("store__account", "import os", "is pure, and imports os"),
        ("store__channels", "from . import account", "a relative import"),
        ("proxy_addon__core__policy", "import asyncio", "is pure, and imports asyncio"),
        ("proxy_addon__core__policy", "from time import time", "is pure, and imports time"),
        ("proxy_addon__core__policy", "import random", "is pure, and imports random"),
        ("proxy_addon__core__policy", "import secrets", "is pure, and imports secrets"),
        ("proxy_addon__core__policy", "import os.path", "is pure, and imports os.path"),
        ("proxy_addon__core__policy", "import urllib.request", "is pure, and imports urllib.request"),
        ("proxy_addon__core__policy", "if 1:\n    import socket", "is pure, and imports socket"),
        ("proxy_addon__core__policy", "import mitmproxy.http", "is pure, and imports mitmproxy.http"),
        ("proxy_addon__core__policy", "import eth_account", "is pure, and imports eth_account"),
        ("proxy_addon__core__policy", "from store.channels import X", "imports store.channels"),
        ("proxy_addon__core__policy", "from store import journal", "imports store"),
        ("proxy_addon__core__policy", "from proxy_addon.payer import till", "imports proxy_addon.payer"),
        ("proxy_addon__core__x", "from datetime import datetime\ndatetime.now()", "is pure, and calls now"),
        ("proxy_addon__core__x", "open('x')", "is pure, and calls open"),
        ("proxy_addon__methods__x", "from store.channels import X", "imports store.channels"),
        ("proxy_addon__methods__x", "import httpx", "imports httpx; only"),
        ("proxy_addon__methods__x", "from coincurve import PrivateKey", "imports coincurve; only"),
        ("proxy_addon__methods__tempo_tx", "from coincurve import PrivateKey", "touches private keys"),
        (
            "proxy_addon__methods__tempo_tx",
            "import coincurve\ncoincurve.PrivateKey()",
            "touches private keys",
        ),
        ("proxy_addon__methods__tempo_tx", "from eth_account import Account", "imports eth_account; only"),
        ("proxy_addon__mitm__layer", "from proxy_addon.payer import till", "imports proxy_addon.payer"),
        ("proxy_addon__mitm__layer", "from store.records import X", "imports store.records"),
        (
            "proxy_addon__payer__till",
            "from proxy_addon.mitm.layer import X",
            "imports proxy_addon.mitm.layer",
        ),
        ("proxy_addon__payer__till", "from proxy_addon import addon", "imports proxy_addon"),
        ("proxy_addon__payer__till", "from proxy_addon.cli.main import x", "imports proxy_addon.cli.main"),
        ("proxy_addon__payer__till", "from proxy_addon.keystore import x", "imports proxy_addon.keystore"),
        ("proxy_addon__payer__till", "import eth_keys", "imports eth_keys; only"),
        ("proxy_addon__config", "import proxy_addon.runtime", "imports proxy_addon.runtime"),
        ("proxy_addon__runtime", "import proxy_addon.addon", "imports proxy_addon.addon"),
        ("proxy_addon__runtime", "import proxy_addon.cli.main", "imports proxy_addon.cli.main"),
        ("proxy_addon__demo__run", "import proxy_addon.runtime", "imports proxy_addon.runtime"),
        ("proxy_addon__pantry", "", "belongs to no room"),
        ("proxy_addon", "x = 1", "a package's __init__ is empty"),
        ("proxy_addon__chain", "\n" * 501, "has 501 lines, over 500"),
        ("proxy_addon__addon", "\n" * 201, "has 201 lines, over 200"),
    ],
)
def test_a_wall_that_is_broken_is_noticed(tmp_path: Path, where: str, text: str, says: str) -> None:
    found = house(tmp_path, **{where: text})
    assert found, "nothing was noticed"
    name = where.replace("__", ".")
    assert any(one.startswith(f"{name}: {says}") for one in found), found
    assert all(one.startswith(f"{name}: ") for one in found), found


def test_a_house_that_is_in_order(tmp_path: Path) -> None:
    files = {
        "store__lmdb_store": "import lmdb\nimport os\nfrom store import account",
        "store__account": "from __future__ import annotations\nfrom store.records import X\nimport dataclasses",
        "store__records": "from collections.abc import Mapping\nfrom store import lifecycle",
        "store__lifecycle": "from enum import StrEnum",
        "proxy_addon__core__policy": "from store import budgets, account\nfrom proxy_addon.core.terms import X",
        "proxy_addon__core__terms": "from urllib.parse import quote\nfrom datetime import datetime, UTC",
        "proxy_addon__payer__till": "from proxy_addon.mitm.gate import Gate\nimport asyncio\nimport store.channels",
        "proxy_addon__mitm__gate": "from mitmproxy import http",
        "proxy_addon__signer": "from coincurve import PrivateKey",
        "proxy_addon__methods__tempo_tx": "from coincurve import PublicKey",
        "proxy_addon__addon": "from proxy_addon.runtime import Runtime\nimport mitmproxy.http",
        "proxy_addon__runtime": "from proxy_addon import config, signer",
        "proxy_addon__keystore": "from eth_account import Account",
        "proxy_addon__config": "from proxy_addon.core.policy import X",
        "proxy_addon__cli__main": "import click\nfrom proxy_addon import addon",
        "store__budgets": "",
    }
    assert house(tmp_path, **files) == []
