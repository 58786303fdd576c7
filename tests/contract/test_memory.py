from __future__ import annotations

from pathlib import Path

import pytest

from store.contract import Backend
from store.memory_store import MemoryBackend, SharedMemory
from tests.contract.suite import BackendContract, Open


class TestMemory(BackendContract):
    spec = "memory"

    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Open:
        shared = SharedMemory()

        async def opened() -> Backend:
            return MemoryBackend(shared)

        return opened
