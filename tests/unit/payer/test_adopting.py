"""The store is gone: the key alone finds every channel again, and brings its deposit home."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxy_addon.core.errors import LocalRefusal
from proxy_addon.demo.paid_api import PRICE
from proxy_addon.methods.contract import ChainState
from proxy_addon.methods.registry import METHODS
from proxy_addon.methods.tempo_session.v2 import RESERVE
from proxy_addon.payer import asking, closing, forcing
from proxy_addon.payer.adopting import FOUND_NOTE, Findings, adopt, origin_of, places, revive, search
from proxy_addon.payer.closing import close_channel
from proxy_addon.payer.forcing import GraceRunning, force_close
from proxy_addon.signer import SignerRefused
from store.channels import Conflict
from store.lifecycle import ChannelStatus
from tests.unit.payer.conftest import MakePayer
from tests.unit.payer.shop import DEPOSIT, Payer, Shop

S = ChannelStatus
ESCROWS = [(method, RESERVE) for method in METHODS.values()]


@pytest.fixture(autouse=True)
def quick_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (closing, forcing):
        monkeypatch.setattr(module, "POLL_S", 0.001)


def chain_name(payer: Payer) -> str:
    (name,) = payer.parts.chains
    return name


async def look(payer: Payer, **options: Any) -> Findings:
    records = {one.channel_id: one for one in await payer.store.all()}
    chain = payer.parts.chain(chain_name(payer))
    return await search(chain, chain_name(payer), payer.signer.address, ESCROWS, records, **options)


@pytest.fixture
async def lost(make_payer: MakePayer, shop: Shop) -> Payer:
    """A payer whose store is empty; another one paid three times with its key, from a store that is gone."""
    before = make_payer()
    for _ in range(3):
        assert (await before.get()).status == 200
    await before.settled()
    await before.die()
    return make_payer(key=before.key)


async def adopted(payer: Payer, resource: str | None = None) -> str:
    (one,) = (await look(payer)).lost
    return (await adopt(payer.parts, one, resource)).channel_id


async def sums(payer: Payer) -> dict[str, int]:
    counters = await payer.store.counters()
    families = ("host-day/", "total-day/", "lifetime/", "refunded/", "escrow/")
    return {
        family: sum(value for key, value in counters.items() if key.startswith(family)) for family in families
    }


class TestFound:
    async def test_every_channel_is_found_with_all_that_names_it(self, lost: Payer, shop: Shop) -> None:
        findings = await look(lost)
        (one,) = findings.lost
        (theirs,) = shop.accounts.values()
        assert one.found.channel_id == theirs.channel_id
        assert one.found.descriptor == theirs.descriptor
        assert (one.state.deposit, one.state.settled, one.left) == (DEPOSIT, 0, DEPOSIT)
        assert (findings.known, findings.ended) == ((), 0)

    async def test_what_has_ended_is_counted_and_what_is_on_record_left_alone(
        self, payer: Payer, shop: Shop
    ) -> None:
        assert (await payer.get()).status == 200
        await payer.settled()
        await payer.gate.release_idle(-1)
        (record,) = await payer.channels()
        findings = await look(payer)
        assert (findings.lost, findings.known) == ((), (record.channel_id,))
        await close_channel(payer.parts, record.channel_id)
        findings = await look(payer)
        assert (findings.lost, findings.known, findings.ended) == ((), (), 1)

    async def test_nobody_elses_is_found(self, lost: Payer, make_payer: MakePayer) -> None:
        other = make_payer()
        assert (await other.get()).status == 200
        await other.settled()
        assert len((await look(lost)).lost) == 1

    async def test_the_search_goes_no_further_back_than_told(self, lost: Payer, shop: Shop) -> None:
        seen: list[int] = []
        shop.clock.ahead += 10
        newest = shop.chain.head().number
        findings = await look(lost, from_block=newest, progress=lambda block, found: seen.append(block))
        assert findings.lost == ()
        assert set(seen) <= {newest, newest + 1}

    @pytest.mark.parametrize("change", ["data", "topics"])
    async def test_an_event_whose_parts_are_not_the_channels_is_passed_over(
        self, lost: Payer, monkeypatch: pytest.MonkeyPatch, change: str
    ) -> None:
        chain = lost.parts.chain(chain_name(lost))
        usual = type(chain).firm_logs

        async def odd(self: Any, *arguments: Any, **options: Any) -> Any:
            found = await usual(self, *arguments, **options)
            if change == "data":
                return tuple(
                    replace(log, data=log.data[:-64] + bytes(31) + b"\x01" + log.data[-32:]) for log in found
                )
            return tuple(replace(log, topics=log.topics[:3]) for log in found)

        monkeypatch.setattr(type(chain), "firm_logs", odd)
        assert (await look(lost)).lost == ()


class TestOnRecord:
    async def test_all_of_the_deposit_counts_as_authorised_and_nothing_is_free(
        self, lost: Payer, shop: Shop
    ) -> None:
        (theirs,) = shop.accounts.values()
        shop.api.payee.settle(theirs.channel_id)
        channel = await lost.store.find(await adopted(lost))
        assert channel is not None
        assert (channel.status, channel.owner, channel.note) == (S.ASIDE, None, FOUND_NOTE)
        assert (channel.authorised, channel.paid, channel.uncertain, channel.free) == (
            *(DEPOSIT, 3 * PRICE, DEPOSIT - 3 * PRICE),
            0,
        )
        assert channel.eligible_at > lost.parts.now()
        assert channel.scope.origin == f"unknown://{shop.api.payee.address}"
        assert await sums(lost) == {
            **{"host-day/": DEPOSIT, "total-day/": DEPOSIT, "lifetime/": DEPOSIT},
            **{"refunded/": 0, "escrow/": DEPOSIT},
        }

    async def test_nothing_is_ever_paid_with_it(self, lost: Payer) -> None:
        name = await adopted(lost, f"{lost.shop.url}/quote")
        channel = await lost.store.find(name)
        assert channel is not None
        assert channel.scope.host == "127.0.0.1:8000"
        assert (await lost.get()).status == 200
        await lost.settled()
        assert lost.till.channel.channel_id != name
        digest = lost.parts.method(channel).voucher_digest(channel, 1)
        with pytest.raises(SignerRefused, match="is aside"):
            lost.signer.sign_voucher(digest, channel, 1)

    async def test_twice_is_once(self, lost: Payer) -> None:
        (one,) = (await look(lost)).lost
        await adopt(lost.parts, one, None)
        with pytest.raises(Conflict, match="on record already"):
            await adopt(lost.parts, one, None)
        assert (await look(lost)).lost == ()


class TestHome:
    async def test_by_force(self, lost: Payer, shop: Shop) -> None:
        """Everything that the payee does not prove in time comes back."""
        name = await adopted(lost)
        before = shop.chain.balance(lost.signer.address)
        began = await force_close(lost.parts, name)
        assert isinstance(began, GraceRunning)
        shop.clock.ahead += began.wait_s
        await force_close(lost.parts, name)
        channel = await lost.store.find(name)
        assert channel is not None
        assert (channel.status, channel.captured, channel.refunded) == (S.CLOSED, 0, DEPOSIT)
        assert shop.chain.balance(lost.signer.address) == before + DEPOSIT - channel.fees
        assert (await sums(lost))["lifetime/"] == 0

    async def test_less_what_the_payee_proves_in_time(self, lost: Payer, shop: Shop) -> None:
        name = await adopted(lost)
        began = await force_close(lost.parts, name)
        assert isinstance(began, GraceRunning)
        shop.api.payee.settle(name)
        shop.clock.ahead += began.wait_s
        result = await force_close(lost.parts, name)
        assert not isinstance(result, GraceRunning)
        assert (result.captured, result.refunded) == (3 * PRICE, DEPOSIT - 3 * PRICE)

    async def test_a_server_that_proves_nothing_gets_no_signature(self, lost: Payer) -> None:
        name = await adopted(lost, f"{lost.shop.url}/quote")
        signed = len(lost.sent)
        with pytest.raises(LocalRefusal, match="does not prove what it has") as refused:
            await close_channel(lost.parts, name)
        assert refused.value.reason == "no-proof"
        channel = await lost.store.find(name)
        assert channel is not None
        assert (channel.status, len(lost.sent)) == (S.ASIDE, signed)

    async def test_somebody_may_allow_it_an_amount(self, lost: Payer) -> None:
        name = await adopted(lost, f"{lost.shop.url}/quote")
        result = await close_channel(lost.parts, name, up_to=5 * PRICE)
        assert (result.captured, result.refunded) == (3 * PRICE, DEPOSIT - 3 * PRICE)
        assert result.channel.close_amount == 5 * PRICE

    async def test_our_own_signature_is_proof(
        self, lost: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = await adopted(lost, f"{lost.shop.url}/quote")
        monkeypatch.setattr(asking, "proven", lambda channel, asked: 3 * PRICE)
        result = await close_channel(lost.parts, name)
        assert result.channel.close_amount == result.captured == 3 * PRICE

    async def test_without_a_server_it_says_what_to_do(self, lost: Payer) -> None:
        with pytest.raises(LocalRefusal, match=r"--server URL.*--force") as refused:
            await close_channel(lost.parts, await adopted(lost))
        assert refused.value.reason == "server-unknown"


class TestTombstones:
    async def test_one_that_the_chain_contradicts_is_found_and_taken_up(
        self, payer: Payer, shop: Shop, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert (await payer.get()).status == 200
        await payer.settled()
        await payer.gate.release_idle(-1)
        (record,) = await payer.channels()
        till = payer.parts.till(await payer.parts.claim(record.channel_id))
        state = await till.method.read_channel(payer.parts.chain(chain_name(payer)), record)
        lie = ChainState(False, 0, 0, None, state.block)

        async def lied(*arguments: Any) -> Any:
            from proxy_addon.methods.contract import Closing

            return Closing(DEPOSIT, 0, "0x" + "ee" * 32)

        with monkeypatch.context() as patched:
            patched.setattr(type(till.method), "read_closing", lied)
            await closing.closed(payer.parts, till, lie)
        assert (await payer.store.find(record.channel_id)).status is S.CLOSED  # type: ignore[union-attr]
        (one,) = (await look(payer)).lost
        assert one.record is not None
        channel = await adopt(payer.parts, one, None)
        assert (channel.status, channel.deposit, channel.authorised) == (S.ASIDE, DEPOSIT, PRICE)
        assert channel.transactions[: len(record.transactions)] == record.transactions
        assert not await revive(payer.parts, record.channel_id)
        assert (await sums(payer))["lifetime/"] == PRICE
        payer.honest = False


class TestServers:
    async def test_who_asks_for_payment_is_found_by_its_challenge(self, lost: Payer, shop: Shop) -> None:
        url = f"{shop.url}/quote"
        found = await places(lost.parts.outbound, ["http://127.0.0.1:8000/free", url])
        assert found == {(chain_name(lost), RESERVE, shop.api.payee.address): url}

    def test_the_origin_of_a_url(self) -> None:
        assert origin_of("https://API.example.com/paid?x=1") == "https://api.example.com:443"
        assert origin_of("http://127.0.0.1:8080/") == "http://127.0.0.1:8080"
        for bad in ("ftp://x/", "nonsense", "http://[", "http://x:99999999/"):
            with pytest.raises(ValueError, match="is no http"):
                origin_of(bad)
