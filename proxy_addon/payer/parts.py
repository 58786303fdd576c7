"""What every part of the payer is given: the store, the signer, the chains, the ledger, the clock."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from proxy_addon.audit import Audit, Clock
from proxy_addon.chain import ChainClient
from proxy_addon.core.errors import LocalRefusal
from proxy_addon.methods.contract import Method
from proxy_addon.methods.registry import method_of
from proxy_addon.outbound import Outbound
from proxy_addon.payer.till import Till
from proxy_addon.signer import Signer
from store import account
from store.account import UNKNOWN_MARGIN_MS, IllegalMove
from store.amounts import Token
from store.channels import ChannelStore
from store.journal import moves_after
from store.records import Channel

LONGEST_CHALLENGE_MS: Final = 3_600_000
"""Challenges that live longer are refused: until they expire, a lost request could still become charged."""


def random_salt() -> bytes:
    return os.urandom(32)


@dataclass(frozen=True, slots=True)
class Parts:
    """Handed down, never reached for: tests put in their own clock, store, chain."""

    store: ChannelStore
    signer: Signer | None  # None: nothing can be signed (shadow mode, or a command that only reads)
    chains: Mapping[str, ChainClient]
    audit: Audit
    ledger: Path
    now: Clock
    token: Callable[[str, str], Token]
    outbound: Outbound
    salt: Callable[[], bytes] = random_salt

    def chain(self, caip2: str) -> ChainClient:
        try:
            return self.chains[caip2]
        except KeyError:
            raise LocalRefusal("no-chain", f'no RPC endpoint for {caip2}; add [chains."{caip2}"]') from None

    def need_signer(self) -> Signer:
        if self.signer is None:
            raise LocalRefusal(
                "no-key",
                "no key to pay with; set [wallet].keystore or [wallet].private_key_env (bursar init makes one)",
            )
        return self.signer

    def method(self, channel: Channel) -> Method:
        try:
            return method_of(channel.scope.family, channel.scope.version)
        except KeyError:
            raise LocalRefusal(
                "unknown-method",
                f"channel {channel.channel_id} is of {channel.scope.family}/{channel.scope.version},"
                " which this version does not know; a newer one wrote it",
            ) from None

    def till(self, channel: Channel) -> Till:
        return Till(
            channel,
            store=self.store,
            method=self.method(channel),
            signer=self.need_signer(),
            audit=self.audit,
            now=self.now,
        )

    async def claim(self, channel_id: str) -> Channel:
        """Own a channel, with what its last owner left in its journal folded in. Raises `ChannelBusy`."""
        found: list[tuple[Channel, Channel, bool]] = []

        def recover(channel: Channel) -> Channel:
            recovered, whole = self.recover(channel)
            found[:] = [(channel, recovered, whole)]
            return replace(recovered, folded=self.audit.journal.mark)

        channel = await self.store.claim(channel_id, recover, mark=self.audit.journal.mark)
        for before, after, whole in found:
            doubt = after.uncertain - before.uncertain
            told = (
                "its journal was folded in"
                if whole
                else "the machine was restarted: all that was not paid is uncertain"
            )
            self.audit.note(
                "recovered",
                f"channel {channel_id} was left by another process; {told}"
                f" ({self.token(channel.scope.chain, channel.scope.token).show(doubt)} more uncertain)",
                channel_id=channel_id,
                host=channel.scope.host,
                reason="unattributed" if not whole else None,
                amount=str(doubt),
            )
        return channel

    def recover(self, channel: Channel) -> tuple[Channel, bool]:
        """The record as its dead owner's journal completes it; False if that journal cannot be relied on."""
        mark = channel.folded
        if mark is not None and mark.boot_id == self.audit.journal.boot:
            try:
                return account.fold(channel, moves_after(self.ledger, mark, channel.channel_id)), True
            except IllegalMove:
                pass  # the lines contradict the record: believe neither
        return account.doubt_everything(channel, self.now() + LONGEST_CHALLENGE_MS + UNKNOWN_MARGIN_MS), False
