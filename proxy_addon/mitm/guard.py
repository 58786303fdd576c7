"""How a failure is told without telling a secret.

Our own messages hold none, by rule. Those of others may hold whatever they were given, and what passes through
our code can be a credential. So of others' exceptions only the type and the places are told.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from proxy_addon.core.errors import BursarError

_HOUSE: Final = Path(__file__).resolve().parents[2]
MOST_TOLD: Final = 1_000
"""Characters of a record of mitmproxy's about a connection."""
_ROOMS: Final = (f"{_HOUSE / 'proxy_addon'}/", f"{_HOUSE / 'store'}/")


def describe(error: BaseException) -> str:
    """An exception in a line, for the log."""
    if isinstance(error, BursarError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{place}"


def guard_logs() -> None:
    """From here on no handler of this process writes what an exception says that has been through our code."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, _Untold) for one in handler.filters):
            handler.addFilter(_Untold())


class _Untold(logging.Filter):
    """Changes a record before it is written. mitmproxy's own (novels are cut) and a script's stay as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if error is None:
            # mitmproxy writes down all that a server sent which it did not expect.
            if record.name.startswith("mitmproxy.proxy") and len(str(record.msg)) > MOST_TOLD:
                record.msg = f"{record.getMessage()[:MOST_TOLD]}… (cut)"
                record.args = ()
            return True
        chain = list(_chain(error))
        if record.name == "bursar" or any(map(_through_the_house, chain)):
            text = record.getMessage()
            for one in chain:
                text = text if _ours(one) else _without(text, one)
            record.msg, record.args = "\n".join((text, *map(_told, chain))), ()
            record.exc_info = record.exc_text = None
        return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """It, and what led to it, the first cause first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    yield from reversed(seen)


def _without(text: str, error: BaseException) -> str:
    """`text` without what `error` says, as some who log an exception put it into their message."""
    for said in (repr(error), str(error), repr(str(error))[1:-1]):
        text = text.replace(said, type(error).__name__) if said else text
    return text


def _ours(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("proxy_addon", "store")


def _through_the_house(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename.startswith(_ROOMS) for frame, _ in frames)


def _told(error: BaseException) -> str:
    lines = [
        f"  {frame.filename}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__, limit=-50)
    ]
    said = f": {error}" if _ours(error) and str(error) else ""
    return "\n".join((*lines, f"  {type(error).__name__}{said}"))
