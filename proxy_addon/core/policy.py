"""Who may be paid, and how much: pure rules over what the config says.

`SpendPolicy.judge` looks at one challenge and gives either the caps that its payment must fit or the reason
why it is refused. It reads no counter: the caps are checked in the transaction that moves the money.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from proxy_addon.core.terms import Terms
from store import budgets
from store.amounts import Token, parse_units
from store.records import CounterMove

LOCAL_CLIENT: Final = "local"
"""Who a client is where nobody has to say who he is: all on this machine are one."""

_MOST_REMEMBERED: Final = 10_000
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a request, as the client asked for them."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Origin:
        """What ``str`` wrote. Raises ``ValueError`` for anything else."""
        scheme, _, authority = text.partition("://")
        host, _, port = authority.rpartition(":")
        return cls(scheme, host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"{self.scheme}://{self._bracketed}:{self.port}"

    @property
    def shown(self) -> str:
        """The host as people write it: with its port only if that is not the scheme's own."""
        usual = self.port == _DEFAULT_PORTS.get(self.scheme)
        return self._bracketed if usual else f"{self._bracketed}:{self.port}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)


@lru_cache(maxsize=1024)
def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


@dataclass(frozen=True, slots=True)
class HostRule:
    """One ``[[policy.hosts]]`` table. Amounts are decimal strings in whole tokens, as written."""

    name: str  # "policy.hosts[0]", for errors
    pattern: str  # host, *.host, either with :port
    max_price: str
    max_per_day: str
    max_deposit: str
    deposit: str
    max_opens_per_day: int
    max_deposits_per_day: str
    max_channels_per_scope: int
    authorise_ahead: str
    reserve: str | None = None  # a hundredth of max_per_day
    max_stream_step: str = "0"
    max_stream_per_second: str = "0"
    max_per_stream: str = "0"
    payees: frozenset[str] = frozenset()
    tokens: frozenset[str] = frozenset()
    chains: frozenset[str] = frozenset()
    allow_http: bool = False
    websocket_paths: frozenset[str] = frozenset()  # paid in-band
    pin_payee: bool = False  # hold each origin to the payee that it was first paid as
    breaker_failures: int = 5
    breaker_max_undelivered: str | None = (
        None  # a quarter of max_per_day, and no less than failures × max_price
    )
    breaker_retry_after_s: int = 60

    def matches(self, origin: Origin) -> bool:
        host, _, port = self.pattern.rpartition(":") if _has_port(self.pattern) else (self.pattern, "", "")
        wanted = int(port) if port else _DEFAULT_PORTS.get(origin.scheme)
        # A rule without a port means the scheme's own port, except for loopback, where none is special.
        if origin.port != wanted and not (not port and origin.loopback):
            return False
        host = host.strip("[]")
        if host.startswith("*."):
            return origin.host.endswith(host[1:]) and len(origin.host) > len(host) - 1
        return origin.host == host


def _has_port(pattern: str) -> bool:
    head, colon, tail = pattern.rpartition(":")
    return bool(colon) and tail.isdigit() and (":" not in head or head.endswith("]"))


@dataclass(frozen=True, slots=True)
class ChainRule:
    """One ``[chains."…"]`` table, as far as policy needs it."""

    caip2: str
    tokens: Mapping[str, Token]
    extra_escrows: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ClientRule:
    """What one client may spend a day, in whole tokens: a ``[[policy.clients]]`` table, or the default."""

    name: str  # the key of the limit, for errors
    max_per_day: str


@dataclass(frozen=True, slots=True)
class ClientCap:
    """The same for one client and one token, in base units."""

    client: str
    token: str
    per_day: int
    rule: str


@dataclass(frozen=True, slots=True)
class Rates:
    """The ``[limits]`` table: how fast, and how much at once."""

    attempts_per_minute: int = 600  # of one client at one origin; what needs no decision is not counted
    in_flight_per_origin: int = 1024  # requests that hold money
    in_flight: int = 4096


@dataclass(frozen=True, slots=True)
class Trip:
    """When paying an origin stops, and for how long."""

    failures: int  # payments in a row that brought nothing
    undelivered: int  # base units on one day (UTC)
    retry_after_ms: int


