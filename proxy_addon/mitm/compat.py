"""What differs between the mitmproxy versions that we support, and which those are.

The replay leans on the insides of mitmproxy's HTTP layers. In a version that nobody has tried it on, the
addon lets all traffic pass untouched and says so.
"""

from __future__ import annotations

import re
from typing import Any

from mitmproxy.proxy.layers.http import _events
from mitmproxy.proxy.layers.http._events import RequestProtocolError, ResponseProtocolError

# (first tested, first not tested any more)
TESTED = (((11, 0, 2), (11, 1, 0)), ((12, 2, 0), (12, 3, 0)))

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")

# Since 12 the code of a protocol error is a mandatory enum; before, an optional HTTP status code.
_ErrorCode: Any = getattr(_events, "ErrorCode", None)
_CLIENT_CLOSED_REQUEST = 499  # mitmproxy 11: becomes h2's CANCEL
_BAD_GATEWAY = 502


def why_unsupported(version: str) -> str | None:
    """None if the replay was tested on this version of mitmproxy, else what to tell the user."""
    match = _VERSION.match(version)
    parts = tuple(int(part or 0) for part in match.groups()) if match else ()
    if any(first <= parts < end for first, end in TESTED):
        return None
    ranges = ", ".join(f"{a}.{b}.{c} to before {d}.{e}.{f}" for (a, b, c), (d, e, f) in TESTED)
    return (
        f"mitmproxy {version} is not one that bursar was tested on ({ranges}): "
        "all traffic passes unpaid; install a tested version"
    )


def cancelled(stream_id: int, message: str) -> RequestProtocolError:
    """Tells a server connection that we are no longer interested: h2 resets the stream, h1 closes."""
    code: Any = _ErrorCode.CANCEL if _ErrorCode else _CLIENT_CLOSED_REQUEST
    return RequestProtocolError(stream_id, message, code)


def connect_failed(stream_id: int, message: str) -> ResponseProtocolError:
    """As mitmproxy itself reports that no connection could be made."""
    code: Any = _ErrorCode.CONNECT_FAILED if _ErrorCode else _BAD_GATEWAY
    return ResponseProtocolError(stream_id, message, code)


def proxy_failed(stream_id: int, message: str) -> ResponseProtocolError:
    """Tells a client that its answer will not come, or not to its end."""
    code: Any = _ErrorCode.GENERIC_SERVER_ERROR if _ErrorCode else _BAD_GATEWAY
    return ResponseProtocolError(stream_id, message, code)
