"""A text message of a paid WebSocket's server.

- Nothing is raised. Text without the member ``mpp`` is the application's.
- What goes to the client can be sent: it is text without lone surrogates. What goes to a log can go there.
- Data, wrapped again, are the same data; amounts are within their bounds; the reason of a close fits its frame.
"""

from __future__ import annotations

import json

from proxy_addon.core import frames
from proxy_addon.core.messages import NeedVoucher, Receipt
from tests.fuzz import samples
from tests.fuzz.oracle import amount, exact, loggable, lower_hex
from tests.fuzz.target import Target
from tests.fuzz.targets.receipt import check as check_receipt


def one_input(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    match frames.read(text):
        case None:
            assert not claims_to_be_ours(text)
        case frames.Data(told):
            told.encode()
            assert frames.read(json.dumps({"mpp": "message", "data": told})) == frames.Data(told)
        case NeedVoucher() as need:
            amount(need.required_cumulative)
            amount(need.accepted_cumulative)
            amount(need.deposit)
            lower_hex(need.channel_id, 32)
        case Receipt() as receipt:
            check_receipt(receipt)
        case frames.CloseReady(receipt):
            check_receipt(receipt)
        case frames.Failed(status, message):
            exact(status)
            loggable(f"{message:.200}")
            assert len(frames.close(frames.POLICY, message).reason.encode()) <= 123
        case frames.Unreadable(name, reason):
            loggable(f"{name} {reason}")
            assert len(frames.close(frames.POLICY, reason).reason.encode()) <= 123


def claims_to_be_ours(text: str) -> bool:
    """Is it plainly a payment frame? Then a client must not get it, readable or not."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    name = found.get("mpp") if isinstance(found, dict) and '"mpp"' in text else None
    return isinstance(name, str) and (name == "authorization" or name.startswith("payment-"))


def seeds() -> dict[str, bytes]:
    def frame(name: str, **more: object) -> bytes:
        return samples.dumps({"mpp": name, **more})

    return {
        "message.json": frame("message", data='{"tok": "caf\\u00e9 😀"}'),
        "need_voucher.json": frame("payment-need-voucher", data=samples.need_voucher()),
        "receipt.json": frame("payment-receipt", data=samples.receipt()),
        "close_ready.json": frame("payment-close-ready", data=samples.receipt()),
        "error.json": frame("payment-error", status=402, message="verification failed"),
        "close_request.json": frame("payment-close-request"),
        "digits.json": b'{"mpp":"payment-receipt","data":' + b"1" * 5000 + b"}",
        "deep_receipt.json": b'{"mpp": "payment-receipt", "data": ' + b"[" * 40 + b"]" * 40 + b"}",
        "cut_off": frame("payment-need-voucher", data=samples.need_voucher())[:-9],
        "odd_name.json": b'{"mpp": "payment-\\u001b[31m\\n", "data": "\\ud800"}',
        "odd_message.json": b'{"mpp": "payment-error", "status": true, "message": "\\ud800\\n"}',
        "plain.json": b'{"hello": "world"}',
    }


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b'"mpp":',
            b'"data":',
            b'"message"',
            b'"status":',
            b'"payment-',
            b"payment-receipt",
            b"authorization",
        ),
        *(
            b"payment-close-request",
            b"payment-error",
            b"\\ud800",
            b"\\n",
            b"\\u001b[31m",
            b"NaN",
            b"1e999",
            b"null",
        ),
        *(b"[[[[", b'{"a":', b"1" * 90, b"true"),
    ),
)
