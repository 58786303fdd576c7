"""How failures are told: of others' exceptions the type and the place, and not a word."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from proxy_addon.core.errors import LocalRefusal
from proxy_addon.mitm import guard
from proxy_addon.mitm.guard import guard_logs

CANARY = "c4n4ry'\"\n"


class Written(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + "\n"


@pytest.fixture
def written() -> Iterator[Written]:
    handler, root = Written(), logging.getLogger()
    root.addHandler(handler)
    guard_logs()
    guard_logs()  # a script that is loaded twice
    assert len(handler.filters) == 1
    yield handler
    root.removeHandler(handler)
    for other in root.handlers:
        other.filters.clear()


def in_our_code(error: BaseException) -> None:
    """Raise it where a traceback knows a file of ours."""
    code = compile("def fail(error):\n    raise error", guard.__file__, "exec")
    names: dict[str, object] = {}
    exec(code, names)
    names["fail"](error)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["bursar", "mitmproxy.proxy.server", "asyncio"])
def test_what_went_through_our_code_is_not_told(written: Written, name: str) -> None:
    try:
        in_our_code(KeyError(CANARY))
    except KeyError as error:
        logging.getLogger(name).exception("Addon error: %s %r", error, error)
    assert "c4n4ry" not in written.text
    assert "Addon error: KeyError KeyError" in written.text
    assert "mitm/guard.py:2 in fail" in written.text
    assert written.text.rstrip().endswith("KeyError")


def test_what_led_to_it_is_not_told_either(written: Written) -> None:
    try:
        try:
            try:
                in_our_code(ValueError(CANARY))
            except ValueError as error:
                raise LocalRefusal("limit", "api.test asks 5, over 1") from error
        except LocalRefusal:
            raise RuntimeError(CANARY)  # noqa: B904 (its context is the point)
    except RuntimeError:
        logging.getLogger("bursar").exception("a payment failed inside")
    assert "c4n4ry" not in written.text
    places = [
        written.text.index(word)
        for word in ("ValueError", "LocalRefusal: api.test asks 5, over 1", "RuntimeError")
    ]
    assert places == sorted(places)


def test_our_own_words_are_told(written: Written) -> None:
    try:
        in_our_code(LocalRefusal("limit", "api.test asks 5, over 1"))
    except LocalRefusal as error:
        logging.getLogger("bursar").exception("not paid: %s", error)
    assert "not paid: api.test asks 5, over 1" in written.text
    assert "LocalRefusal: api.test asks 5, over 1" in written.text


def test_others_failures_stay_as_they_are(written: Written) -> None:
    """A user's own script, say."""
    try:
        raise KeyError("their own")
    except KeyError as error:
        logging.getLogger("mitmproxy.addonmanager").exception("Addon error: %s", error)
    assert "Traceback" in written.text
    assert "KeyError: 'their own'" in written.text
    logging.getLogger("bursar").info("no exception")
    logging.getLogger("bursar").error("none", exc_info=True)
    assert "none" in written.text


@pytest.mark.parametrize(("name", "cut"), [("mitmproxy.proxy.server", True), ("a.users.script", False)])
def test_what_a_server_has_mitmproxy_write_down_has_an_end(written: Written, name: str, cut: bool) -> None:
    novel = "Unexpected data from server: " + "%s" * 50_000
    logging.getLogger(name).error(novel)
    assert (len(written.text) < 1_100) == cut
    assert written.text.startswith("Unexpected data from server: %s%s")
    assert (written.text == novel + "\n") != cut


def test_a_chain_that_bites_its_tail(written: Written) -> None:
    first, second = ValueError(CANARY), KeyError(CANARY)
    first.__context__, second.__context__ = second, first
    logging.getLogger("bursar").error("x", exc_info=first)
    assert "c4n4ry" not in written.text
