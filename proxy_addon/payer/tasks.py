"""Work in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def background(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start `work` at the loop's next turn, never within this call.

    mitmproxy 12 has `create_task` begin at once (asyncio's eager factory): work that has nothing to wait for is
    then over before its caller has noted that it runs, and the caller waits for its end for ever. And requests
    that come in the same turn are to be served together.
    """
    return asyncio.Task(work, name=name)
