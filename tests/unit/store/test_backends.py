from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from store.backends import open_backend
from store.contract import StoreUnavailable, UnknownVersion
from store.lmdb_store import LmdbBackend
from store.memory_store import MemoryBackend

MODULE = """
from store.contract import UnknownVersion
from store.memory_store import MemoryBackend

class Store(MemoryBackend):
    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    @classmethod
    async def open(cls, directory):
        return cls(directory)

class Broken:
    def __init__(self, directory):
        raise KeyError("no credentials")

class Newer:
    def __init__(self, directory):
        raise UnknownVersion("format 9")

class Half:
    def __init__(self, directory):
        pass
    async def transact(self, work): ...
    def alive(self, owner_id): ...

value = 5
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "third_party").mkdir()
    (tmp_path / "third_party" / "__init__.py").write_text("")
    (tmp_path / "third_party" / "good.py").write_text(MODULE)
    (tmp_path / "third_party" / "bad.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield "third_party"
    for name in [name for name in sys.modules if name.partition(".")[0] == "third_party"]:
        del sys.modules[name]


async def test_the_built_in_ones(tmp_path: Path) -> None:
    durable = await open_backend("lmdb", tmp_path / "store")
    assert isinstance(durable, LmdbBackend)
    await durable.transact(lambda txn: txn.put(b"a", b"1"))
    await durable.close()
    assert (tmp_path / "store" / "data.mdb").exists()
    assert isinstance(await open_backend("memory", tmp_path / "nothing"), MemoryBackend)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", ["Store", "Store.open"])
async def test_a_third_party(package: str, tmp_path: Path, name: str) -> None:
    backend = await open_backend(f"{package}.good:{name}", tmp_path / "store")
    assert getattr(backend, "directory", None) == tmp_path / "store"
    assert await backend.transact(lambda txn: 5) == 5
    await backend.close()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        *(
            (spec, "expected 'lmdb', 'memory' or 'package.module:Class'")
            for spec in ("", "LMDB", "redis", " lmdb")
        ),
        *(
            (spec, "expected 'lmdb'")
            for spec in (":", "a:", ":b", "a b:c", "a:b c", "a..b:c", "a:b:c", "../a:b")
        ),
        (
            "{}.nothing:Store",
            "importing third_party.nothing failed .ModuleNotFoundError.*installed in the Python",
        ),
        ("{}.bad:Store", "importing third_party.bad failed .ZeroDivisionError"),
        ("{}.good:Missing", "third_party.good has no Missing"),
        ("{}.good:Store.missing", "third_party.good has no Store.missing"),
        ("{}.good:value", "value cannot be called"),
        ("{}.good:Broken", "could not be opened in .*KeyError: 'no credentials'"),
        ("{}.good:Half", "has no view, owner_id, close; .*store/contract.py"),
    ],
)
async def test_a_bad_spec_is_refused(package: str, tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(StoreUnavailable, match=message):
        await open_backend(spec.format(package), tmp_path)


async def test_the_stores_own_refusal_is_passed_on(package: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownVersion, match="format 9"):
        await open_backend(f"{package}.good:Newer", tmp_path)
