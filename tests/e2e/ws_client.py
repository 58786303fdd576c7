"""An unmodified WebSocket client: ``ws_client.py URL [COUNT]``. The proxy comes from the environment.

Reads to the end, or `COUNT` messages, and prints what came as JSON: the messages, and how it ended.
"""

from __future__ import annotations

import json
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect


def main() -> None:
    url, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None
    messages: list[str] = []
    told: dict[str, object] = {"messages": messages}
    try:
        with connect(url, open_timeout=60, close_timeout=5) as socket:
            try:
                while count is None or len(messages) < count:
                    messages.append(str(socket.recv(60)))
            except ConnectionClosed as closed:
                if closed.rcvd is not None:
                    told |= {"code": closed.rcvd.code, "reason": closed.rcvd.reason}
    except InvalidStatus as refused:
        response = refused.response
        told |= {"status": response.status_code, "reason": response.headers.get("Bursar-Reason")}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
