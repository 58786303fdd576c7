"""What several endpoints say alike; against real HTTP endpoints that lie, lag and contradict each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.agreement import MOST_LAG, Disagreement, agree, firm_number
from proxy_addon.chain import ChainClient
from proxy_addon.core.errors import ChainUnavailable
from proxy_addon.methods.contract import ChainHead
from tests.unit.methods.samples import TOKEN
from tests.unit.test_chain import (
    CHAIN_ID,
    HASH,
    RAW,
    RAW_HASH,
    SECRET,
    Endpoint,
    block,
    drop,
    log,
    receipt,
    refuses,
)


class Silent(Exception):
    """No usable answer."""


def asker(*answers: object) -> tuple[Callable[[int], Awaitable[Any]], list[int]]:
    asked: list[int] = []

    async def ask(number: int) -> object:
        asked.append(number)
        answer = answers[number]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask, asked


async def ask_all(needed: int, *answers: object) -> tuple[object, list[int]]:
    ask, asked = asker(*answers)
    hosts = [f"host{number}" for number in range(len(answers))]
    found = await agree(hosts, ask, needed=needed, unusable=Silent, what="a question")
    return found, asked


@pytest.mark.parametrize(
    ("needed", "answers", "found", "asked"),
    [
        (1, ("a", "b"), "a", [0]),
        (2, ("a", "a", "a"), "a", [0, 1]),
        (2, ("a", "b", "a"), "a", [0, 1, 2]),
        (2, ("b", "a", "a"), "a", [0, 1, 2]),
        (2, (Silent("x"), "a", "a"), "a", [0, 1, 2]),
        (2, ("a", Silent("x"), "a"), "a", [0, 1, 2]),
        (3, ("a", "b", "a", "a"), "a", [0, 1, 2, 3]),
        (2, (None, None), None, [0, 1]),
        (2, (b"\x01", b"\x01"), b"\x01", [0, 1]),
    ],
)
async def test_an_answer_with_enough_voices_is_believed(
    needed: int, answers: tuple[object, ...], found: object, asked: list[int]
) -> None:
    assert await ask_all(needed, *answers) == (found, asked)


@pytest.mark.parametrize("answers", [("a", "b"), ("a", "b", "c"), ("a", Silent("x"), "b")])
async def test_a_contradiction_names_all_of_them(answers: tuple[object, ...]) -> None:
    with pytest.raises(Disagreement, match="contradict each other") as caught:
        await ask_all(2, *answers)
    for number, answer in enumerate(answers):
        assert f"host{number}: {answer if isinstance(answer, Exception) else repr(answer)}" in str(
            caught.value
        )


async def test_too_few_answers_are_no_contradiction() -> None:
    with pytest.raises(ChainUnavailable, match="1 of the 2 endpoints that must agree answered") as caught:
        await ask_all(2, "a", Silent("it is down"))
    assert not isinstance(caught.value, Disagreement)
    assert "host1: it is down" in str(caught.value)


async def test_another_error_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        await ask_all(2, "a", ZeroDivisionError())


async def test_a_long_answer_is_not_repeated_at_length() -> None:
    with pytest.raises(Disagreement) as caught:
        await ask_all(2, b"\x01" * 5000, b"\x02" * 5000)
    assert len(str(caught.value)) < 600


@given(st.lists(st.sampled_from("abcx"), min_size=1, max_size=6), st.integers(1, 6))
def test_nothing_is_believed_with_too_few_voices(said: list[str], needed: int) -> None:
    needed = min(needed, len(said))
    answers = [Silent("x") if one == "x" else one for one in said]
    most = max((said.count(one) for one in set(said) - {"x"}), default=0)
    try:
        found, _ = asyncio.run(ask_all(needed, *answers))
    except ChainUnavailable:
        assert most < needed
    else:
        assert said.count(str(found)) >= needed


@pytest.mark.parametrize(
    ("heads", "needed", "confirmations", "number"),
    [
        ((7,), 1, 0, 7),
        ((7,), 1, 3, 4),
        ((2,), 1, 3, 0),
        ((10, 9, 8), 1, 0, 10),
        ((8, 10, 9), 2, 0, 9),
        ((8, 10, 9), 3, 1, 7),
        ((1000, 1000 - MOST_LAG), 2, 0, 1000 - MOST_LAG),
        ((10**9, 100, 99), 2, 0, 99),  # one lies about the future
        ((7, 1000, 1001), 2, 0, 1000),  # one is far behind
    ],
)
def test_the_newest_block_that_enough_have(
    heads: tuple[int, ...], needed: int, confirmations: int, number: int
) -> None:
    named = [(f"host{index}", head) for index, head in enumerate(heads)]
    assert firm_number(named, needed, confirmations) == number


@pytest.mark.parametrize("heads", [(1000, 999 - MOST_LAG), (10**9, 7)])
def test_an_endpoint_that_shows_the_past_or_the_future_is_named(heads: tuple[int, int]) -> None:
    with pytest.raises(Disagreement, match=r"for host0, and .* for host1"):
        firm_number([("host0", heads[0]), ("host1", heads[1])], 2, 0)


# -- endpoints

STATE = "0x" + "00" * 31 + "2a"
LIE = "0x" + "00" * 31 + "ff"


def says(endpoint: Endpoint, *, number: int = 100, call: object = STATE, block_hash: str = HASH) -> Endpoint:
    endpoint.results |= {
        "eth_getBlockByNumber": block(number=hex(number), hash=block_hash),
        "eth_call": call,
        "eth_getTransactionReceipt": receipt(blockNumber="0x5"),
        "eth_getLogs": [log(blockNumber="0x5")],
        "eth_sendRawTransaction": RAW_HASH,
    }
    return endpoint


@pytest.fixture
def endpoints() -> Iterator[list[Endpoint]]:
    started = [says(Endpoint()) for _ in range(3)]
    yield started
    for one in started:
        one.stop()


@pytest.fixture
async def of_two(endpoints: list[Endpoint]) -> AsyncIterator[ChainClient]:
    client = ChainClient([one.url for one in endpoints], CHAIN_ID, timeout_s=5, quorum=2)
    yield client
    await client.aclose()


async def everything(chain: ChainClient) -> list[object]:
    head = await chain.firm_head()
    return [
        head,
        await chain.firm_call(TOKEN, b"\x01", head),
        await chain.firm_receipt(HASH, head),
        await chain.firm_logs(TOKEN, [HASH], from_block=0, to_block=head.number),
    ]


async def test_two_that_agree_are_believed(endpoints: list[Endpoint], of_two: ChainClient) -> None:
    head, data, found, logs = await everything(of_two)
    assert isinstance(head, ChainHead)
    assert (head.number, data) == (100, bytes(31) + b"\x2a")
    assert found is not None
    assert logs
    assert "eth_call" not in endpoints[2].methods()  # the third is asked only if it is needed


@pytest.mark.parametrize("liar", [0, 1, 2])
async def test_one_that_lies_changes_nothing(
    endpoints: list[Endpoint], of_two: ChainClient, liar: int
) -> None:
    honest = await everything(of_two)
    says(endpoints[liar], call=LIE)
    endpoints[liar].results |= {"eth_getTransactionReceipt": None, "eth_getLogs": []}
    assert await everything(of_two) == honest


async def test_two_that_lie_differently_are_named_and_not_believed(
    endpoints: list[Endpoint], of_two: ChainClient
) -> None:
    says(endpoints[0], call=LIE)
    endpoints[2].answer = drop
    head = ChainHead(100, 1, 1)
    with pytest.raises(Disagreement) as caught:
        await of_two.firm_call(TOKEN, b"\x01", head)
    for one, told in ((endpoints[0], LIE), (endpoints[1], STATE)):
        assert f"{one.host}: {told}" in str(caught.value)
    assert endpoints[2].host in str(caught.value)
    assert SECRET not in str(caught.value)


async def test_a_fork_is_a_contradiction(endpoints: list[Endpoint], of_two: ChainClient) -> None:
    """The same number, another block: what is read in it is no one thing."""
    for index, one in enumerate(endpoints):
        says(one, block_hash="0x" + f"{index:02x}" * 32)
    with pytest.raises(Disagreement, match="eth_getBlockByNumber"):
        await of_two.firm_head()


async def test_one_of_another_time_is_named(endpoints: list[Endpoint], of_two: ChainClient) -> None:
    says(endpoints[0], number=10**6)
    assert (await of_two.firm_head()).number == 100
    endpoints[2].answer = drop
    with pytest.raises(Disagreement, match=r"the newest block is 1000000 for .*, and 100 for"):
        await of_two.firm_head()


async def test_with_one_endpoint_left_nothing_is_firm(endpoints: list[Endpoint], of_two: ChainClient) -> None:
    endpoints[0].answer = drop
    endpoints[1].answer = refuses("pruned")
    assert await of_two.balance(TOKEN, TOKEN) == 42  # what is not firm goes on
    for read in (of_two.head(), of_two.firm_head(), of_two.firm_call(TOKEN, b"", ChainHead(1, 1, 1))):
        with pytest.raises(ChainUnavailable, match="1 of the 2 endpoints that must agree"):
            await read


async def test_what_is_not_deep_enough_is_not_firm(endpoints: list[Endpoint]) -> None:
    one = endpoints[0]
    asked: list[str] = []

    def answer(handler: Any, message: dict[str, Any]) -> None:
        from tests.unit.test_chain import reply

        name = message["params"][0]
        asked.append(name)
        number = "0x64" if name == "latest" else name
        reply(handler, {"jsonrpc": "2.0", "id": 1, "result": block(number=number, hash=HASH)})

    one.answer = answer
    client = ChainClient([one.url], CHAIN_ID, confirmations=3)
    assert (await client.firm_head()).number == 97
    assert asked == ["latest", "0x61"]
    await client.aclose()


async def test_a_receipt_of_a_block_that_is_not_firm_is_none(
    endpoints: list[Endpoint], of_two: ChainClient
) -> None:
    assert await of_two.firm_receipt(HASH, ChainHead(4, 1, 1)) is None
    assert await of_two.firm_receipt(HASH, ChainHead(5, 1, 1)) is not None


async def test_a_transaction_is_given_to_all(endpoints: list[Endpoint], of_two: ChainClient) -> None:
    """One that takes it and keeps it to itself cannot hold it up."""
    assert await of_two.send_raw(RAW) == RAW_HASH
    await asyncio.gather(*of_two._broadcasts)
    assert all("eth_sendRawTransaction" in one.methods() for one in endpoints)


async def test_one_that_takes_it_is_enough(endpoints: list[Endpoint], of_two: ChainClient) -> None:
    endpoints[0].answer = drop
    endpoints[1].answer = refuses("nonce too low")
    assert await of_two.send_raw(RAW) == RAW_HASH


@pytest.mark.parametrize("quorum", [0, 2])
def test_more_voices_than_endpoints_cannot_be(quorum: int) -> None:
    with pytest.raises(ValueError, match=f"{quorum} of 1 RPC endpoints cannot agree"):
        ChainClient(["https://a.example/1", "https://a.example/1"], CHAIN_ID, quorum=quorum)
