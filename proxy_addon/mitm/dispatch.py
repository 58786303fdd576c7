"""Which addons handle which hook, looked up once: half of mitmproxy's work per request is asking all of them.

Optional. Order, isolation of failures and `AddonHalt` are as in mitmproxy's own `AddonManager.trigger_event`. What
is remembered is what mitmproxy's own addons and ours handle, until addons or options change. Anybody else's addon, a
script's too, may get and lose handlers while the proxy runs: it is asked each time.

A hook whose handlers are done without waiting needs no task (`inline`). And a log record is made into an event
only if somebody takes those: mitmproxy asks all addons for each line that is logged.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple

from mitmproxy import http, version
from mitmproxy.addonmanager import AddonManager, safecall, traverse
from mitmproxy.addons.onboarding import Onboarding
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.exceptions import AddonHalt, OptionsError
from mitmproxy.flow import Flow
from mitmproxy.hooks import Hook, UpdateHook
from mitmproxy.log import AddLogHook

from proxy_addon.mitm import inline, log_events
from proxy_addon.mitm.compat import why_unsupported
from proxy_addon.mitm.idle import is_idle

_OURS: Final = ("mitmproxy.", "proxy_addon.")  # packages whose addons handle what their classes say
_UPDATE: Final = UpdateHook.name
_LOG: Final = AddLogHook.name
_CLIENT: Final = "client_connected"


def install(addons: AddonManager) -> str | None:
    """Make `addons` remember who handles what. Returns why not, in a version of mitmproxy that was not tested."""
    why = why_unsupported(version.VERSION)
    if why is None and not _is_replaced(addons):
        _Dispatch(addons)
    return why


def _is_replaced(addons: AddonManager) -> bool:
    """By us, or by somebody else whose own dispatch stays."""
    own = (
        type(addons) is AddonManager and "trigger_event" not in vars(addons) and "trigger" not in vars(addons)
    )
    return not own


class _Live:
    """An addon of the chain that is asked each time, with its sub-addons."""

    def __init__(self, addon: object, judge: Callable[[object, str], Sequence[object]]) -> None:
        self._addon = addon
        self._judge = judge

    def now(self, name: str) -> Sequence[object]:
        found = []
        for one in traverse([self._addon]):  # type: ignore[no-untyped-call]
            handler = getattr(one, name, None)
            if handler:
                if not callable(handler):
                    return self._judge(self._addon, name)
                found.append(one)
        return found


Group = (
    Sequence[object] | _Live
)  # of an addon of the chain: it and its sub-addons, as far as they handle a hook
Groups = tuple[Group, ...]


class _Paused(NamedTuple):
    """A handler waits: the rest of its hook comes after it."""

    waiting: Awaitable[Any]
    groups: Groups  # from its own on
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
        self._log_events = log_events.Switch(addons)

    def _forgetting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:
                self._known.clear()
                self._log_events.turn(on=True)

        return wrapped

    def _groups(self, name: str) -> Groups:
        groups = self._known.get(name)
        return self._look_up(name) if groups is None else groups

    def _look_up(self, name: str) -> Groups:
        found: list[Group] = []
        options = self._addons.master.options
        for addon in self._addons.chain:
            with safecall():
                if name != _LOG and not _is_known(addon):
                    found.append(_Live(addon, self._handlers))
                elif group := [a for a in self._handlers(addon, name) if not is_idle(a, name, options)]:
                    found.append([_quick(a, name) for a in group])
        self._known[name] = groups = tuple(found)
        if name == _LOG:
            self._log_events.turn(on=bool(groups))
        return groups

    def _handlers(self, addon: object, name: str) -> Sequence[object]:
        return [a for a, _ in self._addons._iter_hooks(addon, _named(name))]

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
        flow = data if isinstance(data, Flow) else None
        paused = self._begin(hook.name, args)
        if paused is not None:
            return self._rest(hook.name, args, paused, flow)
        return None if flow is None else self._updated(flow)

    async def _rest(self, name: str, args: Any, paused: _Paused, flow: Flow | None) -> None:
        await self._finish(name, args, paused)
        if flow is not None and (rest := self._updated(flow)) is not None:
            await rest

    def _updated(self, flow: Flow) -> Coroutine[Any, Any, None] | None:
        """What comes after each hook of a flow."""
        args = ([flow],)
        paused = self._begin(_UPDATE, args)
        return self._resumed(flow, args, paused) if paused is not None or flow.intercepted else None

    async def _resumed(self, flow: Flow, args: Any, paused: _Paused | None) -> None:
        await self._finish(_UPDATE, args, paused)
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
            if isinstance(group, _Live):
                group = group.now(name)
            while place < len(group):
                result = getattr(group[place], name)(*args)
                place += 1
                if result is not None and inspect.isawaitable(result):
                    return _Paused(result, (group, *groups[number + 1 :]), 0, place)
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


def _is_known(addon: object) -> bool:
    return all(type(one).__module__.startswith(_OURS) for one in traverse([addon]))  # type: ignore[no-untyped-call]


class _Revocations:
    """mitmproxy's list of revoked certificates: its path is made out of a certificate for each request."""

    def __init__(self, addon: Any) -> None:
        self._addon = addon

    def request(self, flow: http.HTTPFlow) -> None:
        if flow.request.data.path.endswith(b".crl"):
            self._addon.request(flow)


def _quick(addon: object, name: str) -> object:
    if type(addon) is Onboarding:
        return _Onboarding(addon)
    return _Revocations(addon) if type(addon) is TlsConfig and name == "request" else addon


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
