"""A mitmproxy script that breaks what a file names: ``PaymentGate.consider``, from when on it is called.

Loaded after the addon, so that what it breaks is what runs. ``BREAK_FILE`` names the file; while it is empty
everything works.
"""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path
from typing import Any

from proxy_addon.mitm.replay import Replay
from proxy_addon.payer.gate import PaymentGate
from proxy_addon.payer.till import Till

SWITCH = Path(os.environ["BREAK_FILE"])
PLACES: dict[type, tuple[str, ...]] = {
    PaymentGate: (
        *("consider", "wants", "prepare_now", "prepare", "received", "answered", "finished", "pay"),
        *("stranger", "release_idle"),
    ),
    Replay: ("bursar_prepare", "bursar_answered", "client_disconnected", "next_layer"),
    Till: ("take", "take_now", "grant", "commit", "end"),
}


def breaking(owner: type, name: str) -> None:
    original = getattr(owner, name)
    place = f"{owner.__name__}.{name}"

    def check() -> None:
        if SWITCH.read_text() == place:
            raise RuntimeError(f"{place} is broken")

    if inspect.iscoroutinefunction(original):

        @functools.wraps(original)
        async def later(*args: Any, **kwargs: Any) -> Any:
            check()
            return await original(*args, **kwargs)

        setattr(owner, name, later)
        return

    @functools.wraps(original)
    def now(*args: Any, **kwargs: Any) -> Any:
        check()
        return original(*args, **kwargs)

    setattr(owner, name, now)


for one, names in PLACES.items():
    for each in names:
        breaking(one, each)
