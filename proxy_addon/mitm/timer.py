"""A wake-up of the replay's own. After an upgrade the stream's child may have others, which are not ours to take."""

from __future__ import annotations

from mitmproxy.proxy.commands import RequestWakeup


class Timer(RequestWakeup):
    """Known by its class, wherever it comes back."""
