"""An attack as data: what the peer does, what the client does, and which of the user's limits bounds the loss."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from store.amounts import parse_units
from tests.hostile.peer import GOODS, Peer, Script

if TYPE_CHECKING:
    from tests.hostile.client import Got, Heard
    from tests.hostile.world import World

DECIMALS: Final = 6
LIMITS: Final[Mapping[str, Any]] = {
    "max_price": "0.05",
    "max_per_day": "0.4",
    "max_deposit": "0.3",
    "max_opens_per_day": 3,
    # Out of the way: what is tried here is what the limits hold by themselves.
    "breaker_failures": 1_000_000,
    "breaker_max_undelivered": "1000000",
}
"""Of every peer's own table in the config, unless its attack says otherwise."""

LIMITS_OF_ALL: Final[Mapping[str, int]] = {"attempts_per_minute": 120, "in_flight_per_origin": 32}
"""The config's ``[limits]``."""


@dataclass(frozen=True)
class Bound:
    """A limit of the config, so many times (or as often as another one says); `plus` is another one on top."""

    key: str
    times: int | str = 1
    plus: Bound | None = None

    def units(self, limits: Mapping[str, Any]) -> int:
        """Base units."""
        more = self.plus.units(limits) if self.plus is not None else 0
        return parse_units(str(limits[self.key]), DECIMALS) * self._factor(limits) + more

    def _factor(self, limits: Mapping[str, Any]) -> int:
        return int(limits[self.times]) if isinstance(self.times, str) else self.times

    def shown(self, limits: Mapping[str, Any]) -> str:
        text = f"{self.key} {limits[self.key]}"
        if self.times != 1:
            text += f" × {self.times}" + (f" {limits[self.times]}" if isinstance(self.times, str) else "")
        return f"{text} + {self.plus.shown(limits)}" if self.plus is not None else text


@dataclass(frozen=True)
class Nothing(Bound):
    """Not one base unit may be lost."""

    key: str = ""

    def units(self, limits: Mapping[str, Any]) -> int:
        return 0

    def shown(self, limits: Mapping[str, Any]) -> str:
        return self.key or "nothing is signed for it"


NOTHING: Final = Nothing()
HONEST: Final = Nothing("what was delivered")


class Complaint(AssertionError):
    """The client saw what it must not, or the books are wrong."""


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Complaint(what)


@dataclass
class Stage:
    """One attack under way: its peer, and the ways to play a client against it."""

    world: World
    attack: Attack
    peer: Peer
    got: list[Got] = field(default_factory=list)
    log_from: int = 0

    def get(self, path: str = "/", count: int = 1, *options: str, **more: Any) -> list[Got]:
        """So many GETs of one curl, one after the other; `options` are curl's."""
        got = self.world.curl(f"{self.peer.url}{path}", count, *options, **more)
        self.got += got
        return got

    def one(self, path: str = "/", *options: str, **more: Any) -> Got:
        return self.get(path, 1, *options, **more)[0]

    def converse(self, path: str, *, seconds: float = 60.0) -> Heard:
        """A WebSocket, until its end; no payment frame may reach its client."""
        heard = self.world.converse(self.peer.url.replace("http", "ws", 1) + path, seconds=seconds)
        shown = next((one for one in heard.messages if '"mpp"' in one), None)
        expect(shown is None, f"a payment frame reached the client: {shown and shown[:200]}")
        return heard

    def told(self, words: str) -> list[str]:
        """Lines of the proxy's log since this attack began."""
        return [line for line in self.world.proxy.log[self.log_from :].splitlines() if words in line]

    def bought(self, path: str = "/", body: bytes = GOODS) -> None:
        """An honest purchase must work."""
        got = self.one(path)
        expect(got.status == 200 and got.body == body, f"an honest purchase got {got.shown}")

    def settled(self) -> None:
        """Until the chain has decided on this peer's openings."""
        self.world.decided(self.peer)

    @staticmethod
    def wait(seconds: float) -> None:
        """Only where time itself is the subject."""
        time.sleep(seconds)

    @property
    def credentials(self) -> list[dict[str, Any]]:
        return [one.payload for one in self.peer.requests if one.payload]

    @property
    def actions(self) -> list[str | None]:
        """What each request upstream paid with."""
        return [one.action for one in self.peer.requests]


Play = Callable[[Stage], None]
"""What the client does, and what it must see. Raises `Complaint`."""


@dataclass(frozen=True)
class Attack:
    """`row` names the promise that it tries, as in the list of threats; a `quick` one is part of every test run."""

    name: str
    row: str
    script: Script
    play: Play
    bound: Bound
    limits: Mapping[str, Any] = field(default_factory=dict)
    terms: Mapping[str, Any] = field(default_factory=dict)
    quick: bool = False
    exact: bool = False  # the loss reaches its bound
    alone: bool = False  # nothing else may happen meanwhile: it looks at clocks
    unanswered: bool = False  # that the client gives up first is what happens
    tls: bool = False
    others: Sequence[str] = ()  # names of further peers, honest ones, that the client may be sent to

    @property
    def whole_limits(self) -> dict[str, Any]:
        return {**LIMITS, **LIMITS_OF_ALL, **self.limits}


@dataclass(frozen=True)
class Verdict:
    """What came of it. Amounts in base units."""

    attack: Attack
    loss: int
    bound: int
    locked: int  # deposits in escrow beyond what was settled: they come back with a close
    opens: int
    requests: int  # of clients
    upstream: int
    seconds: float
    complaints: Sequence[str]

    @property
    def passed(self) -> bool:
        return not self.complaints
