from __future__ import annotations

import pytest

from proxy_addon.core.errors import RemoteProtocolError, UnsupportedChallenge
from proxy_addon.methods import registry
from tests.unit.methods.samples import challenge, details, request


def test_a_challenge_finds_its_method() -> None:
    method = registry.resolve(challenge(request()))
    assert (method.family, method.version) == ("tempo-session", "v2")
    assert registry.method_of(method.family, method.version) is method


@pytest.mark.parametrize("named", ["v1", None])
def test_a_session_that_names_no_version_is_the_older_one(named: str | None) -> None:
    found = registry.resolve(challenge(request(methodDetails=details(sessionProtocol=named))))
    assert (found.family, found.version) == ("tempo-session", "v1")
    assert registry.method_of("tempo-session", "v1") is found


@pytest.mark.parametrize(
    ("method", "intent"), [("stripe", "charge"), ("tempo", "nothing"), ("Tempo", "session")]
)
def test_another_method_is_unsupported_and_says_what_is(method: str, intent: str) -> None:
    with pytest.raises(UnsupportedChallenge, match=rf"'{method}/{intent}'.*tempo/session v2"):
        registry.resolve(challenge({}, method=method, intent=intent))


def test_another_version_is_unsupported() -> None:
    with pytest.raises(UnsupportedChallenge, match="v9"):
        registry.resolve(challenge(request(methodDetails=details(sessionProtocol="v9"))))


def test_a_version_that_cannot_be_read_is_the_servers_fault() -> None:
    with pytest.raises(RemoteProtocolError, match="methodDetails"):
        registry.resolve(challenge({"amount": "1"}))


def test_an_unknown_family_of_a_stored_channel() -> None:
    with pytest.raises(KeyError):
        registry.method_of("tempo-session", "v9")


def test_each_method_is_named_once() -> None:
    assert registry.accept_payment().split(", ")[0] == "tempo/session"
    assert len(set(registry.accept_payment().split(", "))) == len(registry.accept_payment().split(", "))


def test_the_table_says_what_the_methods_say() -> None:
    for (method, intent, version), entry in registry.METHODS.items():
        assert entry.version == version
        assert entry.family == f"{method}-{intent}"
