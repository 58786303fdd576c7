"""The types of a message's fields, checked faster: a fifth of the work of a request that passes through.

mitmproxy looks up the type of each field of each request and response that is made, and takes the annotation apart
to do so (it leaves the check out under ``python -O``). Here that is done once per class. Whatever is not obviously
right goes to mitmproxy's own check, which accepts or refuses it as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin

from mitmproxy import http

Plan = tuple[tuple[str, frozenset[type]], ...]

_plans: dict[type, Plan] = {}


def install() -> None:
    """For all messages of this process. Once is enough."""
    own: Callable[[Any], None] | None = vars(http.MessageData).get("__post_init__")
    if own is not None and not getattr(own, "quick", False):
        vars_of_class: Any = http.MessageData
        vars_of_class.__post_init__ = _quick(own)


def _quick(own: Callable[[Any], None]) -> Callable[[Any], None]:
    def check(message: Any) -> None:
        kind = type(message)
        plan = _plans.get(kind)
        if plan is None:
            plan = _plans[kind] = _plan(kind)
        values = vars(message)
        for name, kinds in plan:
            if type(values[name]) not in kinds:
                own(message)
                return

    check.quick = True  # type: ignore[attr-defined]
    return check


def _plan(kind: Any) -> Plan:
    return tuple((field.name, _kinds(field.type)) for field in fields(kind))


def _kinds(annotation: Any) -> frozenset[type]:
    """What it says is right; a type that is not known here is never obviously right."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    found = {part for part in parts if isinstance(part, type)}
    return frozenset(found | {int}) if float in found else frozenset(found)
