"""An addon without a hook: what "plain" has where the others have ours."""

from __future__ import annotations


class Empty:
    pass


addons = [Empty()]
