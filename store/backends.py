"""From the config's word for a store to the open store."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Final, cast

from store.contract import Backend, StoreError, StoreUnavailable

_WAY_OUT: Final = "expected 'lmdb', 'memory' or 'package.module:Class'"
_NEEDED: Final = ("transact", "view", "owner_id", "alive", "close")


async def open_backend(spec: str, directory: Path) -> Backend:
    """The store that `spec` names, opened in `directory`.

    ``"package.module:Class"`` is imported and called with the directory; what it returns may be awaitable.
    Raises `StoreUnavailable` (or what else the store's own opening says as a `StoreError`).
    """
    match spec:
        case "lmdb":
            from store.lmdb_store import LmdbBackend  # only who uses it needs lmdb

            return await LmdbBackend.open(directory)
        case "memory":
            from store.memory_store import MemoryBackend

            return MemoryBackend()
        case _:
            return await _third_party(spec, directory)


async def _third_party(spec: str, directory: Path) -> Backend:
    module_name, colon, class_name = spec.partition(":")
    names = (*module_name.split("."), *class_name.split("."))
    if not colon or not all(name.isidentifier() for name in names):
        raise StoreUnavailable(f"store backend {spec[:80]!r}: {_WAY_OUT}")
    try:
        found: object = importlib.import_module(module_name)
    except Exception as error:  # whatever a foreign module raises while it is loaded
        raise StoreUnavailable(
            f"store backend {spec!r}: importing {module_name} failed ({type(error).__name__}: {error});"
            " is it installed in the Python that runs bursar?"
        ) from error
    try:
        for name in class_name.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise StoreUnavailable(
            f"store backend {spec!r}: {module_name} has no {class_name}; {_WAY_OUT}"
        ) from error
    if not callable(found):
        raise StoreUnavailable(f"store backend {spec!r}: {class_name} cannot be called; {_WAY_OUT}")
    try:
        backend = found(directory)
        if inspect.isawaitable(backend):
            backend = await backend
    except StoreError:
        raise
    except Exception as error:
        raise StoreUnavailable(
            f"store backend {spec!r} could not be opened in {directory}: {type(error).__name__}: {error}"
        ) from error
    missing = [name for name in _NEEDED if not hasattr(backend, name)]
    if missing:
        raise StoreUnavailable(
            f"store backend {spec!r} has no {', '.join(missing)}; what a store needs is in store/contract.py"
        )
    return cast(Backend, backend)
