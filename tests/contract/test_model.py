"""Random sequences on every built-in store and on a plain dict: all must agree after every step."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from store.contract import Backend, Transaction
from store.lmdb_store import LmdbBackend
from store.memory_store import MemoryBackend, SharedMemory
from tests.properties.steps import taken

KEYS = st.text("ab/", min_size=1, max_size=4).map(str.encode) | st.binary(min_size=1, max_size=3)
VALUES = st.binary(max_size=8) | st.integers(0, 3).map(lambda n: bytes([n]) * (5000 * n))


@dataclass(frozen=True)
class Step:
    kind: str  # put, delete, get, scan, raise
    key: bytes
    value: bytes = b""


STEPS = st.lists(
    st.one_of(
        st.builds(Step, st.just("put"), KEYS, VALUES),
        st.builds(Step, st.just("put"), KEYS, VALUES),
        st.builds(Step, st.sampled_from(["delete", "get", "scan"]), KEYS),
        st.builds(Step, st.just("raise"), KEYS),
    ),
    max_size=6,
)


class Refused(Exception):
    pass


def run(steps: list[Step]) -> Callable[[Transaction], list[Any]]:
    def work(txn: Transaction) -> list[Any]:
        seen: list[Any] = []
        for step in steps:
            match step.kind:
                case "put":
                    txn.put(step.key, step.value)
                case "delete":
                    txn.delete(step.key)
                case "get":
                    seen.append(txn.get(step.key))
                case "scan":
                    seen.append(list(txn.scan(step.key)))
                case _:
                    raise Refused(tuple(seen))
        return seen

    return work


class Model:
    """A dict that does what the contract says, in the simplest way there is."""

    def __init__(self, values: dict[bytes, bytes]) -> None:
        self.values = values

    def get(self, key: bytes) -> bytes | None:
        return self.values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        self.values.pop(key, None)

    def scan(self, prefix: bytes) -> Any:
        return iter(sorted((key, value) for key, value in self.values.items() if key.startswith(prefix)))


def expected(values: dict[bytes, bytes], steps: list[Step]) -> tuple[Any, dict[bytes, bytes]]:
    model = Model(dict(values))
    try:
        return run(steps)(model), model.values
    except Refused as error:
        return error, values


def same(found: object, wanted: object) -> bool:
    if isinstance(wanted, Refused):
        return isinstance(found, Refused) and found.args == wanted.args
    return found == wanted


class Stores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.directory = Path(tempfile.mkdtemp(prefix="bursar-", dir=in_memory))
        self.shared = SharedMemory()
        self.values: dict[bytes, bytes] = {}
        self.backends: list[Backend] = []

    def call(self, awaitable: Any) -> Any:
        return self.loop.run_until_complete(awaitable)

    async def open(self) -> list[Backend]:
        # The smallest map: it has to grow within a few steps.
        return [await LmdbBackend.open(self.directory / "s", map_size=1), MemoryBackend(self.shared)]

    @initialize()
    def start(self) -> None:
        self.backends = self.call(self.open())

    @rule(groups=st.lists(STEPS, min_size=1, max_size=5))
    def transact_together(self, groups: list[list[Step]]) -> None:
        """Handed in at once; run in that order, whether they share a commit or not."""
        wanted = []
        for steps in groups:
            result, self.values = expected(self.values, steps)
            wanted.append(result)
        for backend in self.backends:
            found = self.call(self.gather([backend.transact(run(steps)) for steps in groups]))
            assert all(map(same, found, wanted)), (backend, found, wanted)

    @rule(steps=STEPS.map(lambda steps: [step for step in steps if step.kind in ("get", "scan")]))
    def view(self, steps: list[Step]) -> None:
        wanted, _ = expected(self.values, steps)
        for backend in self.backends:
            assert self.call(backend.view(run(steps))) == wanted

    @precondition(lambda self: self.values)
    @rule(data=st.data())
    def delete_everything_below(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.values)))[:1]

        def work(txn: Transaction) -> int:
            count = 0
            for found, _ in txn.scan(key):
                if not found.startswith(b"m/"):
                    txn.delete(found)
                    count += 1
            return count

        wanted = [found for found in self.values if found.startswith(key)]
        for backend in self.backends:
            assert self.call(backend.transact(work)) == len(wanted)
        for found in wanted:
            del self.values[found]

    @rule()
    def open_again(self) -> None:
        for backend in self.backends:
            self.call(backend.close())
        self.backends = self.call(self.open())

    @rule()
    def open_beside(self) -> None:
        others = self.call(self.open())
        for backend in self.backends:
            self.call(backend.close())
        self.backends = others

    @invariant()
    def all_agree(self) -> None:
        taken[type(self).__name__] += 1
        for backend in self.backends:
            found = dict(self.call(backend.view(lambda txn: list(txn.scan(b"")))))
            marks = {key: found.pop(key) for key in list(found) if key.startswith(b"m/")}
            assert found == self.values
            assert len(marks) == 3

    async def gather(self, calls: list[Any]) -> list[Any]:
        return await asyncio.gather(*calls, return_exceptions=True)

    def teardown(self) -> None:
        for backend in self.backends:
            self.call(backend.close())
        self.call(self.loop.shutdown_default_executor())
        self.loop.close()
        shutil.rmtree(self.directory)


Stores.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestStores = Stores.TestCase
