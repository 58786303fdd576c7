"""Taking channels of another store into this one, one commit each: what `bursar channels import` does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from proxy_addon.audit import amount_fields, utc_date
from proxy_addon.cli.assume_spent import counter_host
from proxy_addon.cli.records import view_of
from proxy_addon.methods.registry import method_of
from proxy_addon.payer.parts import LONGEST_CHALLENGE_MS, Parts
from proxy_addon.runtime import now_ms
from store.account import UNKNOWN_MARGIN_MS, IllegalMove
from store.channels import ChannelBusy, ChannelStore
from store.contract import StoreError
from store.lifecycle import FINAL, PENDING_OPEN, ChannelStatus, IllegalTransition
from store.merging import Charged, Incoming, merged, opening_moves, refund_of, taken_in
from store.records import Channel, CounterMove

if TYPE_CHECKING:
    from proxy_addon.config import Settings


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one channel of the file. `record` is that of the store afterwards, if it has one."""

    channel_id: str
    action: str  # "added" | "raised" | "changed" | "taken back" | "unchanged" | "skipped"
    record: Channel | None
    raised: int = 0  # base units
    why: str = ""


class Importer:
    """`take_all` channels of a file. Doing it again, also after a crash, goes on where it was and changes no more."""

    def __init__(
        self,
        settings: Settings,
        store: ChannelStore,
        charged: Charged,
        *,
        parts: Parts | None,
        take_over: bool,
    ) -> None:
        """Without `parts` nothing is written: it only says what would be."""
        self._settings = settings
        self._store = store
        self._parts = parts
        self._policy = settings.spend_policy()
        self._charged = charged
        self._take_over = take_over

    async def take_all(self, channels: Iterable[Incoming]) -> list[Taken]:
        """Newest charges first: the dates that the counters have left go to those that were paid with last."""
        ordered = sorted(channels, key=lambda one: one.channel.updated_at, reverse=True)
        return [await self._take(one) for one in ordered]

    async def _take(self, incoming: Incoming) -> Taken:
        channel_id = incoming.channel.channel_id
        wrong = self._wrong_with(incoming.channel)
        if wrong:
            return Taken(channel_id, "skipped", None, why=wrong)
        try:
            known = await self._store.find(channel_id)
            return await (self._add(incoming) if known is None else self._merge(incoming, known))
        except (StoreError, IllegalMove, IllegalTransition) as error:
            return Taken(channel_id, "skipped", None, why=str(error))

    @staticmethod
    def _wrong_with(channel: Channel) -> str:
        scope = channel.scope
        try:
            computed = method_of(scope.family, scope.version).channel_id(scope, channel.descriptor)
        except KeyError:
            return f"channels of {scope.family}/{scope.version} are not known here"
        except ValueError as error:
            return str(error)
        return "" if computed == channel.channel_id else f"its id is not that of its descriptor, {computed}"

    @staticmethod
    def _eligible_at() -> int:
        return now_ms() + LONGEST_CHALLENGE_MS + UNKNOWN_MARGIN_MS

    async def _add(self, incoming: Incoming) -> Taken:
        theirs = incoming.channel
        if theirs.status in PENDING_OPEN and not (incoming.moved or self._take_over):
            why = "its opening was on its way: export it again, or use --take-over if nothing else uses it"
            return Taken(theirs.channel_id, "skipped", None, why=why)
        channel = taken_in(incoming, take_over=self._take_over, eligible_at=self._eligible_at())
        raised = 0 if channel.status is ChannelStatus.FAILED else channel.authorised
        if self._parts is not None:
            opened = utc_date(channel.opened_at or channel.updated_at or now_ms())
            host = counter_host(self._policy, channel.scope)
            moves = (*self._moves(channel, raised), *opening_moves(channel, host=host, date=opened))
            self._write_line(self._parts, channel, None)
            await self._store.adopt(channel, moves, refund_of(channel))
        return Taken(channel.channel_id, "added", channel, raised)

    async def _merge(self, incoming: Incoming, known: Channel) -> Taken:
        parts = self._parts
        comes_back = incoming.moved and known.status is ChannelStatus.MOVED
        if known.status in FINAL and not comes_back:
            return Taken(known.channel_id, "unchanged", known, why=f"it is {known.status} here")
        if parts is None:
            if self._store.is_busy(known):
                raise ChannelBusy(known)
            current = view_of(self._settings, self._store, known).channel
            channel = merged(current, incoming, self._eligible_at())
            return Taken(channel.channel_id, _action(current, channel), channel, _raised(current, channel))
        current = await parts.claim(known.channel_id)
        channel = merged(current, incoming, self._eligible_at())
        raised = _raised(current, channel)
        action = _action(current, channel)
        if channel != current:
            channel = replace(channel, updated_at=now_ms(), folded=parts.audit.journal.mark)
            self._write_line(parts, channel, current)
            await self._store.absorb(channel, self._moves(channel, raised))
        await self._store.release(channel)
        return Taken(channel.channel_id, action, channel, raised)

    def _moves(self, channel: Channel, raised: int) -> tuple[CounterMove, ...]:
        host, date = counter_host(self._policy, channel.scope), utc_date(channel.updated_at or now_ms())
        return self._charged.moves(channel, raised, host=host, date=date)

    @staticmethod
    def _write_line(parts: Parts, channel: Channel, before: Channel | None) -> None:
        """Before the commit: after a crash the line is there twice, and counts once."""
        token = parts.token(channel.scope.chain, channel.scope.token)
        authorised = before.authorised if before is not None else 0
        parts.audit.note(
            "imported",
            f"imported channel {channel.channel_id} of {channel.scope.host}: {token.show(channel.authorised)}"
            f" authorised (here {token.show(authorised)} before), {token.show(channel.paid)} paid,"
            f" {token.show(channel.uncertain)} uncertain",
            channel_id=channel.channel_id,
            host=channel.scope.host,
            paid_before=str(before.paid if before is not None else 0),
            paid=str(channel.paid),
            status=channel.status.value,
            fields=amount_fields(token, channel.authorised - authorised),
        )


def _raised(before: Channel, after: Channel) -> int:
    return after.authorised - before.authorised


def _action(before: Channel, after: Channel) -> str:
    if before.status is ChannelStatus.MOVED and after.status is not ChannelStatus.MOVED:
        return "taken back"
    if after.authorised != before.authorised:
        return "raised"
    kept = replace(after, updated_at=before.updated_at, folded=before.folded)
    return "unchanged" if kept == before else "changed"
