"""A mitmproxy script, loaded beside the addon: a request with ``X-Sabotage: NAME`` lets that function fail.

What `tests.sabotage` has seen is in the file ``$SABOTAGE``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from mitmproxy import http

from tests.sabotage import Sabotage, secrets_of

sabotage = Sabotage(("mitm",))
file = Path(os.environ["SABOTAGE"])


def write() -> None:
    whole = file.with_suffix(".new")
    fired = {name: sorted(secrets_of(text)) for name, text in sabotage.fired.items()}
    whole.write_text(json.dumps({"holders": sabotage.holders, "fired": fired}))
    whole.replace(file)


class Arming:
    def requestheaders(self, flow: http.HTTPFlow) -> None:
        sabotage.armed = flow.request.headers.pop("x-sabotage", "")


sabotage.on_change = write
addons = [Arming()]
