"""Which worker gets a connection: the first bytes, the host's width, who has the host already."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy_addon.cli.spreading import (
    CROWD,
    MOST_PEEKED,
    Destination,
    Peek,
    Spreader,
    destination,
    too_narrow,
    widths,
)
from proxy_addon.core.policy import HostRule, SpendPolicy

LINGER = 5_000


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"GET http://api.example.com/paid HTTP/1.1\r\n", Destination("api.example.com", 80, ("http",))),
        (b"POST http://API.Example.com:8080?x HTTP/1.1\r\n", Destination("api.example.com", 8080, ("http",))),
        (b"GET https://api.example.com./ HTTP/1.1\r\n", Destination("api.example.com", 443, ("https",))),
        (b"GET http://user:pw@h/ HTTP/1.1\r\n", Destination("h", 80, ("http",))),
        (b"GET ws://h/ws HTTP/1.1\r\n", Destination("h", 80, ("http",))),
        (b"GET http://[::1]:8080/ HTTP/1.1\r\n", Destination("::1", 8080, ("http",))),
        (
            b"\r\nCONNECT api.example.com:443 HTTP/1.1\r\n",
            Destination("api.example.com", 443, ("https", "http")),
        ),
        (b"CONNECT [2001:db8::1]:443 HTTP/1.1", Destination("2001:db8::1", 443, ("https", "http"))),
        (b"CONNECT api.example.com:443", Peek.MORE),
        (b"GET http://api.example.com", Peek.MORE),  # there may be more of the name
        (b"GET http://api.example.com/" + b"x" * 8000, Destination("api.example.com", 80, ("http",))),
        (b"G", Peek.MORE),
        (b"\r\n", Peek.MORE),
        (b"GET /paid HTTP/1.1\r\n", Peek.NOTHING),
        (b"GET http:// HTTP/1.1\r\n", Peek.NOTHING),
        (b"CONNECT a:b:c HTTP/1.1\r\n", Peek.NOTHING),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Peek.NOTHING),
        (b"\x16\x03\x01\x02\x00\x01", Peek.NOTHING),  # TLS to the proxy itself
        (b"X" * MOST_PEEKED, Peek.NOTHING),
    ],
)
def test_the_first_bytes(data: bytes, found: Destination | Peek) -> None:
    assert destination(data) == found


@given(st.binary(max_size=200) | st.from_regex(rb"(GET|CONNECT) (http://)?[ -~]{0,60}\r?\n?", fullmatch=True))
def test_any_bytes_have_an_answer_and_more_do_not_change_it(data: bytes) -> None:
    found = destination(data)
    if found is Peek.MORE:
        assert b"\n" not in data.lstrip(b"\r\n")
    else:
        assert destination(data + b"x HTTP/1.1\r\n") == found


def host(name: str, pattern: str, channels: int) -> HostRule:
    return HostRule(name, pattern, "1", "1", "1", "1", 1, "1", channels, "0")


POLICY = SpendPolicy(
    (
        host("policy.hosts[0]", "one.example.com", 1),
        host("policy.hosts[1]", "*.example.com", 3),
        host("policy.hosts[2]", "localhost", 8),
    ),
    {},
    "1",
    "1",
)


@pytest.mark.parametrize(
    ("name", "port", "schemes", "width"),
    [
        ("one.example.com", 443, ("https", "http"), 1),
        ("two.example.com", 443, ("https", "http"), 3),
        ("two.example.com", 80, ("http",), 3),
        ("two.example.com", 8443, ("https", "http"), None),  # no rule is about this port
        ("localhost", 1234, ("http",), 4),  # there are no more workers than that
        ("example.org", 443, ("https", "http"), None),
    ],
)
def test_width(name: str, port: int, schemes: tuple[str, ...], width: int | None) -> None:
    assert widths(POLICY, 4, Destination(name, port, schemes)) == width


def test_hosts_that_cannot_use_all_workers_are_named() -> None:
    assert too_narrow(POLICY, 1) == []
    one, two = too_narrow(POLICY, 4)
    assert one.startswith(
        "policy.hosts[0] (one.example.com): max_channels_per_scope = 1, so that 1 of the 4 workers"
    )
    assert two.startswith("policy.hosts[1] (*.example.com): max_channels_per_scope = 3")


HOST = Destination("api.example.com", 443, ("https", "http"))
OTHER = Destination("api.example.net", 443, ("https", "http"))


def spreader(workers: int = 2) -> Spreader:
    made = Spreader(LINGER)
    for worker in range(workers):
        made.join(worker)
    return made


def connect(made: Spreader, to: Destination | None, width: int | None, now: int = 0) -> int:
    worker = made.choose(to, width, now)
    assert worker is not None
    made.began(worker, to, width)
    return worker


class TestWhoGetsIt:
    def test_a_host_stays_with_one_worker_until_there_are_many(self) -> None:
        made = spreader()
        assert [connect(made, HOST, 2) for _ in range(2 * CROWD)] == [0] * CROWD + [1] * CROWD
        assert sorted(connect(made, HOST, 2) for _ in range(4)) == [0, 0, 1, 1]

    def test_another_host_goes_to_who_has_less(self) -> None:
        made = spreader()
        assert [connect(made, HOST, 2), connect(made, OTHER, 2), connect(made, HOST, 2)] == [0, 1, 0]

    def test_no_more_workers_than_it_may_have_channels(self) -> None:
        assert {connect(made, HOST, 1) for made in [spreader()] for _ in range(50)} == {0}

    def test_what_is_never_paid_goes_to_who_has_least(self) -> None:
        made = spreader(3)
        assert [connect(made, None, None) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
        assert connect(made, HOST, None) == 0

    def test_it_comes_back_while_the_channel_may_be_there(self) -> None:
        made = spreader()
        made.ended(connect(made, HOST, 2), str(HOST), now=10_000)
        connect(made, None, None)  # on worker 0, which has more to do now
        assert made.choose(HOST, 2, now=10_000 + LINGER) == 0
        assert made.choose(HOST, 2, now=12_001 + LINGER) == 1

    def test_a_worker_that_left_gets_nothing(self) -> None:
        made = spreader()
        assert connect(made, HOST, 2) == 0
        made.leave(0)
        assert connect(made, HOST, 2) == 1
        made.ended(0, str(HOST), now=0)  # what it had ends after it
        made.join(0)
        assert connect(made, HOST, 2) == 1  # the host has moved
        assert connect(made, OTHER, 2) == 0
        made.leave(0)
        made.leave(1)
        assert made.choose(HOST, 2, now=0) is None


class Spreading(RuleBasedStateMachine):
    """Whatever comes and goes."""

    HOSTS = ((HOST, 1), (OTHER, 2), (Destination("x", 80, ("http",)), None))

    def __init__(self) -> None:
        super().__init__()
        self.made = spreader(3)
        self.up = {0, 1, 2}
        self.connections: list[tuple[int, str | None, Destination]] = []
        self.now = 0

    @rule(which=st.sampled_from(HOSTS))
    def connect(self, which: tuple[Destination, int | None]) -> None:
        to, width = which
        worker = self.made.choose(to, width, self.now)
        assert (worker is None) == (not self.up)
        if worker is None:
            return
        assert worker in self.up
        self.connections.append((worker, self.made.began(worker, to, width), to))
        if width is not None:
            serving = {one for one, _, where in self.connections if where == to}
            assert len(serving) <= width

    @precondition(lambda self: self.connections)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.connections) - 1))
        worker, name, _ = self.connections.pop(index)
        self.made.ended(worker, name, self.now)

    @rule(worker=st.integers(0, 2))
    def die(self, worker: int) -> None:
        self.made.leave(worker)
        self.up.discard(worker)
        self.connections = [one for one in self.connections if one[0] != worker]

    @rule(worker=st.integers(0, 2))
    def come_back(self, worker: int) -> None:
        if worker not in self.up:
            self.made.join(worker)
            self.up.add(worker)

    @rule(ms=st.integers(0, 2 * LINGER))
    def wait(self, ms: int) -> None:
        self.now += ms

    @invariant()
    def counted(self) -> None:
        for worker in self.up:
            assert self.made._open[worker] == sum(one[0] == worker for one in self.connections)

    def teardown(self) -> None:
        """Nothing is kept of hosts that nobody asks for any more."""
        for worker, name, _ in self.connections:
            self.made.ended(worker, name, self.now)
        self.made.choose(None, None, self.now + LINGER + 2_000)
        assert not self.made._shares


TestSpreading = Spreading.TestCase
