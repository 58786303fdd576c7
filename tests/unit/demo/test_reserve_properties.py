"""Whatever is sent to the reserve, the money adds up and no channel breaks its rules."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.demo import reserve
from proxy_addon.demo.chain import PATH_USD, SimulatedChain
from proxy_addon.demo.challenges import Challenges
from proxy_addon.methods.abi import to_bytes
from proxy_addon.methods.tempo_session.v2 import RESERVE
from store.records import Channel
from tests.unit.demo.wallet import Wallet

FUNDS = 3_000_000
PAYEE_KEY = bytes.fromhex("22" * 32)

amounts = st.integers(0, 400_000) | st.sampled_from([2**96 - 1])
steps = st.tuples(
    st.sampled_from(["open", "top_up", "request", "withdraw", "settle", "close", "warp"]),
    st.integers(0, 2),  # which channel
    amounts,
    amounts,
    st.booleans(),  # by the one who may, or by the other
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=14))
def test_the_money_adds_up(moves: list[tuple[str, int, int, int, bool]]) -> None:
    chain = SimulatedChain(clock=lambda: 1_700_000_000.0)
    payer, payee = Wallet(chain), Wallet(chain, PAYEE_KEY)
    for wallet in (payer, payee):
        chain.fund(wallet.address, FUNDS)
    terms = Challenges(clock=chain.clock, chain_id=chain.chain_id, payee=payee.address, token=PATH_USD)
    challenge = terms.make(1)
    channels: list[Channel] = []
    settled: dict[str, int] = {}
    for name, index, amount, capture, honest in moves:
        raw = b""
        if name == "warp":
            chain.warp(amount % 1000)
        elif name == "open":
            planned = payer.plan(challenge, amount % 500_000 + 1)
            assert planned.pending is not None
            channels.append(planned)
            raw = to_bytes(planned.pending.raw)
        elif channels:
            channel = channels[index % len(channels)]
            payer_side, payee_side = (payer, payee) if honest else (payee, payer)
            if name == "top_up":
                raw = to_bytes(payer_side.top_up_payload(channel, amount)["transaction"])
            elif name == "request":
                raw = payer_side.request_close(channel)
            elif name == "withdraw":
                raw = payer_side.withdraw(channel)
            elif name == "settle":
                signature = payer.voucher(channel, amount)
                raw = payee_side.transaction(reserve.encode_settle(channel.descriptor, amount, signature))
            else:
                signature = payer.voucher(channel, amount)
                data = reserve.encode_close(channel.descriptor, amount, capture, signature)
                raw = payee_side.transaction(data)
        if raw and not honest and name != "open":
            before = chain.balance(RESERVE)
            assert not chain.transactions[chain.send(raw)].succeeded
            assert chain.balance(RESERVE) == before
        elif raw:
            chain.send(raw)
        states = {channel.channel_id: chain.channel(channel.channel_id) for channel in channels}
        assert chain.supply() == 2 * FUNDS
        assert chain.balance(RESERVE) == sum(one.deposit - one.settled for one in states.values())
        for channel_id, state in states.items():
            assert state.settled <= state.deposit
            assert state.deposit == 0 or state.settled >= settled.get(channel_id, 0)
            settled[channel_id] = state.settled
