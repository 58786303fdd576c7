"""Which payment methods there are. A new one is one module and one line in `METHODS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from proxy_addon.core.errors import UnsupportedChallenge
from proxy_addon.methods.contract import Method
from proxy_addon.methods.tempo_session.terms import session_protocol
from proxy_addon.methods.tempo_session.v1 import TempoSessionV1
from proxy_addon.methods.tempo_session.v2 import TempoSessionV2

if TYPE_CHECKING:
    from proxy_addon.core.messages import Challenge

METHODS: Final[Mapping[tuple[str, str, str], Method]] = {
    ("tempo", "session", "v2"): TempoSessionV2(),
    ("tempo", "session", "v1"): TempoSessionV1(),
}

_VERSION_OF: Final = {("tempo", "session"): session_protocol}
"""How a challenge of this method and intent says its version."""

_SUPPORTED: Final = ", ".join(" ".join(("/".join(key[:2]), key[2])) for key in METHODS)
_ACCEPT_PAYMENT: Final = ", ".join(dict.fromkeys(f"{method}/{intent}" for method, intent, _ in METHODS))
_BY_FAMILY: Final = {(method.family, method.version): method for method in METHODS.values()}


def resolve(challenge: Challenge) -> Method:
    """The method that can pay this challenge.

    Raises `UnsupportedChallenge` naming what it asks for and what there is; `RemoteProtocolError` if its
    version cannot be read.
    """
    version_of = _VERSION_OF.get((challenge.method, challenge.intent))
    version = "" if version_of is None else version_of(challenge)
    method = METHODS.get((challenge.method, challenge.intent, version))
    if method is None:
        asked = f"{challenge.method}/{challenge.intent} {version}".strip()[:80]
        raise UnsupportedChallenge(f"the server asks for {asked!r}; this proxy pays {_SUPPORTED}")
    return method


def method_of(family: str, version: str) -> Method:
    """The method of a stored channel's scope. Raises ``KeyError``: a store of a newer program, or a damaged one."""
    return _BY_FAMILY[family, version]


def accept_payment() -> str:
    """The value of ``Accept-Payment``: what we can pay, the preferred one first."""
    return _ACCEPT_PAYMENT
