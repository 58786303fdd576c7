"""What is wrong with a config, in words: the key with its line, what was expected, and the way out. Never a value that
may be a secret: pydantic's own messages repeat none, and our types (`config_types`) only those of harmless keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final

from proxy_addon.config_tables import (
    Breaker,
    Chain,
    Client,
    Egress,
    Host,
    KeySource,
    Limits,
    Policy,
    Proxy,
    Store,
    Table,
    TokenEntry,
    Wallet,
    Watchdog,
)

Location = tuple[int | str, ...]

_TABLES: Final[Mapping[str, type[Table]]] = MappingProxyType(
    {
        "wallet": Wallet,
        "wallet.voucher_key": KeySource,
        "store": Store,
        "proxy": Proxy,
        "egress": Egress,
        "policy": Policy,
        "policy.hosts": Host,
        "policy.clients": Client,
        "breaker": Breaker,
        "limits": Limits,
        "watchdog": Watchdog,
        "chains": Chain,
        "chains.tokens": TokenEntry,
    }
)
_LISTS: Final = frozenset({"tuple_type", "list_type"})


def told(errors: Iterable[Mapping[str, Any]], top: Iterable[str], lines: Mapping[str, int]) -> list[str]:
    """One line for each of pydantic's errors; `top` are the keys of the whole, `lines` says where each key is."""
    return [_told(error, tuple(top), lines) for error in errors]


def _told(error: Mapping[str, Any], top: tuple[str, ...], lines: Mapping[str, int]) -> str:
    location, kind = error["loc"], error["type"]
    message = error["msg"].removeprefix("Value error, ")
    if not location:  # about several keys together: the message begins with the one that is written
        about, _, rest = message.partition(" is ")
        line = lines.get(about.partition(" ")[0])
        return f"config: {message}" if line is None else f"{about} (line {line}) is {rest}"
    if kind == "extra_forbidden":
        message += _instead(location, top)
    elif kind in _LISTS:
        tables = isinstance(error["input"], dict)  # written [policy.hosts]
        message = f"expected [[{key_of(location)}]]" if tables else 'expected a list, such as ["…"]'
    return f"{_with_line(key_of(location), lines)}: {message}"


def _instead(location: Location, top: tuple[str, ...]) -> str:
    """For a key that there is not: one that is spelled alike, or the tables that have one of this name."""
    *parents, wrong = (part for part in location if isinstance(part, str))
    if parents[:1] == ["chains"]:
        del parents[1:2]  # the chain's own name
    here = ".".join(parents)
    known = tuple(_TABLES[here].model_fields) if here in _TABLES else top if not here else ()
    if alike := get_close_matches(wrong, known, 1):
        return f"; did you mean {alike[0]}?"
    places = [name for name, table in _TABLES.items() if wrong in table.model_fields]
    return f"; it belongs in [{'] or ['.join(places)}]" if places else ""


def _with_line(key: str, lines: Mapping[str, int]) -> str:
    return f"{key} (line {lines[key]})" if key in lines else key


def key_of(location: Location) -> str:
    """``policy.hosts[0].max_price``, for a place in the config."""
    text = ""
    for part in location:
        if part == "[key]":  # pydantic's word for a key of a table that is wrong itself
            continue
        if isinstance(part, str):
            part = (part if part.isprintable() else ascii(part))[:80]
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "config"
