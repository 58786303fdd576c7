"""Base units and their human form.

Every amount in this project is an ``int`` in the token's base units (a TIP-20 token has 6 decimals, so
one dollar is 1_000_000). Decimal strings exist only at the edge: in the config, on the wire, in what
people read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

UINT96_MAX: Final = 2**96 - 1
UINT128_MAX: Final = 2**128 - 1

_WIRE: Final = re.compile(r"(?:0|[1-9][0-9]{0,38})\Z")  # 39 digits hold any uint128
_HUMAN: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?\Z")


@dataclass(frozen=True, slots=True)
class Token:
    """How to show a token: its symbol and how many decimals one unit has."""

    address: str
    symbol: str
    decimals: int

    def show(self, amount: int) -> str:
        """``12340`` → ``"0.01234 USDC"``."""
        return f"{format_units(amount, self.decimals)} {self.symbol}"


def parse_wire(value: object, what: str, *, limit: int = UINT128_MAX) -> int:
    """A wire amount: a decimal string of base units without sign, exponent or leading zeros.

    Raises ``ValueError`` naming `what` for anything else, and for more than `limit` base units.
    """
    if not isinstance(value, str) or not _WIRE.match(value):
        # Its kind alone, where showing it would walk a value of any depth.
        shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else repr(value)[:60]
        raise ValueError(f"{what} is {shown}: expected base units as a plain decimal string, such as '10000'")
    amount = int(value)
    if amount > limit:
        raise ValueError(f"{what} is {value}: over {limit}, the most this field can hold")
    return amount


def parse_units(value: str, decimals: int, what: str = "amount") -> int:
    """``"0.10"`` with 6 decimals → ``100000`` base units. Raises ``ValueError`` naming `what`."""
    text = value.strip().replace("_", "")
    if not _HUMAN.match(text):
        raise ValueError(
            f"{what} is {value[:60]!r}: expected an amount such as '0.10' (no sign, no exponent)"
        )
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    if len(fraction) > decimals:
        raise ValueError(f"{what} is {value[:60]!r}: this token has only {decimals} decimals")
    digits = (whole + fraction.ljust(decimals, "0")).lstrip("0")
    amount = int(digits or "0") if len(digits) < 40 else UINT128_MAX + 1  # digits, as Decimal rounds at 28
    if amount > UINT128_MAX:
        raise ValueError(f"{what} is {value[:60]!r}: more than a channel can hold")
    return amount


@lru_cache(maxsize=256)  # a price is shown with each payment
def format_units(amount: int, decimals: int) -> str:
    """Exact decimal form of `amount` base units, without trailing zeros (at least two decimals)."""
    sign, digits = ("-", -amount) if amount < 0 else ("", amount)
    whole, fraction = divmod(digits, 10**decimals)
    if decimals == 0:
        return f"{sign}{whole}"
    text = f"{fraction:0{decimals}d}".rstrip("0").ljust(min(2, decimals), "0")
    return f"{sign}{whole}.{text}"
