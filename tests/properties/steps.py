"""How many steps the stateful tests have taken: after each, the invariants were looked at."""

from __future__ import annotations

from collections import Counter

taken: Counter[str] = Counter()
"""By the name of the machine."""
