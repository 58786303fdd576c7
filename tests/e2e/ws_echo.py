"""An unmodified WebSocket client: ``ws_echo.py URL``. The proxy comes from the environment. Prints what came back."""

from __future__ import annotations

import sys

from websockets.sync.client import connect


def main() -> None:
    with connect(sys.argv[1]) as socket:
        for message in ("one", b"\x00\x01two", "x" * 100_000):
            socket.send(message)
            assert socket.recv(30) == message
    print("echoed")


if __name__ == "__main__":
    main()
