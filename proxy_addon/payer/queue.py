"""Those who wait for a channel's next commit: one raise for as many of them as fit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from proxy_addon.core.dispatch import Plan, plans, reserve_for, share, voucher_steps
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.payer.raising import charge
from proxy_addon.payer.tasks import background
from proxy_addon.payer.wants import NoRoom, Want, deposit_used_up, limit_refusal, over_limit, store_refusal
from store.channels import LimitExceeded
from store.contract import StoreError

if TYPE_CHECKING:
    from proxy_addon.payer.clients import Cover
    from proxy_addon.payer.till import Grant, Till

log: Final = logging.getLogger("bursar")

Waiter = tuple[Want, "asyncio.Future[Grant]"]


class Queue:
    """In order of arrival. Whoever is refused gets the reason; then nothing was signed for it."""

    def __init__(self, till: Till) -> None:
        self._till = till
        self._waiting: list[Waiter] = []
        self._pump: asyncio.Task[None] | None = None
        self._first: str | None = None  # the request that is served before anything is raised again
        self._alone = 0  # commits in a row that were for one request alone

    @property
    def busy(self) -> bool:
        return bool(self._waiting) or self._pump is not None

    def join(self, want: Want) -> asyncio.Future[Grant]:
        future: asyncio.Future[Grant] = asyncio.get_running_loop().create_future()
        self._waiting.append((want, future))
        self.kick()
        return future

    def hold_back_for(self, request_id: str) -> None:
        """Raise nothing more until this request has its answer, unless another is being waited for already."""
        if self._first is None:
            self._first = request_id

    def answered(self, request_id: str) -> None:
        """Whoever was held back for has its answer."""
        if self._first == request_id:
            self._first = None
            self.kick()

    def clear(self, error: LocalRefusal) -> None:
        """The channel pays nobody any more."""
        self.deny(self._waiting, error)
        self._waiting.clear()

    def kick(self) -> None:
        if self._pump is None and self._waiting and self._may_serve():
            self._pump = background(self._run(), "bursar-till")

    def _may_serve(self) -> bool:
        if self._first is not None and self._first in self._till.channel.holds:
            return False
        return not (self._till.channel.equal_refused and self._till.channel.holds)

    async def _run(self) -> None:
        try:
            while self._waiting and self._may_serve():
                take = 1 if self._till.channel.equal_refused else len(self._waiting)
                group, self._waiting = self._waiting[:take], self._waiting[take:]
                group = [(want, future) for want, future in group if not future.done()]
                if group:
                    await self._serve(group)
        finally:
            self._pump = None
            self.kick()

    async def _serve(self, group: list[tuple[Want, asyncio.Future[Grant]]]) -> None:
        """Raise for the whole group in one commit; where that does not fit, for as many as do, in order."""
        try:
            await self._till.written()
            self._till.check_usable()
            for want, _ in group:
                self._till.check_shared(want)
            step = await self._raise_for([want for want, _ in group])
            await self._give_way([want for want, _ in group], step)
        except (LimitExceeded, NoRoom) as error:
            if len(group) > 1:
                middle = len(group) // 2
                await self._serve(group[:middle])
                await self._serve(group[middle:])
            else:
                want = group[0][0]
                if isinstance(error, NoRoom):
                    self.deny(group, deposit_used_up(self._till.channel, want))
                else:
                    self.deny(group, limit_refusal(error, want.facts.host, want.caps.token))
            return
        except LocalRefusal as error:
            self.deny(group, error)
            return
        except StoreError as error:
            self.deny(group, store_refusal(error, group[0][0]))
            return
        except BaseException as error:
            told = f"{type(error).__name__} while paying; nothing was signed"
            self.deny(group, LocalRefusal("internal", told))
            if not isinstance(error, Exception):
                raise
            log.exception("bursar: a payment failed inside")
            return
        for want, future in group:
            if future.done():  # its client has gone
                want.unclaim()
                continue
            # A request that was bumped or written off has had its raise; it holds like any other now.
            want.bump = want.write_off = False
            step = min(step, self._till.channel.reserved)
            if self._till.channel.spare + step < want.price:
                self._waiting.append((want, future))
                continue
            try:
                future.set_result(self._till.grant(want, step))
                step = 0  # the first of them has taken it for all
            except LocalRefusal as error:
                want.unclaim()
                future.set_exception(error)
            except Exception as error:
                want.unclaim()
                log.exception("bursar: a payment failed inside")
                future.set_exception(LocalRefusal("internal", f"{type(error).__name__}; nothing was signed"))

    async def _give_way(self, wants: Sequence[Want], step: int) -> None:
        """What is raised is durable; it leaves when it overtakes nothing, unless the channel is of no use by then."""
        till = self._till
        await till.unanswered.give_way(till.channel.issued + step)
        till.check_usable()
        for want in wants:
            till.check_shared(want)

    async def _raise_for(self, wants: Sequence[Want]) -> int:
        """Make what `wants` need durable, and charge each request's own limit with its share of it.

        Returns how much higher the voucher is that it takes. Raises `NoRoom`, `LimitExceeded`; for one alone
        `LocalRefusal`, too. Then nothing was raised.
        """
        for want in wants:
            if want.write_off:
                self._till.write_off(want)
        till = self._till
        found = self._plans(wants)
        if found[0].step == 0 and all(till.cover_now(want) for want in wants):
            return 0
        date = await till.calendar.today(till.channel.scope.chain)
        found = self._plans(wants)
        cover = till.clients.cover(date, till.ticks())
        for want in wants:
            forced = want.bump or want.write_off
            cover.add(want, beyond=share(till.channel, want.price, found[0].step) if forced else 0)
        try:
            return await self._raise_by(found, wants, date, cover)
        except BaseException:
            cover.undo()
            raise

    def _plans(self, wants: Sequence[Want]) -> tuple[Plan, ...]:
        channel, caps = self._till.channel, wants[0].caps
        steps = voucher_steps(
            channel,
            [want.demand for want in wants],
            others_in_flight=len(channel.holds),
            ahead_limit=caps.authorise_ahead,
        )
        reserve = 0
        if self._is_alone(wants):
            reserve = reserve_for(
                channel, steps[0], wants[0].price, alone=self._alone + 1, limit=caps.reserve
            )
        return plans(channel, steps, reserve=reserve)

    def _is_alone(self, wants: Sequence[Want]) -> bool:
        """One request, none other in flight, and nothing that its server has complained of."""
        channel = self._till.channel
        return not (
            len(wants) > 1
            or wants[0].bump
            or wants[0].write_off
            or channel.holds
            or channel.clean_needed
            or channel.equal_refused
        )

    def reserve_for_stream(self, step: int, want: Want) -> int:
        """How much to reserve beyond a stream's next step, if that takes a commit. It is alone on its channel."""
        channel = self._till.channel
        self._alone += step > channel.reserved
        return reserve_for(channel, step, step, alone=self._alone, limit=want.caps.reserve)

    async def _raise_by(self, found: Sequence[Plan], wants: Sequence[Want], date: str, cover: Cover) -> int:
        """By the first plan that fits; with it, what the clients need on their days."""
        caps, channel = wants[0].caps, self._till.channel
        self._alone = self._alone + 1 if self._is_alone(wants) else 0
        failure: LimitExceeded | NoRoom | LocalRefusal | None = None
        for plan in found:
            shares = [share(channel, want.price, plan.step) for want in wants]
            if self._till.channel.authorised + plan.raised > self._till.channel.ceiling:
                failure = NoRoom(f"the deposit of {self._till.channel.channel_id} is used up")
                continue
            if (failure := over_limit(wants, shares)) is not None:
                continue
            try:
                await charge(self._till, plan.raised, caps, date, cover)
            except LimitExceeded as error:
                failure = error
                continue
            for want, one in zip(wants, shares, strict=True):
                want.tries.new_money += one
            return plan.step
        assert failure is not None
        raise failure

    @staticmethod
    def deny(group: Sequence[tuple[Want, asyncio.Future[Grant]]], error: LocalRefusal) -> None:
        for want, future in group:
            want.unclaim()
            if not future.done():
                future.set_exception(error)
