"""The small modules: versions, peers, the log's description of an error, the write buffer."""

from __future__ import annotations

import pytest
from mitmproxy import version
from mitmproxy.connection import Client

from proxy_addon.core.errors import LocalRefusal
from proxy_addon.mitm.compat import why_unsupported
from proxy_addon.mitm.guard import describe
from proxy_addon.mitm.peers import is_loopback


@pytest.mark.parametrize(
    ("number", "good"),
    [
        ("11.0.2", True),
        ("11.0.9", True),
        ("12.2.0", True),
        ("12.2.3", True),
        ("12.2.3.dev0", True),
        ("11.0.1", False),
        ("11.1.0", False),
        ("11.1.3", False),
        ("12.0.0", False),
        ("12.1.9", False),
        ("12.3.0", False),
        ("13", False),
        ("10.4.2", False),
        ("nonsense", False),
        ("", False),
    ],
)
def test_supported_versions(number: str, good: bool) -> None:
    why = why_unsupported(number)
    assert (why is None) == good
    if why:
        assert number in why
        assert "11.0.2" in why


def test_the_installed_version_is_supported() -> None:
    assert why_unsupported(version.VERSION) is None


@pytest.mark.parametrize(
    ("peer", "ours"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::1%lo", True),
        ("10.0.0.1", False),
        ("0.0.0.0", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("8.8.8.8", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_loopback(peer: str, ours: bool) -> None:
    client = Client(peername=(peer, 1234), sockname=("127.0.0.1", 8080), timestamp_start=0.0)
    assert is_loopback(client) is ours


def test_no_peer_is_not_loopback() -> None:
    client = Client(peername=("127.0.0.1", 1), sockname=("127.0.0.1", 8080), timestamp_start=0.0)
    client.peername = None  # type: ignore[assignment]
    assert not is_loopback(client)


def test_describe_tells_our_own_messages_and_of_others_only_the_place() -> None:
    assert describe(LocalRefusal("limit", "asks 5, over 1")) == "LocalRefusal: asks 5, over 1"
    assert describe(KeyError("secret")) == "KeyError"
    nothing: dict[str, int] = {}
    try:
        nothing["secret"]
    except KeyError as error:
        told = describe(error)
    assert told.startswith("KeyError at ")
    assert "test_parts.py" in told
    assert "secret" not in told
