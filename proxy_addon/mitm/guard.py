"""How a failure is told without telling a secret."""

from __future__ import annotations

import traceback

from proxy_addon.core.errors import BursarError


def describe(error: BaseException) -> str:
    """An exception for the log. Our own messages hold no secret by rule; of others, only type and place."""
    if isinstance(error, BursarError):
        return f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{place}"
