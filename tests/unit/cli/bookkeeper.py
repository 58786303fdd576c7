"""A payer in small: the real store, the real ledger, the real moves; no server and no key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxy_addon.audit import Audit, RequestFacts, amount_fields, utc_date
from store import account, budgets
from store.account import Ended, Ending, Sent
from store.amounts import Token
from store.backends import open_backend
from store.channels import ChannelStore
from store.journal import Journal, boot_id
from store.lifecycle import ChannelStatus
from store.presence import Presence
from store.records import Channel, CounterMove
from tests.unit.methods import samples

PATH_USD = Token(samples.TOKEN, "pathUSD", 6)
START = 1_800_000_000_000  # 2027-01-15T08:00:00Z


class Bookkeeper:
    """`async with Bookkeeper(directory) as books:`; each line is a second later than the one before."""

    def __init__(
        self,
        directory: Path,
        *,
        start: int = START,
        boot: str = "",
        segment_bytes: int = 2**20,
        dies: bool = False,
        seal: Path | None = None,
    ) -> None:
        """`dies`: as by kill -9, with nothing written at the end."""
        self._directory = directory
        self._now = start
        self._boot = boot or boot_id()
        self._segment_bytes = segment_bytes
        self._dies = dies
        self._seal = seal

    async def __aenter__(self) -> Self:
        backend = await open_backend("lmdb", self._directory)
        self.store = ChannelStore(backend)
        ledger = self._directory / "ledger"
        self.journal = Journal(ledger, backend.owner_id, self._boot, segment_bytes=self._segment_bytes)
        self._presence = await Presence.enter(
            self.store, self.journal, ledger=ledger, seal_path=self._seal, directory=self._directory
        )
        self.audit = Audit(self.journal, self.now)
        self.channels: dict[str, Channel] = {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._dies:
            await self._presence.leave()
        await self.store.close()
        self.journal.close()

    def now(self) -> int:
        self._now += 1000
        return self._now

    async def open(
        self,
        channel_id: str = "",
        *,
        host: str = "api.example.com",
        authorised: int = 50_000,
        salt: int = 0,
        **fields: Any,
    ) -> Channel:
        """Without a `channel_id` it is that of its descriptor, with this `salt`."""
        token, date = PATH_USD.address, utc_date(self._now)
        keys = (
            budgets.host_day(token, f"{host}:443", date),
            budgets.total_day(token, date),
            budgets.lifetime(token),
        )
        moves = [CounterMove(key, authorised) for key in keys]
        usual: dict[str, Any] = {
            "scope": samples.scope(origin=f"https://{host}:443"),
            "descriptor": samples.descriptor(salt=f"0x{salt:064x}"),
            "authorised": authorised,
            "deposit": 1_000_000,
            "opened_at": self.now(),
            "updated_at": self._now,
            "folded": self.journal.mark,
        }
        if channel_id:
            usual["channel_id"] = channel_id
        channel = samples.ours(**(usual | fields))
        channel_id = channel.channel_id
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
        channel = replace(self.channels[channel_id], folded=self.journal.mark, updated_at=self.now())
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
