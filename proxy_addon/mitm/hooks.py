"""Our own events in mitmproxy's hook system: how a layer gets at what must be awaited.

They live in an ordinary module: a script that mitmproxy reloads would register them a second time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mitmproxy import http
from mitmproxy.proxy import commands

from proxy_addon.mitm.gate import Again, Deliver, Outgoing, Ticket


@dataclass
class PrepareErrand:
    ticket: Ticket
    lost: bool = False  # an attempt without an answer; what to send the request with once more
    outgoing: Outgoing | None = field(default=None, repr=False)  # stays None if the gate failed or refused


@dataclass
class AnsweredErrand:
    ticket: Ticket
    response: http.Response = field(repr=False)
    body: bytes | None = field(repr=False)
    decision: Again | Deliver | None = field(default=None, repr=False)  # stays None if the gate failed


@dataclass
class BursarPrepareHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """What to add to the request that leaves next is not known without waiting."""

    errand: PrepareErrand


@dataclass
class BursarAnsweredHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """An answer that may ask for money is here, and nothing of it has been sent to the client."""

    errand: AnsweredErrand


@dataclass
class BursarTickHook(commands.StartHook):  # type: ignore[no-untyped-call]
    """Nothing to do: lets the layer that is being called finish before it is called again."""

    errand: None = None
