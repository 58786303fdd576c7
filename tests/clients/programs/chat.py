"""The openai SDK, streaming: ``chat.py BASE-URL``; what the model says goes to standard output."""

from __future__ import annotations

import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="", timeout=60, max_retries=0)
stream = client.chat.completions.create(
    model="m", messages=[{"role": "user", "content": "Count!"}], max_tokens=3, stream=True
)
print("".join(chunk.choices[0].delta.content or "" for chunk in stream))
