"""What comes next for a channel's deposit: by itself, and by whom. For people; nothing here is decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from proxy_addon.cli.output import utc
from proxy_addon.cli.records import Ownership, View
from store.amounts import Token
from store.ledger_files import journals, raw_lines
from store.lifecycle import PENDING_OPEN, ChannelStatus
from store.records import Channel

if TYPE_CHECKING:
    from proxy_addon.config import Settings


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a running proxy does by itself, and what time it is. Times in ms; 0 means never."""

    now: int
    close_idle_ms: Callable[[str], int]  # of an origin
    force_after_ms: int

    def moment(self, at_ms: int) -> str:
        """``2026-01-31 12:00:00Z (in 12 min)``, or ``now``."""
        return "now" if at_ms <= self.now else f"{utc(at_ms)} (in {_span(at_ms - self.now)})"

    def closes_at(self, channel: Channel) -> int:
        """When it closes by itself, if nobody uses it until then; 0: never."""
        idle = self.close_idle_ms(channel.scope.origin)
        return max(channel.updated_at + idle, channel.eligible_at) if idle else 0


def outlook_of(settings: Settings) -> Outlook:
    from proxy_addon.core.policy import Origin

    table, policy = settings.watchdog, settings.spend_policy()
    own = {
        rule.name: host.close_idle_s for rule, host in zip(policy.hosts, settings.policy.hosts, strict=True)
    }

    def close_idle_ms(origin: str) -> int:
        try:
            rule = policy.rule_for(Origin.parse(origin))
        except ValueError:  # of a channel that was found on the chain: nobody knows its server
            rule = None
        found = own.get(rule.name) if rule is not None else None
        return 1000 * (table.close_idle_s if found is None else found)

    return Outlook(time.time_ns() // 1_000_000, close_idle_ms, 1000 * table.force_close_after_s)


def ready_times(ledger: Path) -> dict[str, int]:
    """From when on deposits can be withdrawn whose close was requested on the chain: Unix seconds, by channel."""
    found: dict[str, int] = {}
    for files in journals(ledger).values():
        for path in files:
            for raw in raw_lines(path):
                if b'"ready_at"' not in raw:  # the ledger is long, and these lines are few
                    continue
                try:
                    line = orjson.loads(raw)
                    found[line["channel"]] = max(int(line["ready_at"]), found.get(line["channel"], 0))
                except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
                    continue
    return found


def next_step(view: View, token: Token, ready_at: int, outlook: Outlook) -> str:
    """The whole of it, in one line. `ready_at` (Unix seconds): when a requested close can be ended; else 0."""
    channel = view.channel
    short = channel.channel_id[:10]
    left = token.show(channel.ceiling - channel.paid - channel.uncertain)
    by_force = f"bursar channels close --force {short}"
    if view.ownership is Ownership.LEFT:
        doubt = f", with {token.show(channel.uncertain)} uncertain" if channel.uncertain else ""
        return f"its process died: the next proxy or command that uses it recovers it{doubt}"
    until = utc(channel.pending.valid_before * 1000) if channel.pending is not None else ""
    match channel.status:
        case ChannelStatus.FAILED:
            return f"nothing: {channel.note or 'its opening failed'}; the deposit never left"
        case ChannelStatus.CLOSED:
            return f"nothing: {token.show(channel.refunded or 0)} came back"
        case ChannelStatus.MOVED:
            return "nothing here: it was moved to another store"
        case status if status in PENDING_OPEN:
            return f"opening: the chain decides, until a block past {until}"
        case ChannelStatus.ASIDE if ready_at:
            return f"its close was requested on the chain: {_withdraw(ready_at, outlook)} with {by_force}"
        case ChannelStatus.ASIDE:
            forced = channel.updated_at + outlook.force_after_ms
            itself = (
                f"; or a running proxy does so, {outlook.moment(forced)}" if outlook.force_after_ms else ""
            )
            return (
                f"set aside ({channel.note}): bursar channels close {short} brings up to {left} back; where the server"
                f" does not help, with --force{itself}"
            )
        case ChannelStatus.DRAINING:
            return f"a close was begun: bursar channels close {short} goes on with it, for {left}"
        case ChannelStatus.CLOSING if ready_at:
            return f"closing by force: {_withdraw(ready_at, outlook)} with {by_force}"
        case ChannelStatus.CLOSING if channel.close_amount is not None:
            return (
                f"a close of {token.show(channel.close_amount)} was signed: bursar channels close {short} asks the"
                " server and the chain again"
            )
        case ChannelStatus.CLOSING:
            return f"closing by force: {by_force} says from when on to withdraw"
        case _:
            pass
    if channel.pending is not None:
        return f"a top-up of {token.show(channel.pending.deposit)}: the chain decides, until a block past {until}"
    if view.ownership is Ownership.IN_USE:
        return (
            f"in use by a running proxy, which gives it back when it is idle; then close to get {left} back"
        )
    doubt = ""
    if channel.uncertain:
        doubt = f" (and what of the {token.show(channel.uncertain)} uncertain was not charged)"
    at = outlook.closes_at(channel)
    itself = f"; a running proxy does so {outlook.moment(at)}" if at else ""
    return f"idle: close to get {left} back{doubt}: bursar channels close {short}{itself}"


def in_short(view: View, ready_at: int, outlook: Outlook) -> str:
    """The same in a few words, for a table."""
    channel = view.channel
    if view.ownership is Ownership.LEFT:
        return "to be recovered"
    if channel.pending is not None or channel.status in PENDING_OPEN:
        return "the chain decides"
    if view.ownership is Ownership.IN_USE:
        return "in use"
    waits = channel.status in (ChannelStatus.ASIDE, ChannelStatus.CLOSING)
    if waits and ready_at:
        return _withdraw(ready_at, outlook)
    match channel.status:
        case ChannelStatus.OPEN if at := outlook.closes_at(channel):
            return "closes soon" if at <= outlook.now else f"closes in {_span(at - outlook.now)}"
        case ChannelStatus.OPEN:
            return "close by hand"
        case ChannelStatus.ASIDE:
            return "close, or --force"
        case ChannelStatus.DRAINING | ChannelStatus.CLOSING:
            return "close again"
        case _:
            return ""


def _withdraw(ready_at: int, outlook: Outlook) -> str:
    at_ms = ready_at * 1000
    return "withdraw now" if at_ms <= outlook.now else f"withdraw possible at {outlook.moment(at_ms)}"


def _span(ms: int) -> str:
    """``12 min``: the largest unit that there is at least one of, rounded up."""
    seconds = -(-ms // 1000)
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size * (2 if unit == "d" else 1):
            return f"{-(-seconds // size)} {unit}"
    return f"{seconds} s"