@dataclass(frozen=True, slots=True)
class Caps:
    """What one payment must fit, in base units of `token`."""

    token: Token
    host: str  # as the counters name it: host and port, or the wildcard that it falls under
    rule: str
    per_request: int
    host_day: int
    total_day: int
    lifetime: int
    max_deposit: int
    deposit: int
    opens_per_day: int
    deposits_per_day: int
    channels_per_scope: int
    authorise_ahead: int
    reserve: int = 0  # put on record ahead of use, signed for nobody
    stream_step: int = 0  # one voucher of a metered stream
    stream_per_second: int = 0
    per_stream: int = 0
    escrow_total: int | None = None  # in the escrow at one time, over all channels
    pin_payee: bool = False
    trip: Trip = Trip(5, 0, 60_000)

    def raise_moves(self, amount: int, date: str) -> tuple[CounterMove, ...]:
        """The counters that a raise of ``authorised`` by `amount` moves on UTC `date`, with their limits."""
        token = self.token.address
        return (
            CounterMove(
                budgets.host_day(token, self.host, date), amount, self.host_day, f"{self.rule}.max_per_day"
            ),
            CounterMove(budgets.total_day(token, date), amount, self.total_day, "policy.max_per_day"),
            CounterMove(budgets.lifetime(token), amount, self.lifetime, "policy.max_lifetime"),
        )

    def open_moves(self, deposit: int, first: int, date: str) -> tuple[CounterMove, ...]:
        """The counters of an opening: its first authorised amount, one opening, its deposit."""
        return (
            *self.raise_moves(first, date),
            CounterMove(
                budgets.opens(self.host, date), 1, self.opens_per_day, f"{self.rule}.max_opens_per_day"
            ),
            *self.deposit_moves(deposit, date),
        )

    def deposit_moves(self, deposit: int, date: str) -> tuple[CounterMove, ...]:
        """The counters of what goes into escrow, with an opening or a top-up."""
        token = self.token.address
        return (
            CounterMove(
                budgets.deposits(token, self.host, date),
                deposit,
                self.deposits_per_day,
                f"{self.rule}.max_deposits_per_day",
            ),
            CounterMove(budgets.escrow(token), deposit, self.escrow_total, "policy.max_deposits_total"),
        )

    def deposit_for(self, terms: Terms) -> int:
        """What to deposit: what the server suggests, else our own size; never over our limit."""
        wanted = terms.suggested_deposit if terms.suggested_deposit is not None else self.deposit
        return min(max(wanted, terms.price, terms.min_delta), self.max_deposit, terms.amount_limit)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a challenge is not paid: a stable word for the ledger, a sentence for people."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class SpendPolicy:
    """Everything the config says about who may be paid."""

    hosts: tuple[HostRule, ...]
    chains: Mapping[str, ChainRule]
    max_per_day: str
    max_lifetime: str
    shadow: bool = False
    max_deposits_total: str | None = None  # max_lifetime: what may never be spent need not be locked
    clients: Mapping[str, ClientRule] = field(default_factory=dict)
    other_clients: ClientRule | None = None  # each client that is not in `clients`; None: no limit of its own
    rates: Rates = Rates()
    _rules: dict[Origin, HostRule | None] = field(default_factory=dict, compare=False, repr=False)
    _client_caps: dict[tuple[str, str], ClientCap] = field(default_factory=dict, compare=False, repr=False)

    def rule_for(self, origin: Origin) -> HostRule | None:
        """The first rule that matches, remembered per origin."""
        try:
            return self._rules[origin]
        except KeyError:
            found = next((rule for rule in self.hosts if rule.matches(origin)), None)
            if (
                len(self._rules) > _MOST_REMEMBERED
            ):  # a client that walks through names must not fill our memory
                self._rules.clear()
            self._rules[origin] = found
            return found

    def client_cap(self, client: str, token: Token) -> ClientCap | None:
        """What `client` may spend of `token` a day; None where nothing but the other limits is set."""
        rule = self.clients.get(client, self.other_clients)
        if rule is None:
            return None
        cap = self._client_caps.get((client, token.address))
        if cap is None:
            per_day = parse_units(rule.max_per_day, token.decimals, rule.name)
            if len(self._client_caps) > _MOST_REMEMBERED:
                self._client_caps.clear()
            cap = self._client_caps[client, token.address] = ClientCap(
                client, token.address, per_day, rule.name
            )
        return cap

    def judge(
        self, origin: Origin, terms: Terms, escrows: Mapping[str, str], pinned: str | None = None
    ) -> Caps | Refusal:
        """Caps for paying `terms` to `origin`, or the reason against it. `escrows` are the canonical ones.

        `pinned` is the payee that the origin was first paid as.
        """
        rule = self.rule_for(origin)
        if rule is None:
            return self.unknown(origin)
        if origin.scheme != "https" and not (origin.loopback or rule.allow_http):
            return Refusal(
                "insecure",
                f"{origin.shown} asks for money over plain http; use https, or set {rule.name}.allow_http = true",
            )
        chain = self.chains.get(terms.chain)
        if chain is None or (rule.chains and terms.chain not in rule.chains):
            where = f'[chains."{terms.chain}"]' if chain is None else f"{rule.name}.chains"
            return Refusal(
                "chain-not-allowed", f"{origin.shown} wants to be paid on {terms.chain}, not in {where}"
            )
        token = chain.tokens.get(terms.token)
        if token is None or (rule.tokens and terms.token not in rule.tokens):
            where = f'[[chains."{terms.chain}".tokens]]' if token is None else f"{rule.name}.tokens"
            return Refusal("token-not-allowed", f"{origin.shown} wants token {terms.token}, not in {where}")
        canonical = escrows.get(terms.chain, escrows.get("*"))
        if terms.escrow != canonical and terms.escrow not in chain.extra_escrows:
            return Refusal(
                "escrow-not-allowed",
                f"{origin.shown} names the escrow {terms.escrow}; only {canonical or 'none'} is known on {terms.chain}"
                f' (others: [chains."{terms.chain}"].extra_escrows)',
            )
        if rule.payees and terms.payee not in rule.payees:
            return Refusal(
                "payee-not-allowed",
                f"{origin.shown} names the payee {terms.payee}, not in {rule.name}.payees",
            )
        if rule.pin_payee and pinned is not None and terms.payee != pinned:
            return payee_changed(origin.shown, pinned, terms.payee, rule.name)
        caps = self._caps(rule, token, origin)
        if terms.min_delta > max(terms.price, caps.per_request // 4):
            return Refusal(
                "over-max-delta",
                f"{origin.shown} takes vouchers in steps of {token.show(terms.min_delta)}, over its price and over"
                f" a quarter of max_price {token.show(caps.per_request)} ({rule.name}); raise it to pay this",
            )
        need = max(terms.price, terms.min_delta)
        if need > caps.per_request:
            return Refusal(
                "over-max-price",
                f"{origin.shown} asks {token.show(need)}, over max_price {token.show(caps.per_request)}"
                f" ({rule.name}); raise it to pay this",
            )
        if need > caps.max_deposit:
            return Refusal(
                "over-max-deposit",
                f"{origin.shown} asks {token.show(need)}, over max_deposit"
                f" {token.show(caps.max_deposit)} ({rule.name})",
            )
        return caps

    @staticmethod
    def unknown(origin: Origin) -> Refusal:
        """Why an origin is not paid that no rule is about."""
        return Refusal(
            "host-not-allowed", f"{origin.shown} is in no [[policy.hosts]] table; add one to pay it"
        )

    def _caps(self, rule: HostRule, token: Token, origin: Origin) -> Caps:
        def units(text: str) -> int:
            return parse_units(text, token.decimals, rule.name)

        per_request, host_day = units(rule.max_price), units(rule.max_per_day)
        # Never less than the failures that it takes: one answer that is missing is no reason.
        undelivered = max(host_day // 4, rule.breaker_failures * per_request)
        if rule.breaker_max_undelivered is not None:
            undelivered = units(rule.breaker_max_undelivered)
        return Caps(
            token=token,
            # A wildcard's hosts share its counters: names under it cost their owner nothing to invent.
            host=rule.pattern if rule.pattern.startswith("*.") else str(origin).partition("://")[2],
            rule=rule.name,
            per_request=per_request,
            host_day=host_day,
            total_day=units(self.max_per_day),
            lifetime=units(self.max_lifetime),
            max_deposit=units(rule.max_deposit),
            deposit=units(rule.deposit),
            opens_per_day=rule.max_opens_per_day,
            deposits_per_day=units(rule.max_deposits_per_day),
            channels_per_scope=rule.max_channels_per_scope,
            authorise_ahead=units(rule.authorise_ahead),
            reserve=host_day // 100 if rule.reserve is None else units(rule.reserve),
            stream_step=units(rule.max_stream_step),
            stream_per_second=units(rule.max_stream_per_second),
            per_stream=units(rule.max_per_stream),
            escrow_total=units(
                self.max_lifetime if self.max_deposits_total is None else self.max_deposits_total
            ),
            pin_payee=rule.pin_payee,
            trip=Trip(
                failures=rule.breaker_failures,
                undelivered=undelivered,
                retry_after_ms=rule.breaker_retry_after_s * 1000,
            ),
        )


def payee_changed(host: str, pinned: str, payee: str, rule: str) -> Refusal:
    """Why an origin is not paid that names another payee than the one it is held to."""
    return Refusal(
        "payee-changed",
        f"{host} names the payee {short(payee)}, but was first paid as {short(pinned)} ({rule}.pin_payee); if it"
        f" has moved for good: bursar pins forget {host}",
    )


def short(address: str) -> str:
    """``0x1234…abcd``."""
    return f"{address[:6]}…{address[-4:]}"
