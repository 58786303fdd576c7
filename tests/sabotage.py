"""Lets any one function of ours fail, with an exception that holds all that the function had in its hands.

It fails after it has done its work, in what a traceback takes for a file of ours.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

import proxy_addon

SECRET: Final = re.compile(r"[0-9a-f]{130,}|Payment (eyJ[\w-]{100,})")
"""What is nobody else's business: signatures (65 bytes in hex), whole credentials, signed transactions. Addresses,
channel ids, digests and hashes are shorter, and public; so is a challenge."""

KEPT: Final = 200_000  # characters of one exception
LOOKS: Final = 4  # calls of a function that are looked at
LOOKED_INTO: Final = (
    "proxy_addon",
    "store",
    "mitmproxy.http",
    "mitmproxy.coretypes",
    "mitmproxy.proxy.layers",
)

_WRAPPERS: Final = """
def plain(watch, function):
    def wrapper(*args, **options):
        result = function(*args, **options)
        watch((args, options, result))
        return result
    return wrapper

def awaited(watch, function):
    async def wrapper(*args, **options):
        result = await function(*args, **options)
        watch((args, options, result))
        return result
    return wrapper

def generator(watch, function):
    def wrapper(*args, **options):
        result = yield from function(*args, **options)
        watch((args, options, result))
        return result
    return wrapper
"""
_made: Final[dict[str, Any]] = {}
exec(compile(_WRAPPERS, str(Path(proxy_addon.__file__).parent / "sabotaged.py"), "exec"), _made)


def secrets_of(text: str) -> set[str]:
    return {found[1] or found[0] for found in SECRET.finditer(text)}


def contents(value: object, depth: int = 9, seen: set[int] | None = None) -> Iterator[str]:
    """Every text in it, and bytes as text and in hex, as far down as it goes."""
    seen = set() if seen is None else seen
    if id(value) in seen or depth == 0:
        return
    seen.add(id(value))
    match value:
        case str():
            yield value
        case bytes():
            text = value.decode("latin-1")
            yield text if text.isascii() else value.hex()
        case Mapping():
            for pair in list(value.items()):
                yield from contents(pair, depth, seen)
        case list() | tuple() | set() | frozenset():
            for one in value:
                yield from contents(one, depth - 1, seen)
        case FunctionType() | ModuleType() | type():
            return
        case _ if type(value).__module__.startswith(LOOKED_INTO):
            names = [one.name for one in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
            names += [name for name in getattr(value, "__dict__", {}) if name not in names]
            for name in names:
                yield from contents(getattr(value, name, None), depth - 1, seen)


class Sabotage:
    """`holders` are the functions that have had a secret in their hands. The one that is `armed` fails next."""

    def __init__(self, rooms: tuple[str, ...], replace: Callable[[Any, str, Any], None] = setattr) -> None:
        """In the modules whose names below ``proxy_addon.`` begin like this. `replace` may be undone later."""
        self.armed = ""
        self.holders: list[str] = []
        self.fired: dict[str, str] = {}  # what each exception held
        self.on_change: Callable[[], None] = lambda: None
        self._replace = replace
        self._looks: dict[str, int] = {}
        for info in pkgutil.walk_packages(proxy_addon.__path__, "proxy_addon."):
            if info.name.removeprefix("proxy_addon.").startswith(rooms):
                self._module(importlib.import_module(info.name))

    def _watch(self, name: str, everything: object) -> None:
        self._looks[name] = self._looks.get(name, 0) + 1
        if self._looks[name] <= LOOKS and any(map(SECRET.search, contents(everything))):
            self._looks[name] = LOOKS
            self.holders.append(name)
            self.on_change()
        if self.armed == name:
            self.armed = ""
            text = "\n".join(contents(everything))[:KEPT]
            self.fired[name] = text
            self.on_change()
            raise RuntimeError(text)

    def _wrapped(self, name: str, function: Any) -> Any:
        if inspect.iscoroutinefunction(function):
            kind = "awaited"
        else:
            kind = "generator" if inspect.isgeneratorfunction(function) else "plain"
        wrapper = _made[kind](functools.partial(self._watch, name), function)
        return functools.wraps(function)(wrapper)

    def _module(self, module: ModuleType) -> None:
        short = module.__name__.removeprefix("proxy_addon.")
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__ or name.startswith("__"):
                continue
            if isinstance(value, FunctionType):
                self._everywhere(value, self._wrapped(f"{short}:{name}", value))
            elif isinstance(value, type) and not getattr(value, "_is_protocol", False):
                self._class(f"{short}:{name}", value)

    def _class(self, prefix: str, cls: type) -> None:
        for name, value in list(vars(cls).items()):
            function = getattr(value, "__func__", value)
            if name.startswith("__") or not isinstance(function, FunctionType):
                continue
            wrapped = self._wrapped(f"{prefix}.{name}", function)
            if isinstance(value, (staticmethod, classmethod)):
                wrapped = type(value)(wrapped)
            self._replace(cls, name, wrapped)

    def _everywhere(self, old: object, new: object) -> None:
        """Also where it was imported by name."""
        for module in [one for key, one in sys.modules.items() if key.startswith("proxy_addon.")]:
            for name, value in list(vars(module).items()):
                if value is old:
                    self._replace(module, name, new)
