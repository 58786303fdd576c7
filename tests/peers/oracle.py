"""What mppx and viem make of a value: a Python handle on encode.mjs, for differential tests.

    with Oracle() as oracle:
        header = oracle.call("challengeHeader", challenge={...})
        assert ours == oracle.call("voucherDigest", escrow=..., chainId=42431, channelId=..., cumulativeAmount="1")

One process answers any number of calls (some thousands a second); start it once per test session.
"""

from __future__ import annotations

import json
import subprocess
import threading
from types import TracebackType
from typing import Any

from .devnet import PEERS, find_node, install


class OracleError(Exception):
    """mppx or viem refused the value; `name` is the JavaScript error's name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name


class Oracle:
    """A running encode.mjs. Safe to use from several threads."""

    def __init__(self) -> None:
        install()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [find_node(), str(PEERS / "encode.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def call(self, op: str, **parameters: Any) -> Any:
        """Runs one operation of encode.mjs. Integers may be given as such; large ones come back as strings."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = json.dumps({"op": op, **parameters})
        with self._lock:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the oracle ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise OracleError(answer["name"], answer["error"])
        return answer["ok"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def __enter__(self) -> Oracle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
