"""An answer's body on its way through the gate's filter: decoded first, and framed so that it may change its length."""

from __future__ import annotations

import logging

from mitmproxy import http

from proxy_addon.mitm.encoding import Decoder, decoder
from proxy_addon.mitm.gate import BodyFilter
from proxy_addon.mitm.timer import Timer

logger = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS = 0.05  # while the server waits for something that the gate is about to do


class Filtering:
    """Raises what the decoder raises: then the body cannot go on."""

    def __init__(self, body_filter: BodyFilter, decode: Decoder | None) -> None:
        self._filter = body_filter
        self._decode = decode
        self._ended = False
        self.timer: Timer | None = None

    def feed(self, data: bytes) -> bytes:
        if self.stopped is not None:
            return b""
        return self._filter.feed(self._decode.feed(data) if self._decode else data)

    def end(self) -> bytes:
        """The rest; once."""
        if self._ended or self.stopped is not None:
            return b""
        self._ended = True
        return self._filter.end()

    @property
    def stopped(self) -> bytes | None:
        return self._filter.stopped

    def look_again(self) -> Timer | None:
        """A timer to be woken by, if there is a reason to look and none is running."""
        if self.timer is not None or not (self._filter.waiting or self.stopped is not None):
            return None
        # Even a stop is not carried out at once: the connection's layer is in the middle of giving us data.
        self.timer = Timer(0 if self.stopped is not None else LOOK_AGAIN_SECONDS)
        return self.timer


def filtering(request: http.Request, response: http.Response, body_filter: BodyFilter) -> Filtering | None:
    """Make `response` one whose body may be filtered. None if its encoding is unknown: then it stays as it is."""
    decode = None
    if encoding := response.headers.get("content-encoding", ""):
        decode = decoder(encoding)
        if decode is None:
            logger.warning("A paid stream of %s has the unknown encoding %r", request.pretty_host, encoding)
            return None
        del response.headers["content-encoding"]
    if "content-length" in response.headers:
        del response.headers["content-length"]
        if response.is_http11 and request.is_http11:
            response.headers["transfer-encoding"] = "chunked"
    return Filtering(body_filter, decode)
