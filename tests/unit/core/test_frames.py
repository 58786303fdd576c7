"""The in-band frames of a paid WebSocket."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.core import frames
from proxy_addon.core.messages import NeedVoucher, Receipt

CHANNEL = "0x" + "ab" * 32
NEED = {"channelId": CHANNEL, "requiredCumulative": "300", "acceptedCumulative": "200", "deposit": "1000"}
RECEIPT = {
    "method": "tempo",
    "intent": "session",
    "status": "success",
    "timestamp": "2026-01-01T00:00:00.000Z",
    "reference": CHANNEL,
    "challengeId": "c",
    "channelId": CHANNEL,
    "acceptedCumulative": "300",
    "spent": "200",
    "units": 2,
}


def frame(name: str, **members: Any) -> str:
    return json.dumps({"mpp": name, **members})


def test_need_voucher() -> None:
    need = frames.read(frame("payment-need-voucher", data=NEED))
    assert need == NeedVoucher(
        channel_id=CHANNEL, required_cumulative=300, accepted_cumulative=200, deposit=1000
    )


def test_receipts() -> None:
    receipt = frames.read(frame("payment-receipt", data=RECEIPT))
    assert isinstance(receipt, Receipt)
    assert (receipt.channel_id, receipt.accepted_cumulative, receipt.spent) == (CHANNEL, 300, 200)
    assert frames.read(frame("payment-close-ready", data=RECEIPT)) == frames.CloseReady(receipt)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (frame("message", data="hello"), frames.Data("hello")),
        (frame("message", data=""), frames.Data("")),
        (frame("message", data='{"mpp":"payment-receipt"}'), frames.Data('{"mpp":"payment-receipt"}')),
        ('{"mpp":"message","data":"\\ud83d\\ude00 \\ud83d"}', frames.Data("\U0001f600 \ufffd")),
        (frame("payment-error", status=402, message="no"), frames.Failed(402, "no")),
        (frame("payment-error", status="402"), frames.Failed(0, "")),
    ],
)
def test_frames(text: str, expected: frames.Frame) -> None:
    assert frames.read(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        '"mpp"',
        '["mpp"]',
        '{"mpp":',
        frame("else"),
        frame("message", data=1),
        frame("message"),
        '{"mpp": 7, "data": "x"}',
        '{"mpp": {"mpp": "message"}}',
        '{"a":{"mpp":"message","data":"x"}}',
        '{"mpp":' * 100_000,
    ],
    ids=lambda text: text[:30],
)
def test_the_applications_own_text(text: str) -> None:
    assert frames.read(text) is None


@pytest.mark.parametrize(
    "text",
    [
        frame("payment-need-voucher"),
        frame("payment-need-voucher", data={**NEED, "requiredCumulative": "-1"}),
        frame("payment-need-voucher", data={**NEED, "requiredCumulative": 300}),
        frame("payment-receipt", data={**RECEIPT, "status": "failure"}),
        frame("payment-receipt", data=[]),
        frame("payment-close-ready", data={}),
        frame("payment-close-request"),
        frame("authorization", authorization="Payment x"),
        frame("payment-something-new", data="x"),
    ],
    ids=lambda text: text[:60],
)
def test_what_claims_to_be_of_the_payment_never_passes(text: str) -> None:
    assert isinstance(frames.read(text), frames.Unreadable)


@given(st.text())
def test_data_comes_out_as_it_went_in(text: str) -> None:
    wrapped = json.dumps({"mpp": "message", "data": text}, ensure_ascii=False)
    assert frames.read(wrapped) == frames.Data(text)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["mpp", "data", "status", "x"]), inner)
)))  # fmt: skip
def test_any_json_is_read(value: Any) -> None:
    frames.read(json.dumps(value))


def test_authorization() -> None:
    assert json.loads(frames.authorization("Payment abc")) == {
        "mpp": "authorization",
        "authorization": "Payment abc",
    }


def test_a_reason_fits_a_control_frame() -> None:
    assert frames.close(1000) == frames.Close(1000, "")
    assert frames.close(1008, "é" * 100) == frames.Close(1008, "é" * 61)


def test_nesting_that_could_end_the_process_is_the_applications_business() -> None:
    """Where the recursion limit is high (a dependency raises it), json's parser overflows the C stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        assert frames.read('{"mpp": ' + "[" * 100_000) is None
    finally:
        sys.setrecursionlimit(limit)


@pytest.mark.parametrize("status", [99, 100, 101, 402, 598, 599, 600, -1, True, None, 402.0])
def test_a_status_is_one_of_http(status: object) -> None:
    known = type(status) is int and status in (100, 101, 402, 598, 599)
    assert frames.read(frame("payment-error", status=status, message="no")) == frames.Failed(
        status if known and isinstance(status, int) else 0, "no"
    )


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"mpp":"payment-receipt","data":', "payment-receipt"),
        (' { "mpp" : "payment-need-voucher" , nothing', "payment-need-voucher"),
        ('{"mpp":"authorization"', "authorization"),
        ('{"mpp":"payment-receipt","data":' + "[" * 5_000, "payment-receipt"),
        (frame("payment-" + "x" * 100, data=1), "payment-" + "x" * 32),
    ],
    ids=lambda text: text[:30],
)
def test_what_claims_to_be_of_the_payment_is_reported_by_its_name(text: str, name: str) -> None:
    found = frames.read(text)
    assert isinstance(found, frames.Unreadable)
    assert found.name == name
    assert 0 < len(found.reason) <= 200


def test_the_codes_and_limits_are_those_of_websockets() -> None:
    """RFC 6455 sections 5.5 and 7.4.1: a control frame carries 125 bytes, two of them the code."""
    assert (frames.NORMAL, frames.POLICY) == (1000, 1008)
    assert len(frames.close(frames.NORMAL, "x" * 500).reason) == 123


@pytest.mark.parametrize(("length", "shown"), [(199, 199), (200, 200), (201, 200), (5_000, 200)])
def test_how_much_of_a_servers_words_is_logged(length: int, shown: int) -> None:
    assert frames.printable("x" * length) == "x" * shown
    assert frames.printable("a\x1b[2Jb") == "a\N{REPLACEMENT CHARACTER}[2Jb"


@pytest.mark.parametrize(("digits", "readable"), [(79, True), (80, True), (81, False), (5_000, False)])
def test_a_number_without_end_is_no_receipts(digits: int, readable: bool) -> None:
    """One that is merely large is no count of units; the receipt holds all the same."""
    found = frames.read(
        frame("payment-receipt", data=RECEIPT).replace('"units": 2', '"units": ' + "9" * digits)
    )
    if readable:
        assert isinstance(found, Receipt)
        assert (found.units, found.spent) == (None, 200)
        return
    assert isinstance(found, frames.Unreadable)
