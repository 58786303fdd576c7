from __future__ import annotations

from tests.contract.suite import ProcessContract


class TestLmdb(ProcessContract):
    spec = "lmdb"
