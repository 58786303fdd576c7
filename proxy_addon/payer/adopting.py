"""Channels that the chain has and we have not on record, or only as ended: found, and put on record.

The event of an opening carries the whole descriptor; the payer's address is in it. So whoever has the key alone
finds each channel that it has opened. What its payee can prove is not known then: all of the deposit counts as
authorised, all that is not settled as uncertain, and nothing is ever paid with such a channel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from proxy_addon.audit import amount_fields, utc_date
from proxy_addon.chain import ChainClient
from proxy_addon.core.errors import OutcomeUnknown, RemoteProtocolError
from proxy_addon.core.messages import parse_challenges
from proxy_addon.core.policy import Origin
from proxy_addon.methods import registry
from proxy_addon.methods.contract import ChainHead, ChainState, FoundChannel, Method
from proxy_addon.methods.tempo_session.history import newest_first
from proxy_addon.outbound import Outbound
from proxy_addon.payer.parts import LONGEST_CHALLENGE_MS, Parts
from store import budgets
from store.account import UNKNOWN_MARGIN_MS
from store.lifecycle import ChannelStatus
from store.records import Channel, CounterMove
from store.reviving import revived

log: Final = logging.getLogger("bursar")

FOUND_NOTE: Final = "found on the chain, without a record of what its payee could prove"
NOWHERE: Final = "unknown"  # the scheme of an origin that nobody knows
_ENDED: Final = frozenset({ChannelStatus.CLOSED, ChannelStatus.FAILED})

Place = tuple[str, str, str]  # chain, escrow, payee
Progress = Callable[[int, int], None]
"""Told the block that the search has come to, going back, and how many openings it has found."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A channel of ours that the chain has. `record` is what we have of it: nothing, or a tombstone."""

    found: FoundChannel
    method: Method
    state: ChainState
    record: Channel | None

    @property
    def left(self) -> int:
        """What comes back if the payee can prove no more than it has settled; base units."""
        return self.state.deposit - self.state.settled


@dataclass(frozen=True, slots=True)
class Findings:
    """What the chain has of our key's channels, beside those that are on record and have not ended."""

    lost: tuple[Lost, ...]
    known: tuple[str, ...]  # on record: left alone
    ended: int  # opened once, and closed since
    head: ChainHead


async def search(
    chain: ChainClient,
    chain_name: str,
    payer: str,
    escrows: Sequence[tuple[Method, str]],
    on_record: Mapping[str, Channel],
    *,
    from_block: int = 0,
    progress: Progress = lambda block, found: None,
) -> Findings:
    """All channels that `payer` opened in these escrows since `from_block`. Reads only. Raises `ChainUnavailable`.

    What an event says is believed only as far as the channel's id follows from it and the escrow has that channel.
    """
    head = await chain.firm_head()
    events: dict[str, tuple[FoundChannel, Method]] = {}
    for method, escrow in escrows:
        topics = method.opened_topics(payer)
        async for block, logs in newest_first(chain, escrow, topics, first=from_block, last=head.number):
            for one in logs:
                try:
                    found = method.parse_opened(one, chain=chain_name, origin=_nowhere(one.topics))
                except ValueError as error:
                    log.warning("bursar: an opening on %s in %s is odd: %s", chain_name, one.tx_hash, error)
                    continue
                events[found.channel_id] = found, method
            progress(block, len(events))
    lost, known, ended = [], [], 0
    for name, (found, method) in sorted(events.items(), key=lambda item: -item[1][0].block_number):
        record = on_record.get(name)
        if record is not None and record.status not in _ENDED:
            known.append(name)
            continue
        state = await method.read_channel(chain, record or _record(found, None, at=0))
        if state.exists:
            lost.append(Lost(found, method, state, record))
        else:
            ended += 1
    return Findings(tuple(lost), tuple(known), ended, head)


async def adopt(parts: Parts, one: Lost, resource: str | None) -> Channel:
    """Put a channel on record, nobody's, to be brought home; `resource` is where its server is, if that is known.

    Its whole deposit counts against the budgets of the day on which it was opened, and against the lifetime's until
    it is closed: over their limits, if need be, since it is a fact. After a crash it is on record, or not; calling
    this again is right. Raises `StoreError`, `ChainUnavailable`, and `IllegalMove` for one that cannot be ours.
    """
    name, chain = one.found.channel_id, parts.chain(one.found.scope.chain)
    if one.record is not None:
        await revive(parts, name)
    else:
        opened_s = await chain.time_of(one.found.block_number)
        record = _record(one.found, one.state, at=parts.now(), opened_at=opened_s * 1000, resource=resource)
        await parts.store.adopt(record, _counters(record))
        token = parts.token(record.scope.chain, record.scope.token)
        parts.audit.note(
            "adopted",
            f"found channel {name} to {record.scope.payee} on {record.scope.chain}: deposit"
            f" {token.show(record.deposit)}, settled {token.show(record.settled)}",
            channel_id=name,
            host=record.scope.host,
            tx=one.found.tx_hash,
            settled=str(record.settled),
            fields=amount_fields(token, record.deposit),
        )
    found = await parts.store.find(name)
    assert found is not None
    return found


