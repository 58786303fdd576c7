"""Which addons handle which hook, looked up once: half of mitmproxy's work per request is asking all of them.

Optional, and off under plain mitmdump. Order, isolation of failures and `AddonHalt` are as in mitmproxy's own
`AddonManager.trigger_event`. One thing differs: a handler that is set on an addon while the proxy runs is
found only after the next change of addons or options.

A hook whose handlers are done without waiting needs no task (`inline`). And a log record is made into an event
only if somebody takes those: mitmproxy asks all addons for each line that is logged.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import fields
from typing import Any, Final, NamedTuple

from mitmproxy import http, version
from mitmproxy.addonmanager import AddonManager, safecall, traverse
from mitmproxy.addons.onboarding import Onboarding
from mitmproxy.exceptions import AddonHalt, OptionsError
from mitmproxy.flow import Flow
from mitmproxy.hooks import Hook, UpdateHook
from mitmproxy.log import AddLogHook

from proxy_addon.mitm import inline, log_events
from proxy_addon.mitm.compat import why_unsupported
from proxy_addon.mitm.idle import is_idle

Groups = tuple[
    tuple[object, ...], ...
]  # per addon of the chain: it and its sub-addons, as far as they handle it

_UPDATE: Final = UpdateHook.name
_LOG: Final = AddLogHook.name
_CLIENT: Final = "client_connected"


def install(addons: AddonManager) -> str | None:
    """Make `addons` remember who handles what. Returns why not, in a version of mitmproxy that was not tested."""
    why = why_unsupported(version.VERSION)
    if why is None:
        _Dispatch(addons)
    return why


class _Paused(NamedTuple):
    """A handler waits: the rest of its hook comes after it."""

    waiting: Awaitable[Any]
    groups: Groups  # as they were when it began
    group: int
    place: int  # in the group, of the next handler


class _Dispatch:
    def __init__(self, addons: AddonManager) -> None:
        self._addons = addons
        self._known: dict[str, Groups] = {}
        for name in ("register", "remove", "clear", "add"):
            setattr(addons, name, self._forgetting(getattr(addons, name)))
        self._trigger = self._forgetting(addons.trigger)
        addons.trigger = self.trigger  # type: ignore[method-assign]
        addons.trigger_event = self.trigger_event  # type: ignore[method-assign]
        log_events.filter_by(addons, self._is_taken)

    def _forgetting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:
                self._known.clear()

        return wrapped

    def _is_taken(self, record: logging.LogRecord) -> bool:
        """Does an addon take log events, as far as is known? Any thread asks."""
        return self._known.get(_LOG) != ()

    def _groups(self, name: str) -> Groups:
        groups = self._known.get(name)
        return self._look_up(name) if groups is None else groups

    def _look_up(self, name: str) -> Groups:
        found = []
        options = self._addons.master.options
        for addon in self._addons.chain:
            with safecall():
                handlers = self._addons._iter_hooks(addon, _named(name))
                names = {id(a) for a, _ in handlers if not is_idle(a, name, options)}
                if names:
                    found.append(tuple(_quick(a) for a in traverse([addon]) if id(a) in names))  # type: ignore[no-untyped-call]
        self._known[name] = groups = tuple(found)
        return groups

    # -- instead of mitmproxy's

    def trigger(self, event: Hook) -> None:
        """Options that change come this way, and scripts come, go and change places by it; and log records."""
        if event.name != _LOG:
            self._trigger(event)
        elif self._groups(_LOG):
            AddonManager.trigger(self._addons, event)

    async def trigger_event(self, event: Hook) -> None:
        args = event.args()
        if event.name == _CLIENT:
            await self._finish(event.name, args, self._begin(event.name, args))
            inline.adopt(self._addons, args[0], self)
            return
        paused = self._begin(event.name, args)
        if paused is not None:
            await self._finish(event.name, args, paused)

    def start(self, hook: Hook) -> Coroutine[Any, Any, None] | None:
        """`AddonManager.handle_lifecycle`, and the wait for a flow that was intercepted: now, as far as that goes.

        None: all is done. Else the rest of it, to be awaited.
        """
        (data,) = args = (getattr(hook, _only_field(type(hook))),)
        paused = self._begin(hook.name, args)
        is_flow = isinstance(data, Flow)
        if paused is None and not (is_flow and (data.intercepted or self._groups(_UPDATE))):
            return None
        return self._rest(hook.name, args, paused, data if is_flow else None)

    async def _rest(self, name: str, args: Any, paused: _Paused | None, flow: Flow | None) -> None:
        await self._finish(name, args, paused)
        if flow is not None:
            update = UpdateHook([flow]).args()
            await self._finish(_UPDATE, update, self._begin(_UPDATE, update))
            await flow.wait_for_resume()  # type: ignore[no-untyped-call]

    # -- the handlers, in order

    def _begin(self, name: str, args: Any) -> _Paused | None:
        groups = self._groups(name)
        return _go(name, args, groups, 0, 0) if groups else None

    async def _finish(self, name: str, args: Any, paused: _Paused | None) -> None:
        while paused is not None:
            waiting, groups, group, place = paused
            try:
                await waiting
            except AddonHalt:
                return
            except OptionsError:
                raise
            except Exception:
                with safecall():
                    raise  # for its way of logging
                group, place = group + 1, 0
            paused = _go(name, args, groups, group, place)


def _go(name: str, args: Any, groups: Groups, first: int, place: int) -> _Paused | None:
    """Call handlers from that place on, up to the first that waits."""
    for number in range(first, len(groups)):
        group = groups[number]
        try:
            while place < len(group):
                result = getattr(group[place], name)(*args)
                place += 1
                if result is not None and inspect.isawaitable(result):
                    return _Paused(result, groups, number, place)
        except AddonHalt:
            return None
        except OptionsError:
            raise
        except Exception:
            with safecall():
                raise  # for its way of logging
        place = 0
    return None


class _Onboarding:
    """mitmproxy's page for those who install its certificate: a coroutine only for requests that it serves."""

    def __init__(self, addon: Onboarding) -> None:
        self._addon = addon

    def request(self, flow: http.HTTPFlow) -> Awaitable[None] | None:
        return self._addon.request(flow) if self._addon.should_serve(flow) else None  # type: ignore[no-untyped-call]


def _quick(addon: object) -> object:
    return _Onboarding(addon) if type(addon) is Onboarding else addon


class _Named(Hook):  # type: ignore[no-untyped-call]
    name = ""


def _named(name: str) -> Hook:
    """What `_iter_hooks` wants to see: it asks for the name only."""
    hook: Any = object.__new__(_Named)
    hook.name = name
    return hook  # type: ignore[no-any-return]


_fields: dict[type[Hook], str] = {}


def _only_field(kind: type[Hook]) -> str:
    name = _fields.get(kind)
    if name is None:
        (field,) = fields(kind)  # type: ignore[arg-type]
        name = _fields[kind] = field.name
    return name
