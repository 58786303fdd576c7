"""What a challenge asks for, in one form for every payment method."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Terms:
    """The price of one unit and the channel that can pay it. Amounts in base units of `token`."""

    family: str  # "tempo-session"
    version: str  # "v1" | "v2"
    chain: str  # CAIP-2
    escrow: str
    token: str
    payee: str
    discriminator: str  # part of the channel's identity beside the above: tempo v2's operator
    price: int
    amount_limit: int  # the largest cumulative amount the voucher's integer type can hold
    min_delta: int = 1
    suggested_deposit: int | None = None
    unit_type: str | None = None
    fee_payer: bool = False  # the server pays the network fee of the opening
    channel_hint: str | None = None  # a channel id the server proposes; a claim, not a proof
