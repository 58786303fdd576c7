"""Answers of hosts that no rule names: mitmproxy would keep each back until it is whole. They pass as they come."""

from __future__ import annotations

from typing import Final

from mitmproxy import http, options

from proxy_addon.core.headers import is_event_stream

LARGE_BODY: Final = "1m"
"""From this size on a body is passed on as it comes, as mitmproxy writes sizes; smaller ones in one piece."""


class Events:
    """An addon: server-sent events pass one by one. A 402's body is for whoever decides on it."""

    def responseheaders(self, flow: http.HTTPFlow) -> None:
        response = flow.response
        if response is None or response.stream or response.status_code == 402:
            return
        if is_event_stream(response.headers.get("content-type", "")):
            response.stream = True


def let_large_bodies_pass(chosen: options.Options) -> None:
    """Who has mitmproxy keep flows, or work on bodies, gets them whole."""
    keeps = chosen.save_stream_file or chosen.modify_body or chosen.scripts or getattr(chosen, "hardump", "")
    if not keeps and chosen.stream_large_bodies is None:
        chosen.update(stream_large_bodies=LARGE_BODY)  # type: ignore[no-untyped-call]
