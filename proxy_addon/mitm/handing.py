"""How one process hands its clients' connections to another: a pair of sockets, and what goes over it.

First one message with what the worker needs to begin; then, for each connection, its number with its descriptor.
Back come the numbers of those that have ended; `LEAVING` says that no more are wanted. The end of either side is
the end of the pair, so each notices when the other has died, by whatever means. Imports nothing of mitmproxy.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

LEAVING: Final = 0
"""No connection has this number."""

_NUMBER: Final = struct.Struct("!Q")
_LENGTH: Final = struct.Struct("!I")
_LONGEST: Final = 1 << 20
_DESCRIPTOR: Final = array.array("i").itemsize


@dataclass(frozen=True, slots=True)
class Welcome:
    """What a worker is told before its first connection. The secrets are in no argument and no environment block."""

    addresses: Sequence[tuple[Any, ...]]  # where the one who hands over listens
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)  # what was asked for on a terminal
    descriptors: Mapping[int, str] = field(default_factory=dict, repr=False)  # what was in fd:N

    def send(self, to: socket.socket) -> None:
        """Raises `OSError` if nobody is there any more."""
        data = json.dumps(
            {
                "addresses": self.addresses,
                "environ": dict(self.environ),
                "descriptors": {str(number): text for number, text in self.descriptors.items()},
            }
        ).encode()
        to.sendall(_LENGTH.pack(len(data)) + data)

    @classmethod
    def receive(cls, from_: socket.socket) -> Welcome:
        """Raises `EOFError` if it does not come whole."""
        (length,) = _LENGTH.unpack(_exactly(from_, _LENGTH.size))
        if length > _LONGEST:
            raise EOFError("that is no welcome")
        found = json.loads(_exactly(from_, length))
        return cls(
            addresses=[tuple(one) for one in found["addresses"]],
            environ=found["environ"],
            descriptors={int(number): text for number, text in found["descriptors"].items()},
        )


def _exactly(from_: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = from_.recv(length - len(data))
        if not part:
            raise EOFError("the other side is gone")
        data += part
    return data


def hand_over(to: socket.socket, number: int, connection: socket.socket) -> None:
    """Raises `BlockingIOError` while the worker takes none, and another `OSError` when it is gone.

    The kernel takes so short a message whole or not at all. The caller closes its own copy of the connection.
    """
    socket.send_fds(to, [_NUMBER.pack(number)], [connection.fileno()])


def take_over(from_: socket.socket) -> tuple[int, socket.socket] | None:
    """The next connection and its number; None when the other side is gone. Raises `BlockingIOError`.

    What came without a connection (this process may have had no descriptor left for it) is left out.
    """
    while True:
        # So much and no more: a message with a descriptor is not read together with the next one.
        data, ancillary, _, _ = from_.recvmsg(_NUMBER.size, socket.CMSG_SPACE(_DESCRIPTOR))
        if not data:
            return None
        numbers = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(content[: len(content) - len(content) % _DESCRIPTOR])
        for descriptor in numbers:
            os.set_inheritable(descriptor, False)
            return _NUMBER.unpack(data)[0], socket.socket(fileno=descriptor)
        if len(data) == _NUMBER.size:
            with contextlib.suppress(OSError):
                from_.send(data)  # so that the other side counts it no longer


class Numbers:
    """What comes back: whole numbers out of pieces of a stream."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[int]:
        data = self._rest + data
        whole = len(data) - len(data) % _NUMBER.size
        self._rest = data[whole:]
        return (number for (number,) in _NUMBER.iter_unpack(data[:whole]))


def pack(number: int) -> bytes:
    """For the way back."""
    return _NUMBER.pack(number)
