"""Which addons handle which hook, looked up once: half of mitmproxy's work per request is asking all of them.

Optional, and off under plain mitmdump. Order, isolation of failures and `AddonHalt` are as in mitmproxy's own
`AddonManager.trigger_event`. One thing differs: a handler that is set on an addon while the proxy runs is
found only after the next change of addons or options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mitmproxy import version
from mitmproxy.addonmanager import AddonManager, safecall, traverse
from mitmproxy.exceptions import AddonHalt, OptionsError
from mitmproxy.hooks import Hook

from proxy_addon.mitm.compat import why_unsupported

Groups = tuple[
    tuple[object, ...], ...
]  # per addon of the chain: it and its sub-addons, as far as they handle it


def install(addons: AddonManager) -> str | None:
    """Make `addons` remember who handles what. Returns why not, in a version of mitmproxy that was not tested."""
    why = why_unsupported(version.VERSION)
    if why is None:
        _Dispatch(addons)
    return why


class _Dispatch:
    def __init__(self, addons: AddonManager) -> None:
        self._addons = addons
        self._known: dict[str, Groups] = {}
        # `trigger` carries the change of options: scripts come, go and change places by it.
        for name in ("register", "remove", "clear", "add", "trigger"):
            setattr(addons, name, self._forgetting(getattr(addons, name)))
        addons.trigger_event = self.trigger_event  # type: ignore[method-assign]

    def _forgetting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:
                self._known.clear()

        return wrapped

    def _look_up(self, event: Hook) -> Groups:
        found = []
        for addon in self._addons.chain:
            with safecall():
                handlers = self._addons._iter_hooks(addon, event)
                names = {id(a) for a, _ in handlers}
                if names:
                    found.append(tuple(a for a in traverse([addon]) if id(a) in names))  # type: ignore[no-untyped-call]
        self._known[event.name] = groups = tuple(found)
        return groups

    async def trigger_event(self, event: Hook) -> None:
        groups = self._known.get(event.name)
        if groups is None:
            groups = self._look_up(event)
        name = event.name
        for group in groups:
            try:
                for addon in group:
                    result = getattr(addon, name)(*event.args())
                    if result is not None and inspect.isawaitable(result):
                        await result
            except AddonHalt:
                return
            except OptionsError:
                raise
            except Exception:
                with safecall():
                    raise  # for its way of logging
