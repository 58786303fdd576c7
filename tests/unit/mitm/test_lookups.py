"""Faster look-ups find, and refuse, what mitmproxy's own do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mitmproxy import http, optmanager
from mitmproxy.net.http import url

from proxy_addon.mitm import lookups

lookups.install()

NAMES = st.sampled_from(["a", "A", "content-length", "Content-Length", "x\udcff", "Ä", ""])
VALUES = st.sampled_from([b"", b"1", b"a, b", b"\xff", "ü".encode(), b"x" * 9])
FIELDS = st.lists(
    st.tuples(NAMES.map(lambda name: name.encode("utf-8", "surrogateescape")), VALUES), max_size=6
)


def own_get_all(headers: http.Headers, name: Any) -> list[str]:
    """As mitmproxy's own code has it."""
    found: Any = super(http.Headers, headers)
    return [http._native(value) for value in found.get_all(http._always_bytes(name))]


@given(fields=FIELDS, name=NAMES, as_bytes=st.booleans())
def test_the_same_is_found(fields: list[tuple[bytes, bytes]], name: str, as_bytes: bool) -> None:
    headers = http.Headers(fields)
    asked: Any = name.encode("utf-8", "surrogateescape") if as_bytes else name
    values = own_get_all(headers, asked)
    folded = ", ".join(values) if values else None
    assert headers.get_all(asked) == values
    assert headers.get(asked) == folded
    assert headers.get(asked, "none") == (folded if values else "none")
    assert (asked in headers) is bool(values)
    if values:
        assert headers[asked] == folded
    else:
        with pytest.raises(KeyError):
            headers[asked]


@pytest.mark.parametrize("asked", [1, None, ["a"], bytearray(b"a")], ids=repr)
def test_what_is_no_name_is_refused_as_ever(asked: Any) -> None:
    headers = http.Headers([(b"a", b"1")])
    finds: tuple[Callable[[Any], object], ...] = (
        headers.get_all,
        headers.get,
        headers.__contains__,
        headers.__getitem__,
    )
    own = _outcome(own_get_all, headers, asked)
    assert own in (TypeError, AttributeError)
    assert [_outcome(find, asked) for find in finds] == [own] * 4


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ([], {}),
        ([(b"a", b"1"), [b"b", b"2"]], {}),
        (((b"a", b"1"),), {"content_type": "text/plain", "a": "2"}),
    ],
)
def test_headers_are_made_as_ever(fields: Any, more: dict[str, str]) -> None:
    made: Any = http.Headers.__new__(http.Headers)
    vars(http.Headers)["__init__"].__wrapped__(made, fields, **more)  # mitmproxy's own
    assert http.Headers(fields, **more).fields == made.fields


@pytest.mark.parametrize("field", [("a", b"1"), (b"a", "1"), (b"a", None)])
def test_fields_that_are_no_bytes_are_refused(field: Any) -> None:
    with pytest.raises(TypeError, match="must be bytes"):
        http.Headers([field])


def test_a_subclass_keeps_what_it_says() -> None:
    class Own(http.Headers):
        def __getitem__(self, name: Any) -> str:
            if name == "missing":
                raise KeyError(name)
            return "own"

    headers = Own([(b"a", b"1")])
    assert headers.get("b") == "own"
    assert "b" in headers
    assert headers.get("missing") is None
    assert "missing" not in headers


AUTHORITIES = (
    b"example.com",
    b"EXAMPLE.com:443",
    b"[::1]:80",
    b"b\xc3\xbccher.example",
    b"a:99999",
    b"a b",
    b"",
    b":80",
    b"user@host",
    b"x" * 600,
)


@pytest.mark.parametrize("authority", AUTHORITIES)
@pytest.mark.parametrize("check", [True, False])
def test_an_address_is_taken_apart_as_ever(authority: bytes, check: bool) -> None:
    own: Any = _fresh_url()
    for text in (authority, authority.decode()):
        for _ in range(2):
            assert _outcome(url.parse_authority, text, check) == _outcome(own.parse_authority, text, check)


@pytest.mark.parametrize(
    "text",
    [
        b"http://a/b",
        b"https://a:1/b?c=d",
        b"http://u:p@a/",
        b"a",
        b"http://",
        b"http://a:99999/",
        b"http://\xff/",
    ],
)
def test_a_url_is_taken_apart_as_ever(text: bytes) -> None:
    own: Any = _fresh_url()
    for _ in range(2):
        assert _outcome(url.parse, text) == _outcome(own.parse, text)


def test_what_may_be_secret_is_not_remembered() -> None:
    remembered: Any = url.parse
    asked: list[bytes] = []
    quick = lookups._remembering(lambda text: asked.append(text))
    secret = (b"http://a/b?key=secret", b"http://user:secret@a/", "u:secret@a", "a?key=secret", b"x" * 513)
    for text in (*secret, "a:80", b"http://a/b"):
        quick(text)
        quick(text)
    assert len(asked) == 2 * len(secret) + 2
    assert remembered.__wrapped__.__name__ == "parse"


@pytest.mark.parametrize("value", ["text", 7, 1.5, True, None, ["a"], {"a": 1}], ids=repr)
@pytest.mark.parametrize("is_set", [True, False])
def test_an_option_is_as_it_was_set(value: Any, is_set: bool) -> None:
    option = optmanager._Option("name", object, value, "", None)
    if is_set:
        option.value = value
    assert option.current() == value
    assert type(option.current()) is type(value)
    if isinstance(value, list | dict):
        option.current().clear()  # the copy only
        assert option.current() == value


def test_once_is_enough() -> None:
    before = (http.Headers.get, url.parse, optmanager._Option.current)
    lookups.install()
    assert (http.Headers.get, url.parse, optmanager._Option.current) == before


def _outcome(function: Callable[..., object], *given: object) -> object:
    try:
        return function(*given)
    except Exception as error:
        return type(error)


def _fresh_url() -> object:
    """mitmproxy's module as it is on the disk."""
    return _fresh("mitmproxy.net.http.url")


def _fresh(name: str) -> object:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