async def revive(parts: Parts, channel_id: str) -> bool:
    """Take a channel up again that is on record as ended, if the chain has it. True if it was.

    It is set aside then, in the same commit with what the budgets had got back for it. Raises `ChainUnavailable`,
    `StoreError`, and `IllegalMove` if what the chain has is not the channel on record.
    """
    tombstone = await parts.store.find(channel_id)
    if tombstone is None or tombstone.status not in _ENDED:
        return False
    chain = parts.chain(tombstone.scope.chain)
    state = await parts.method(tombstone).read_channel(chain, tombstone)
    if not state.exists:
        return False
    now = parts.now()
    change = partial(
        revived, deposit=state.deposit, settled=state.settled, eligible_at=_eligible_at(now), at=now
    )
    channel = await parts.store.revive(channel_id, change)
    if channel is None:
        return False
    token = parts.token(channel.scope.chain, channel.scope.token)
    parts.audit.note(
        "revived",
        f"channel {channel_id} of {channel.scope.host} was on record as {tombstone.status}, but"
        f" {channel.scope.chain} has it, with a deposit of {token.show(state.deposit)}: it is set aside, to be brought"
        f" home with bursar channels close --force {channel_id[:10]}",
        level=logging.ERROR,
        channel_id=channel_id,
        host=channel.scope.host,
    )
    return True


async def places(outbound: Outbound, urls: Iterable[str]) -> dict[Place, str]:
    """Which payees ask for payment at these URLs, and where. Nothing is signed; a server that is gone is left out."""
    found: dict[Place, str] = {}
    for url in urls:
        for verb in ("HEAD", "GET"):
            try:
                answer = await outbound.send(verb, url, {"accept-payment": registry.accept_payment()})
            except OutcomeUnknown as error:
                log.info("bursar: %s cannot be asked: %s", url, error)
                break
            for challenge in parse_challenges(answer.all("www-authenticate")).challenges:
                try:
                    terms = registry.resolve(challenge).terms(challenge)
                except RemoteProtocolError:
                    continue
                found.setdefault((terms.chain, terms.escrow, terms.payee), url)
    return found


def place_of(channel: Channel | FoundChannel) -> Place:
    scope = channel.scope
    return scope.chain, scope.escrow, scope.payee


def origin_of(resource: str) -> str:
    """The origin of a URL as scopes have it. Raises ``ValueError``."""
    try:
        url = urlsplit(resource)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        host = url.hostname
    except (ValueError, KeyError):
        host = None
    if not host:
        raise ValueError(f"{resource[:80]!r} is no http(s) URL")
    return str(Origin(url.scheme, host, port))


def _nowhere(topics: tuple[str, ...]) -> str:
    """An origin for a channel whose server nobody knows: its payee's address stands for the host."""
    return f"{NOWHERE}://0x{topics[-1][-40:]}"


def _eligible_at(now: int) -> int:
    return now + LONGEST_CHALLENGE_MS + UNKNOWN_MARGIN_MS


def _record(
    found: FoundChannel,
    state: ChainState | None,
    *,
    at: int,
    opened_at: int = 0,
    resource: str | None = None,
) -> Channel:
    """What a payee could prove is not known: all of the deposit may be authorised, all but the settled is uncertain."""
    deposit = state.deposit if state is not None else 0
    settled = state.settled if state is not None else 0
    scope = found.scope if not resource else replace(found.scope, origin=origin_of(resource))
    return Channel(
        channel_id=found.channel_id,
        scope=scope,
        descriptor=found.descriptor,
        resource=resource or "",
        status=ChannelStatus.ASIDE,
        epoch=1,
        authorised=deposit,
        paid=settled,
        uncertain=deposit - settled,
        eligible_at=_eligible_at(at),
        deposit=deposit,
        settled=settled,
        note=FOUND_NOTE,
        opened_at=opened_at,
        updated_at=at,
    )


def _counters(channel: Channel) -> tuple[CounterMove, ...]:
    token, date = channel.scope.token, utc_date(channel.opened_at)
    keys = (
        budgets.host_day(token, channel.scope.host, date),
        budgets.total_day(token, date),
        budgets.lifetime(token),
    )
    return tuple(CounterMove(key, channel.authorised) for key in keys)
