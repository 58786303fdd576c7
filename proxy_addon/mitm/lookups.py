"""What mitmproxy looks up again and again, found faster: a tenth of the work of a request.

It asks for some twenty header fields of each request and answer, most of which are not there, and reads and converts
all of them each time; it takes the address that a request goes to apart three times, by way of IDNA; it makes deep
copies of options that are a word or a number. Here a look-up converts what it has found, an address is remembered, and
what cannot be changed is not copied. What is found, and what is raised, is as ever; subclasses are left to mitmproxy's
own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, wraps
from typing import Any, Final, TypeVar

from mitmproxy import http, optmanager
from mitmproxy.coretypes.multidict import MultiDict
from mitmproxy.net.http import url

T = TypeVar("T")
_MOST: Final = 256
_LONGEST: Final = 512  # bytes of an address; so that what clients make up fills no memory
_MAY_BE_SECRET: Final = ("?", "@", b"?", b"@")
_ATOMS: Final = frozenset({str, int, float, bool, type(None)})


def install() -> None:
    """For all messages of this process. May be called again."""
    if getattr(http.Headers.get, "quick", False):
        return
    own: Any = http.Headers
    made: Any
    for made in (_get_all(own.get_all), _get(), _contains(), _init(own.__init__)):
        made.quick = True
        setattr(http.Headers, made.__name__, made)
    for name in ("parse", "parse_authority"):
        setattr(url, name, _remembering(getattr(url, name)))
    option: Any = optmanager._Option
    option.current = _current(option.current)


@lru_cache(maxsize=_MOST)
def _wanted(name: Any) -> bytes:
    """In lower case. Raises ``TypeError`` for what can be no field's name."""
    found: bytes = http._always_bytes(name).lower()
    return found


def _get_all(own: Callable[..., list[str]]) -> Callable[..., list[str]]:
    @wraps(own)
    def get_all(headers: Any, name: Any) -> list[str]:
        wanted = _wanted(name)
        return [
            value.decode("utf-8", "surrogateescape")
            for found, value in headers.fields
            if found.lower() == wanted
        ]

    return get_all


def _get() -> Callable[..., Any]:
    def get(headers: Any, key: Any, default: Any = None) -> Any:
        if type(headers) is not http.Headers:
            return Mapping.get(headers, key, default)
        values = headers.get_all(key)
        return ", ".join(values) if values else default

    return get


def _contains() -> Callable[..., bool]:
    def __contains__(headers: Any, key: object) -> bool:
        if type(headers) is not http.Headers:
            return Mapping.__contains__(headers, key)
        wanted = _wanted(key)
        return any(found.lower() == wanted for found, _ in headers.fields)

    return __contains__


def _init(own: Callable[..., None]) -> Callable[..., None]:
    @wraps(own)
    def __init__(headers: Any, fields: Iterable[tuple[bytes, bytes]] = (), **more: Any) -> None:
        if more:
            own(headers, fields, **more)
            return
        MultiDict.__init__(headers, fields)  # type: ignore[no-untyped-call]
        for name, value in headers.fields:
            if not isinstance(name, bytes) or not isinstance(value, bytes):
                raise TypeError("Header fields must be bytes.")

    return __init__


def _remembering(own: Callable[..., T]) -> Callable[..., T]:
    """`own` gives what cannot be changed, and the same each time."""
    known = lru_cache(maxsize=_MOST)(own)

    @wraps(own)
    def quick(text: Any, *args: Any, **options: Any) -> T:
        if type(text) in (str, bytes) and len(text) <= _LONGEST:
            query, user = _MAY_BE_SECRET[:2] if type(text) is str else _MAY_BE_SECRET[2:]
            if query not in text and user not in text:
                return known(text, *args, **options)
        return own(text, *args, **options)

    return quick


def _current(own: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @wraps(own)
    def current(option: Any) -> Any:
        value = option._default if option.value is optmanager.unset else option.value
        return value if type(value) in _ATOMS else own(option)

    return current
