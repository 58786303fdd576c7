"""What is loaded at the start, and what is not; and that nothing is found to be missing only when it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from proxy_addon import runtime
from proxy_addon.config import ConfigError, parse_text
from proxy_addon.runtime import open_runtime

ROOT = Path(__file__).parents[2]
LATE = ("rlp", "eth_utils", "eth_account", "httpx", "certifi")


def test_what_can_wait_is_not_imported() -> None:
    code = (
        "import sys\n"
        "import mitmproxy.tools.main, mitmproxy.tools.dump\n"
        "before = set(sys.modules)\n"
        "import proxy_addon.cli.run, proxy_addon.cli.serve, proxy_addon.addon, proxy_addon.config\n"
        f"print([name for name in {LATE!r} if name in sys.modules and name not in before])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]"], done.stderr


@pytest.mark.parametrize("need_signer", [True, False])
async def test_a_package_that_is_missing_is_told_at_the_start(
    need_signer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_LATE", ("orjson", "no_such_package"))
    settings = parse_text(f'[store]\ndirectory = "{tmp_path}/store"', "a test")
    with pytest.raises(ConfigError, match="no_such_package is not installed: pip install"):
        await open_runtime(settings, need_signer=need_signer)
    assert not (tmp_path / "store").exists()
