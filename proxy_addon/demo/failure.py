"""How a demo ends that cannot go on."""

from __future__ import annotations


class DemoFailed(Exception):
    """The message says what went wrong and, where there is one, the way out."""
