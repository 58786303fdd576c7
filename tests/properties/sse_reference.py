"""What `proxy_addon.core.sse` must give, worked out on the whole body at once: slow and simple."""

from __future__ import annotations

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import parse_need_voucher, parse_receipt_json
from proxy_addon.core.sse import HELD_LIMIT, EventFilter, Malformed, PaymentEvent, PaymentName

BOM = "\ufeff".encode()


def reference(body: bytes, limit: int) -> tuple[bytes, list[PaymentEvent]]:
    """The bytes for the client, and the payment events."""
    out, events, block = b"", list[PaymentEvent](), list[bytes]()
    if body.startswith(BOM):
        out, body = BOM, body.removeprefix(BOM)
    for line in body.splitlines(keepends=True):  # of bytes: at LF, CR and CRLF, nowhere else
        if not block and line[:1] in (b":", b"\r", b"\n"):
            out += line
            continue
        block.append(line)
        if not line.strip(b"\r\n"):
            passed, event = _read(block, limit)
            out, events, block = out + passed, events + event, []
    passed, event = _read(block, limit)
    return out + passed, events + event


def run(body: bytes, cuts: list[int], limit: int = HELD_LIMIT) -> tuple[bytes, list[PaymentEvent]]:
    """The same from the filter, fed with pieces of the given sizes, over and over (not all of them 0)."""
    filter_, out, events, position = EventFilter(held_limit=limit), b"", list[PaymentEvent](), 0
    while position < len(body):
        for size in cuts:
            fed = filter_.feed(body[position : position + size])
            out, position = out + fed.out, position + size
            events += fed.events
    fed = filter_.end()
    return out + fed.out, events + list(fed.events)


def _read(block: list[bytes], limit: int) -> tuple[bytes, list[PaymentEvent]]:
    size, fields = 0, list[tuple[bytes, bytes]]()
    name = None
    for line in block:
        text = line.strip(b"\r\n")
        size_at_end = size + len(text) + (text != line)
        size += len(line)
        key, _, value = text.partition(b":")
        fields.append((key, value[1:] if value[:1] == b" " else value))
        if key == b"event" and name is None:
            name = fields[-1][1]
            if size_at_end > limit:  # too late to have been waited for
                return b"".join(block), []
    if name not in (b"payment-need-voucher", b"payment-receipt"):
        return b"".join(block), []
    known: PaymentName = "payment-receipt" if name == b"payment-receipt" else "payment-need-voucher"
    if size - (block[-1] == b"\r\n") > limit:
        return b"", [Malformed(known, f"the event is longer than {limit} bytes")]
    values = [value for key, value in fields if key == b"data"]
    if not values:
        return b"", [Malformed(known, "the event has no data")]
    data = b"\n".join(values)
    try:
        return b"", [parse_receipt_json(data) if known == "payment-receipt" else parse_need_voucher(data)]
    except RemoteProtocolError as error:
        return b"", [Malformed(known, str(error))]
