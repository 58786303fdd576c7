"""mitmproxy's own addons that do nothing to a flow while their option is off: they need not be asked.

Each of these looks at its option, or at what `configure` made of it, and returns. Together they are a twentieth of
the work of a request. What an option turns on is found again: a change of options ends what was remembered.
"""

from __future__ import annotations

from typing import Final

from mitmproxy.addons import (
    anticache,
    anticomp,
    blocklist,
    maplocal,
    mapremote,
    modifybody,
    modifyheaders,
    savehar,
    stickyauth,
    stickycookie,
)
from mitmproxy.options import Options

_HOOKS: Final = frozenset({"requestheaders", "request", "responseheaders", "response", "error"})
_OPTION_OF: Final[dict[type, str]] = {
    anticache.AntiCache: "anticache",
    anticomp.AntiComp: "anticomp",
    blocklist.BlockList: "block_list",
    maplocal.MapLocal: "map_local",
    mapremote.MapRemote: "map_remote",
    modifybody.ModifyBody: "modify_body",
    modifyheaders.ModifyHeaders: "modify_headers",
    savehar.SaveHar: "hardump",
    stickyauth.StickyAuth: "stickyauth",
    stickycookie.StickyCookie: "stickycookie",
}


def is_idle(addon: object, hook: str, options: Options) -> bool:
    """Would this hook of it do nothing, by the options as they are?"""
    option = _OPTION_OF.get(type(addon)) if hook in _HOOKS else None
    return option is not None and option in options and not getattr(options, option)
