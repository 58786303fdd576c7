"""One payer in a process of its own, for strace to look at: ``python -m tests.crash.straced FD JOB``."""

from __future__ import annotations

import asyncio
import pickle
import sys
from pathlib import Path

from tests.crash import life

if __name__ == "__main__":
    life.warm_up()
    asyncio.run(life.live(int(sys.argv[1]), pickle.loads(Path(sys.argv[2]).read_bytes())))
