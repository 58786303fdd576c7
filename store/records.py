"""What is on record: scopes, channels, holds, counters. Frozen values, no behaviour beyond reading them.

All amounts are base units of the channel's token; all times are integer milliseconds since the Unix epoch
(UTC) unless a name says otherwise; addresses, hashes and ids are lower-case ``0x`` hex, normalised once by
whoever parsed them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from store.lifecycle import ChannelStatus


@dataclass(frozen=True, slots=True)
class PaymentScope:
    """Which channel may pay for a request: everything that must be equal for two requests to share one.

    `origin` (scheme, host, port) is part of it: a challenge that another host relays must not spend a
    channel that was opened for this one. `payer` and `voucher_signer` are part of it: two wallets on one
    store do not collide.
    """

    family: str  # "tempo-session"
    version: str  # "v1" | "v2"
    chain: str  # CAIP-2, "eip155:4217"
    escrow: str
    token: str
    payee: str
    payer: str
    voucher_signer: str
    discriminator: str  # tempo v2: the operator
    origin: str  # "https://api.example.com:443"

    @property
    def key(self) -> str:
        """The store's key for this scope; readable, and unique per scope."""
        return "|".join(
            (
                f"{self.family}/{self.version}",
                self.chain,
                self.escrow,
                self.token,
                self.payee,
                self.payer,
                self.voucher_signer,
                self.discriminator,
                self.origin,
            )
        )

    @property
    def short_key(self) -> str:
        """``payee:token:escrow:chainId``, the key of the mppx store: a look-up that may match several scopes."""
        return f"{self.payee}:{self.token}:{self.escrow}:{self.chain.partition(':')[2]}"

    @property
    def chain_id(self) -> int:
        return int(self.chain.partition(":")[2])

    @property
    def host(self) -> str:
        """Host and port as the budgets know them: the origin without its scheme."""
        return self.origin.partition("://")[2]


@dataclass(frozen=True, slots=True)
class Hold:
    """What one request in flight keeps from being used by another, from dispatch until its answer is known."""

    request_id: str
    amount: int
    voucher: int  # cumulative amount of the voucher that it carried
    sent_at: int
    expires_at: int  # of its challenge: from then on (plus a margin) it cannot become charged any more
    seq: int  # number of the dispatch when the channel was idle, else -1: tells whether it was alone
    fingerprint: str  # method, URL and body digest, hashed: recognises a client's own retry


@dataclass(frozen=True, slots=True)
class CounterMove:
    """One step of a budget counter: `amount` more (or less), and the `limit` it must not pass."""

    key: str
    amount: int
    limit: int | None = None
    rule: str = ""  # which line of the config set the limit, for the error


@dataclass(frozen=True, slots=True)
class PendingTransaction:
    """A transaction of ours that may be on its way; durable before its first byte leaves."""

    kind: Literal["open", "top_up"]
    raw: str  # the signed transaction, 0x76…; whoever has it can broadcast it until valid_before
    tx_hash: str
    valid_before: int  # Unix **seconds**, block time: a later block without it proves that it never lands
    deposit: int  # what it moves into the escrow
    fee_sponsored: bool = False
    counters: tuple[CounterMove, ...] = ()  # what was charged for it, given back if it fails


@dataclass(frozen=True, slots=True)
class JournalMark:
    """Up to which line of which journal a record has been folded."""

    journal: str
    line: int
    boot_id: str  # the machine's run in which it was written: a journal outlives kill -9, not a power cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """The account of one payment channel. ``authorised = paid + uncertain + held + free``, each ≥ 0.

    Of ``free``, ``reserved`` was put on record ahead of use and has been signed for nobody.
    """

    channel_id: str
    scope: PaymentScope
    descriptor: Mapping[str, str]  # raw, as it goes on the wire; with the salt: what finds the deposit again
    resource: str  # URL without query, for top-ups, probes and the close
    status: ChannelStatus
    owner: str | None = None  # id of the process that has it; alive as long as that process holds its lock
    epoch: int = 0  # bumped by each new owner; every commit checks it

    authorised: int = (
        0  # highest cumulative amount any voucher may carry; durable before signing; never falls
    )
    paid: int = 0  # charged, as far as we know
    uncertain: int = 0  # may have been charged
    eligible_at: int = 0  # from then on nothing in `uncertain` can still become charged
    holds: Mapping[str, Hold] = field(default_factory=dict)  # by request id
    held: int = 0  # the sum of holds
    reserved: int = 0  # of `free`: on record ahead of use; no voucher has carried it
    accepted: int = 0  # highest voucher the server has taken
    deposit: int = 0  # from the chain only (0 while the opening is pending)
    settled: int = 0  # from the chain only
    seq: int = 0  # dispatches so far

    min_delta: int = 1  # smallest raise the server takes
    equal_refused: bool = False  # the server does not take the same voucher twice
    delta_strikes: int = 0
    clean_needed: int = 0  # clean answers until anything is authorised ahead again
    bad_rows: int = 0  # client requests in a row that ended unpaid after a repair
    bad_row_at: int = 0

    pending: PendingTransaction | None = None
    folded: JournalMark | None = None
    close_amount: int | None = None  # durable before a close voucher is signed
    captured: int | None = None  # what the payee got, by the chain, once closed
    refunded: int | None = None  # what came back to the payer, by the chain, once closed
    fees: int = 0  # network fees we paid for it, in the fee token's base units
    transactions: tuple[str, ...] = ()  # hashes, oldest first
    note: str = ""  # why it was set aside, or failed
    opened_at: int = 0
    updated_at: int = 0

    @property
    def free(self) -> int:
        """Headroom that the next requests may use without a commit."""
        return self.authorised - self.paid - self.uncertain - self.held

    @property
    def spare(self) -> int:
        """What of `free` the voucher that is out covers: the next request may use it without a new one."""
        return self.free - self.reserved

    @property
    def issued(self) -> int:
        """The highest cumulative amount that any voucher may have carried."""
        return self.authorised - self.reserved

    @property
    def ceiling(self) -> int:
        """The most that may be authorised: the deposit, or that of the pending opening."""
        if self.pending is not None and self.pending.kind == "open":
            return self.pending.deposit
        return self.deposit
