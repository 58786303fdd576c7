"""Takes the payment events out of an event stream, and passes every other byte unchanged and early.

The grammar is the HTML standard's (section 9.2.6, "Interpreting an event stream"): lines end in LF, CR or CRLF,
an empty line ends an event, a line that begins with a colon is a comment, one space after a field's colon
does not count, a BOM may come first. An event is a payment event if its first ``event`` field says so.

What is held back, and for how long:

- An event's lines wait until its ``event`` field is read, for it may stand behind the data. Of an event that
  begins with ``event: message`` nothing waits: a name that has left the beginning of a payment event's name
  is decided, even in the middle of its line. The servers of this protocol write the name first.
- An event without a name waits for its empty line, at most `HELD_LIMIT` bytes: a longer one is released, passes
  as it comes, and can then no longer be a payment event.
- Comments before an event's first field (keep-alives) and surplus empty lines do not wait, and stay when
  the event behind them is taken out.
- A payment event is kept until its empty line, at most `HELD_LIMIT` bytes; the rest of a longer one is dropped.

Where this differs from the standard, on purpose: the first ``event`` field decides, where the standard takes the
last (nobody writes two, and the bytes of the first have left); and a payment event that the body's end cuts off
before its empty line is taken out and read, where a client would discard it.

Nothing here depends on how the body is cut into pieces: the same bytes come out, and the same events.
The work is linear in the body, the memory bounded by `HELD_LIMIT` and the piece at hand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, Literal, assert_never

from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.messages import NeedVoucher, Receipt, parse_need_voucher, parse_receipt_json

HELD_LIMIT: Final = 64 * 1024
"""The most bytes of one event that are held. A payment event's data has a limit of its own, 16 KB."""

PaymentName = Literal["payment-need-voucher", "payment-receipt"]

_CR: Final = 0x0D
_LF: Final = 0x0A
_COLON: Final = 0x3A
_BOM: Final = b"\xef\xbb\xbf"
_END_OF_LINE: Final = re.compile(rb"[\r\n]")
# Comments and empty lines; and lines of an event that say nothing of its name. Whole lines only, as many as there
# are in one go: a body of nothing else must not cost a step of ours for each. A CR at the end may be the half of a
# CRLF: such a line is left to the step for one.
_IDLE: Final = re.compile(rb"(?:[\r\n]++|:[^\r\n]*+[\r\n])++")
_WHOLE: Final = rb"[^\r\n]++(?:\n|\r\n|\r(?=[^\n]))"
_NAMELESS: Final = re.compile(rb"(?:(?!event[:\r\n])" + _WHOLE + rb")++")
_LINES: Final = re.compile(rb"(?:" + _WHOLE + rb")++")
# The end of a line and the first byte of the empty one behind it. Possessive: the two bytes of a CRLF are one end.
_EMPTY_LINE: Final = re.compile(rb"(?:\r\n?+|\n)[\r\n]")
_EMPTY: Final = (b"\n\n", b"\n\r", b"\r\r")  # the same: one of these is in every match of `_EMPTY_LINE`
_DATA: Final = re.compile(rb"(?:\A|[\r\n])data(?:: ?([^\r\n]*+))?(?![^\r\n])")
_NAMED: Final[dict[bytes, PaymentName]] = {
    b"event:payment-need-voucher": "payment-need-voucher",
    b"event: payment-need-voucher": "payment-need-voucher",
    b"event:payment-receipt": "payment-receipt",
    b"event: payment-receipt": "payment-receipt",
}
_LIKE_A_NAME: Final = re.compile(rb"event: ?payment-")
_LONGEST: Final = max(map(len, _NAMED))
_BEGINNINGS: Final = frozenset(line[:size] for line in _NAMED for size in range(len(line) + 1))


@dataclass(frozen=True, slots=True)
class Malformed:
    """A payment event that cannot be read. It is taken out all the same; `reason` is for the log."""

    name: PaymentName
    reason: str


