"""What someone who knows nothing of payment writes: ``client_script.py requests|httpx COUNT URL [METHOD [BODY-FILE]]``.

Prints one JSON line per answer. Proxy and trust come from the environment, as these libraries have it.
"""

from __future__ import annotations

import base64
import json
import sys


def main() -> None:
    kind, count, url = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    method = sys.argv[4] if len(sys.argv) > 4 else "GET"
    body = None
    if len(sys.argv) > 5:
        with open(sys.argv[5], "rb") as file:
            body = file.read()
    if kind == "requests":
        import requests

        with requests.Session() as session:
            for _ in range(count):
                answer = session.request(method, url, data=body, timeout=60)
                show(answer.status_code, list(answer.headers.items()), answer.content)
    else:
        import httpx

        with httpx.Client(timeout=60) as client:
            for _ in range(count):
                found = client.request(method, url, content=body)
                show(found.status_code, found.headers.multi_items(), found.content)


def show(status: int, headers: list[tuple[str, str]], body: bytes) -> None:
    line = {"status": status, "headers": headers, "body": base64.b64encode(body).decode()}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
