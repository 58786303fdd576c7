"""What the chain, the sellers, the store, the ledger and the clients say in the end, side by side. Pure.

Base units. Every channel is closed when these figures are taken: what is then still different is lost or made up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from store.lifecycle import ChannelStatus


@dataclass(frozen=True, kw_only=True)
class ChannelFigures:
    """One channel as each of them has it."""

    channel_id: str
    host: str
    status: ChannelStatus
    deposit: int
    authorised: int
    paid: int  # the store's
    open_amounts: int  # what the store still holds or has as uncertain
    captured: int | None  # the store's, from the chain
    refunded: int | None
    fees: int
    ledger_paid: int  # endings with a receipt, and the adjustments of the close
    ledger_captured: int
    voucher: int  # the highest that its seller saw
    spent: int | None  # by an honest seller's book; None: the seller is hostile, and never cashes
    cashed: int = 0  # what the seller had taken on chain before the close
    forced: bool = False  # closed on the chain, without the seller

    @property
    def due(self) -> int:
        """What the close must come to: what was signed ahead and cashed before it was spent does not come back.

        By force it is what was cashed: the seller had the chain's grace to take the rest, and did not.
        """
        return self.cashed if self.forced else max(self.spent or 0, self.cashed)


@dataclass(frozen=True, kw_only=True)
class Figures:
    channels: tuple[ChannelFigures, ...]
    payee_gain: int  # on chain, from the beginning to the end
    payer_loss: int
    escrow_gain: int
    chain_fees: int
    ledger_fees: int
    lifetime: int  # the store's counters
    returned: int
    host_day: dict[str, int]  # by host
    host_limits: dict[str, int]  # the hostile ones'
    sure: int  # what clients got and know the price of
    doubtful: int  # what they may have been charged beside: they left, or were cut off

    @property
    def honest(self) -> list[ChannelFigures]:
        return [one for one in self.channels if one.spent is not None]

    @property
    def captured(self) -> int:
        return sum(one.captured or 0 for one in self.channels)

    @property
    def due(self) -> int:
        return sum(one.due for one in self.channels)

    @property
    def cashed_ahead(self) -> int:
        """Of what is due, that for which nobody got anything."""
        return sum(max(0, one.due - (one.spent or 0)) for one in self.channels)

    @property
    def never_cashed(self) -> int:
        """What honest sellers sold on channels that they did not know any more, or not yet, and left to us."""
        return sum(max(0, (one.spent or 0) - one.due) for one in self.channels)


def differences(figures: Figures) -> list[str]:
    """Every pair of figures that should be equal, and is not. Empty: they agree to the base unit."""
    found = [what for one in figures.channels for what in _of_channel(one)]
    fees = sum(one.fees for one in figures.channels)
    authorised = sum(one.authorised for one in figures.channels if one.status is not ChannelStatus.FAILED)
    pairs = {
        "the payee's gain on chain, and what the store has as captured": (
            figures.payee_gain,
            figures.captured,
        ),
        "the payee's gain on chain, and what honest sellers spent or cashed ahead": (
            figures.payee_gain,
            figures.due,
        ),
        "the payer's loss on chain, and captured with fees": (
            figures.payer_loss,
            figures.captured + figures.chain_fees,
        ),
        "the escrow's gain, and nothing": (figures.escrow_gain, 0),
        "fees on chain, and in the store": (figures.chain_fees, fees),
        "fees on chain, and in the ledger": (figures.chain_fees, figures.ledger_fees),
        "lifetime counter, and what was captured": (figures.lifetime, figures.captured),
        "lifetime and returned counters, and all that was authorised": (
            figures.lifetime + figures.returned,
            authorised,
        ),
        "counters of hosts, and all that was authorised": (sum(figures.host_day.values()), authorised),
    }
    found += [f"{what}: {one:,} and {other:,}" for what, (one, other) in pairs.items() if one != other]
    for_clients = figures.captured - figures.cashed_ahead + figures.never_cashed
    if not figures.sure <= for_clients <= figures.sure + figures.doubtful:
        found.append(
            f"clients got {figures.sure:,}, and may have been charged {figures.doubtful:,} beside;"
            f" captured were {figures.captured:,}, {figures.cashed_ahead:,} of it ahead; {figures.never_cashed:,}"
            " were never cashed"
        )
    for host, limit in figures.host_limits.items():
        if figures.host_day.get(host, 0) > limit:
            found.append(f"{host}: {figures.host_day[host]:,} authorised, over its limit of {limit:,}")
    return found


def _of_channel(one: ChannelFigures) -> Iterator[str]:
    if one.status is ChannelStatus.FAILED:
        if one.voucher or one.deposit:
            yield f"{one.channel_id}: failed, and a deposit of {one.deposit:,} or a voucher of {one.voucher:,}"
        return
    name = f"{one.channel_id} of {one.host}"
    if one.status is not ChannelStatus.CLOSED:
        yield f"{name}: it is {one.status}, with a deposit of {one.deposit:,}"
        return
    if one.voucher > one.authorised:
        yield f"{name}: a voucher of {one.voucher:,}, {one.authorised:,} authorised"
    if one.open_amounts:
        yield f"{name}: {one.open_amounts:,} still held or uncertain after the close"
    captured = one.captured or 0
    told = {
        "the store's paid": one.paid,
        "the ledger's paid": one.ledger_paid,
        "the ledger's captured": one.ledger_captured,
        "the deposit less the refund": one.deposit - (one.refunded or 0),
        "what the seller spent or cashed ahead": one.due,
    }
    for what, amount in told.items():
        if amount != captured:
            yield f"{name}: {captured:,} captured, {what} is {amount:,}"


def table(figures: Figures) -> str:
    """The sums, one above the other."""
    channels = figures.channels
    rows = [
        ("channels", len(channels)),
        ("  of hostile sellers", len(channels) - len(figures.honest)),
        ("  whose opening failed", sum(one.status is ChannelStatus.FAILED for one in channels)),
        ("deposits made", sum(one.deposit for one in channels)),
        ("authorised", sum(one.authorised for one in channels if one.status is not ChannelStatus.FAILED)),
        ("clients: got for sure", figures.sure),
        ("clients: may have been charged beside", figures.doubtful),
        ("chain: the payee's gain", figures.payee_gain),
        ("honest sellers: spent", sum(one.spent or 0 for one in figures.honest)),
        ("honest sellers: cashed ahead", figures.cashed_ahead),
        ("honest sellers: closed by force", sum(one.forced for one in figures.honest)),
        ("  what they sold there, never cashed", figures.never_cashed),
        ("store: captured", figures.captured),
        ("store: paid", sum(one.paid for one in channels)),
        ("ledger: paid, with adjustments", sum(one.ledger_paid for one in channels)),
        ("counter: lifetime", figures.lifetime),
        ("chain: fees", figures.chain_fees),
        ("store: fees", sum(one.fees for one in channels)),
        ("ledger: fees", figures.ledger_fees),
        ("chain: the payer's loss", figures.payer_loss),
        ("chain: left in the escrow", figures.escrow_gain),
        ("hostile sellers: highest vouchers", sum(one.voucher for one in channels if one.spent is None)),
        ("hostile sellers: captured", sum(one.captured or 0 for one in channels if one.spent is None)),
    ]
    return "\n".join(f"{name:<40}{amount:>16,}" for name, amount in rows)
