"""An event stream through the filter. The input: a number of piece sizes, the sizes, a byte for the limit (0xff: the
real one), and the body.

- Nothing is raised. The bytes that come out and the events taken out are those that a slow and simple reading of the
  whole body gives, however it is cut into pieces.
- What is said of an event that cannot be read can go to a log.
"""

from __future__ import annotations

from proxy_addon.core.sse import HELD_LIMIT, Malformed
from tests.fuzz.oracle import loggable
from tests.fuzz.target import Target
from tests.properties.sse_reference import reference, run


def one_input(data: bytes) -> None:
    number = data[0] % 9 if data else 0
    sizes, rest = list(data[1 : 1 + number]), data[1 + number :]
    limit = HELD_LIMIT if rest[:1] in (b"", b"\xff") else rest[0] + 1
    body = rest[1:]
    found = run(body, sizes if any(sizes) else [len(body) + 1], limit)
    expected = reference(body, limit)
    if found != expected:
        raise AssertionError(f"{body!r} in {sizes} under {limit}: {found!r}, expected {expected!r}")
    for event in found[1]:
        if isinstance(event, Malformed):
            loggable(event.reason)


def seeds() -> dict[str, bytes]:
    """They were written by hand."""
    return {}


TARGET = Target(
    one_input,
    seeds,
    words=(
        *(
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"event: payment-receipt",
            b"event:payment-need-voucher",
            b"event: message",
        ),
        *(
            b"data:",
            b"data: {}",
            b":",
            b": \n",
            b"\0",
            b"id: 1\n",
            b"event",
            b"event\n",
            b"\xef\xbb\xbf",
            b"retry:",
        ),
        *(b":\r", b":\r\n", b"a\n", b"a\r", b"a\r\n", b"event\r", b"event:\n"),
    ),
)
