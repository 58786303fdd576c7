"""A payer in small: the real store, the real ledger, the real moves; no server and no key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from proxy_addon.audit import Audit, RequestFacts, amount_fields
from store import account
from store.account import Ended, Ending, Sent
from store.amounts import Token
from store.backends import open_backend
from store.channels import ChannelStore
from store.journal import Journal, boot_id
from store.lifecycle import ChannelStatus
from store.records import Channel, CounterMove
from tests.unit.methods import samples

PATH_USD = Token(samples.TOKEN, "pathUSD", 6)
START = 1_800_000_000_000  # 2027-01-15T08:00:00Z


class Bookkeeper:
    """`async with Bookkeeper(directory) as books:`; each line is a second later than the one before."""

    def __init__(self, directory: Path, *, start: int = START) -> None:
        self._directory = directory
        self._now = start

    async def __aenter__(self) -> Self:
        backend = await open_backend("lmdb", self._directory)
        self.store = ChannelStore(backend)
        self.journal = Journal(self._directory / "ledger", backend.owner_id, boot_id())
        self.audit = Audit(self.journal, self.now)
        self.channels: dict[str, Channel] = {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.store.close()
        self.journal.close()

    def now(self) -> int:
        self._now += 1000
        return self._now

    async def open(
        self, channel_id: str, *, host: str = "api.example.com", authorised: int = 50_000
    ) -> Channel:
        moves = [CounterMove(f"{family}x", authorised) for family in ("host-day/", "total-day/", "lifetime/")]
        channel = samples.channel(
            channel_id=channel_id,
            scope=samples.scope(origin=f"https://{host}:443"),
            authorised=authorised,
            deposit=1_000_000,
            opened_at=self.now(),
            folded=self.journal.mark,
        )
        self.channels[channel_id] = await self.store.propose(channel, moves, max_channels=9)
        self.audit.note(
            "opened",
            f"opened channel {channel_id}",
            channel_id=channel_id,
            host=channel.scope.host,
            fee="1200",
            fields=amount_fields(PATH_USD, channel.deposit),
        )
        return self.channels[channel_id]

    def pay(
        self,
        channel_id: str,
        request: str,
        amount: int,
        ending: Ending | None = Ending.PAID,
        path: str = "/data",
    ) -> None:
        """One request, in the ledger and in memory; the store learns of it with the next `commit`."""
        channel = self.channels[channel_id]
        now = self.now()
        channel, hold = account.hold(
            channel,
            request,
            amount,
            voucher=channel.authorised,
            sent_at=now,
            expires_at=now + 60_000,
            fingerprint="f",
        )
        facts = RequestFacts(request, "127.0.0.1:5", channel.scope.host, "GET", path)
        fields = {**facts.fields(), "challenge": "c", **amount_fields(PATH_USD, amount)}
        self.audit.move("sent", fields, channel_id=channel_id, move=Sent(hold))
        if ending is not None:
            move = Ended(request, ending, self.now())
            channel = account.end(channel, move)
            self.audit.note(
                "ended",
                f"GET {path}: {ending}",
                channel_id=channel_id,
                move=move,
                fields={**fields, "outcome": ending.value, "status": 200},
            )
        self.channels[channel_id] = channel

    def refuse(self, host: str, message: str) -> None:
        self.audit.note(
            "decision",
            f"not paid: {message}",
            host=host,
            fields={"outcome": "refused", "reason": "over-max-price"},
        )

    async def commit(self, channel_id: str) -> None:
        channel = replace(self.channels[channel_id], folded=self.journal.mark)
        await self.store.set(channel)
        self.channels[channel_id] = channel

    async def close(self, channel_id: str, captured: int) -> None:
        """As the chain says it: what was captured is what was paid."""
        before = self.channels[channel_id]
        refunded = before.deposit - captured
        channel = replace(
            before,
            status=ChannelStatus.CLOSED,
            paid=captured,
            uncertain=0,
            captured=captured,
            refunded=refunded,
            folded=self.journal.mark,
        )
        await self.store.delete(channel)
        self.audit.note(
            "closed",
            f"closed channel {channel_id}",
            channel_id=channel_id,
            host=channel.scope.host,
            captured=str(captured),
            refunded=str(refunded),
            adjustment=str(captured - before.paid),
            fields=amount_fields(PATH_USD, captured),
        )
        self.channels[channel_id] = channel

    async def release(self, channel_id: str) -> None:
        await self.store.release(replace(self.channels[channel_id], folded=self.journal.mark))