PaymentEvent = NeedVoucher | Receipt | Malformed


@dataclass(frozen=True, slots=True)
class Fed:
    """What a piece of the body has brought: bytes for the client, and the events taken out, in order."""

    out: bytes
    events: tuple[PaymentEvent, ...] = ()


class _State(Enum):
    BETWEEN = auto()  # at the start of a line, no field of an event yet
    COMMENT = auto()  # in a comment before an event's first field
    HOLDING = auto()  # in an event: not named yet, or a payment event
    PASSING = auto()  # in an event that is none, or is too long to have become one
    DROPPING = auto()  # in a payment event that has been reported as too long


class EventFilter:
    """One body of type ``text/event-stream``, decoded (no Content-Encoding), from its first byte."""

    def __init__(self, *, held_limit: int = HELD_LIMIT) -> None:
        self._limit = held_limit
        self._state = _State.BETWEEN
        self._name: PaymentName | None = None
        self._held = bytearray()
        self._line = 0  # where in `_held` the current line begins
        self._fresh = True  # PASSING, DROPPING: at the start of a line
        self._cr = (
            False  # the last byte was an event's CR: an LF now belongs to it (elsewhere it passes anyway)
        )
        self._taken = False  # the last byte was the end of an event that was taken out
        self._start: bytes | None = b""  # what came before it was clear whether there is a BOM
        self._out: list[bytes] = []
        self._events: list[PaymentEvent] = []

    def feed(self, data: bytes) -> Fed:
        """The next piece of the body, of any size. Never raises."""
        if self._start is not None:
            data = self._start + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._start = data
                return Fed(b"")
            self._start = None
            if data.startswith(_BOM):
                self._out.append(_BOM)
                data = data[len(_BOM) :]
        self._read(data)
        return self._fed()

    def end(self) -> Fed:
        """The body is over. What was still held comes out, unless it is a payment event."""
        if self._start:
            self._out.append(self._start)
        if self._state is _State.HOLDING:
            if self._name is None:
                self._name = _NAMED.get(bytes(self._held[self._line :]))
            self._close_held()
        self._state, self._start = _State.BETWEEN, None
        return self._fed()

    def _fed(self) -> Fed:
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        fed = Fed(out, tuple(self._events))
        self._out, self._events = [], []
        return fed

    def _read(self, data: bytes) -> None:
        position = searched = 0
        while position < len(data):
            if self._cr:
                self._cr = False
                if data[position] == _LF:
                    self._second_byte_of_crlf()
                    position += 1
                    continue
            match self._state:
                case _State.BETWEEN if position >= searched:
                    name = _first_name(data, position)
                    position = self._skip(data, position, name)
                    searched = name + 1  # not again before that: the work stays linear, and goes on
                case _State.BETWEEN:
                    position = self._between(data, position)
                case _State.COMMENT:
                    position = self._comment(data, position)
                case _State.HOLDING:
                    position = self._hold(data, position)
                case _State.PASSING | _State.DROPPING:
                    position = self._to_empty_line(data, position)
                case never:
                    assert_never(never)

    def _second_byte_of_crlf(self) -> None:
        if self._state is _State.HOLDING:
            self._held.append(_LF)
            self._line = len(self._held)
            if len(self._held) > self._limit:
                self._give_up()
        elif self._state is not _State.DROPPING and not self._taken:
            self._out.append(b"\n")

    def _skip(self, data: bytes, position: int, name: int) -> int:
        """Passes all that ends before `name`, unread: most pieces hold no payment event, and pass whole."""
        last = max(data.rfind(two, position, name) for two in _EMPTY)
        if last < 0:
            return position
        self._out.append(data[position : last + 2])
        return last + 2

    def _between(self, data: bytes, position: int) -> int:
        self._taken = False
        if idle := _IDLE.match(data, position):
            self._out.append(idle[0])
            return idle.end()
        if data[position] == _COLON:
            self._state = _State.COMMENT
        else:
            self._state, self._name, self._line = _State.HOLDING, None, 0
        return position

    def _comment(self, data: bytes, position: int) -> int:
        found = _END_OF_LINE.search(data, position)
        stop = found.end() if found else len(data)
        self._out.append(data[position:stop])
        if found:
            self._state = _State.BETWEEN
        return stop

    def _hold(self, data: bytes, position: int) -> int:
        """One line of an event, or what there is of it; and before it all that say nothing new."""
        if self._line == len(self._held):
            lines = _NAMELESS if self._name is None else _LINES
            if run := lines.match(data, position, position + self._limit - len(self._held)):
                self._held += run[0]
                self._line = len(self._held)
                return run.end()
        found = _END_OF_LINE.search(data, position)
        stop = found.end() if found else len(data)
        if len(self._held) + stop - position > self._limit:
            self._give_up()
            return position  # the rest of the event is read from here, in the new state
        self._held += data[position:stop]
        if found is None:
            if self._name is None and self._cannot_be_payment():
                self._pass(fresh=False)
            return stop
        self._cr = data[stop - 1] == _CR
        line = self._held[self._line : -1]
        self._line = len(self._held)
        if not line:
            self._close_held()
        elif self._name is None and (line == b"event" or line.startswith(b"event:")):
            self._name = _NAMED.get(bytes(line))
            if self._name is None:
                self._pass(fresh=True)
        return stop

    def _cannot_be_payment(self) -> bool:
        """Is the line that has begun an event field, and surely of another name?"""
        line = self._held[self._line : self._line + _LONGEST + 1]
        return line.startswith(b"event:") and bytes(line) not in _BEGINNINGS

    def _to_empty_line(self, data: bytes, position: int) -> int:
        if self._fresh and data[position] in (_CR, _LF):
            stop, over = position + 1, True
        elif found := _EMPTY_LINE.search(data, position):
            stop, over = found.end(), True
        else:
            stop, over = len(data), False
        if self._state is _State.PASSING:
            self._out.append(data[position:stop])
        self._cr = data[stop - 1] == _CR
        self._fresh = self._cr or data[stop - 1] == _LF
        if over:
            self._taken = self._state is _State.DROPPING
            self._state = _State.BETWEEN
        return stop

    def _pass(self, *, fresh: bool) -> None:
        self._out.append(bytes(self._held))
        self._held.clear()
        self._state, self._fresh = _State.PASSING, fresh

    def _give_up(self) -> None:
        """The event is too long to be held."""
        fresh = self._line == len(self._held)
        if self._name is None:
            self._pass(fresh=fresh)
        else:
            self._events.append(Malformed(self._name, f"the event is longer than {self._limit} bytes"))
            self._held.clear()
            self._state, self._fresh = _State.DROPPING, fresh

    def _close_held(self) -> None:
        """The event that is held is complete."""
        if self._name is None:
            self._out.append(bytes(self._held))
        else:
            self._events.append(_parse(self._name, _data(bytes(self._held))))
            self._taken = True
        self._held.clear()
        self._state = _State.BETWEEN


def _first_name(data: bytes, position: int) -> int:
    """Where what looks like a payment event's name begins, or the end of `data`."""
    found = _LIKE_A_NAME.search(data, position)
    return found.start() if found else len(data)


def _data(event: bytes) -> bytes | None:
    """The ``data`` fields, joined by LF; None if there are none."""
    values: list[bytes] = _DATA.findall(event)
    return b"\n".join(values) if values else None


def _parse(name: PaymentName, data: bytes | None) -> PaymentEvent:
    if data is None:
        return Malformed(name, "the event has no data")
    try:
        return parse_need_voucher(data) if name == "payment-need-voucher" else parse_receipt_json(data)
    except RemoteProtocolError as error:
        return Malformed(name, str(error))
