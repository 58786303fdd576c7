"""Whose fault it is, and whether money may have moved.

`LocalRefusal`: our own rules say no; nothing was signed. `RemoteProtocolError`: the peer's words make no
sense; nothing was signed. `OutcomeUnknown`: something of ours may have been taken; it stays counted.
Each message names the thing, the limit and the way out, and holds no secret.
"""

from __future__ import annotations


class BursarError(Exception):
    """Base of what this project raises on purpose."""


class LocalRefusal(BursarError):
    """We will not pay. `reason` is a stable word for the ledger; the message is for people."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RemoteProtocolError(BursarError):
    """The server's message is malformed or contradicts itself; nothing was signed."""


class UnsupportedChallenge(RemoteProtocolError):
    """Well-formed, but of a method, intent, version or chain that we do not pay."""


class OutcomeUnknown(BursarError):
    """A credential or transaction may have left and its fate is not known; it stays counted as spent."""


class ChainUnavailable(BursarError):
    """No RPC endpoint gave a usable answer; says nothing about the state of the chain."""
