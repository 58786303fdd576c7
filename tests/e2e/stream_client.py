"""Readers of event streams as people write them: ``stream_client.py httpx|httpx-sse|openai URL [COUNT]``.

They know nothing of payment; proxy and trust come from the environment. httpx copies the body to standard output;
the others print one line of JSON for each event, as their library hands it out.
"""

from __future__ import annotations

import json
import sys
from urllib.parse import parse_qsl, urlsplit


def copy(url: str) -> None:
    import httpx

    with httpx.stream("GET", url, timeout=60) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()


def events(url: str) -> None:
    import httpx
    from httpx_sse import connect_sse

    with httpx.Client(timeout=60) as client, connect_sse(client, "GET", url) as source:
        for event in source.iter_sse():
            print(json.dumps([event.event, event.data]), flush=True)


def chat(url: str, count: int) -> None:
    from openai import OpenAI

    parts = urlsplit(url)
    base, query = f"{parts.scheme}://{parts.netloc}{parts.path}", dict(parse_qsl(parts.query))
    # Without a key of its own: that would take the place where this server wants the payment.
    client = OpenAI(base_url=base, api_key="", default_query=query, timeout=60, max_retries=0)
    stream = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Count!"}],
        max_tokens=count,
        stream=True,
    )
    for chunk in stream:
        print(json.dumps(chunk.choices[0].delta.content), flush=True)


def main() -> None:
    kind, url = sys.argv[1:3]
    if kind == "httpx":
        copy(url)
    elif kind == "httpx-sse":
        events(url)
    else:
        chat(url, int(sys.argv[3]))


if __name__ == "__main__":
    main()
