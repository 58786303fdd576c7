"""An upstream answer that asks for money, kept from the client until the gate has decided."""

from __future__ import annotations

from mitmproxy.proxy.layers.http._base import HttpEvent
from mitmproxy.proxy.layers.http._events import ResponseData, ResponseEndOfMessage, ResponseHeaders

from proxy_addon.mitm.timer import Timer


class Answer:
    """An upstream answer that the client has not seen: its header, and the events after it."""

    def __init__(self, head: ResponseHeaders) -> None:
        self.head = head
        self.rest: list[HttpEvent] = []
        self.size = 0
        self.ended = False
        self.timer: Timer | None = None
        self.glanced = False
        self.flooded = False

    @property
    def body(self) -> bytes:
        return b"".join(e.data for e in self.rest if isinstance(e, ResponseData))

    def take(self, event: HttpEvent, flood: int) -> None:
        if self.ended:
            return  # h2: a server that has answered early may reset the stream; it is answered all the same
        if isinstance(event, ResponseData):
            self.size += len(event.data)
            self.flooded = self.flooded or self.size > flood
        self.ended = self.ended or isinstance(event, ResponseEndOfMessage)
        if not self.flooded:
            self.rest.append(event)
