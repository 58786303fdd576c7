"""`bursar inspect`: what a URL asks for, what would be done about it, and why. Nothing is paid."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import click

from proxy_addon.cli.failure import ExitCode, Failure
from proxy_addon.cli.home import config_option, json_option, load_settings
from proxy_addon.cli.output import echo_json, printable, short_id, utc

if TYPE_CHECKING:
    from proxy_addon.config import Settings
    from proxy_addon.core.messages import Challenge
    from proxy_addon.core.policy import Caps, Origin
    from proxy_addon.outbound import Answer
    from proxy_addon.payer.prospect import Prospect
    from store.records import Channel

_PORTS: Final = {"http": 80, "https": 443}


@click.command(name="inspect")
@config_option
@click.option("--method", "-X", default="GET", show_default=True, help="The request's method.")
@click.option("--header", "-H", "headers", multiple=True, metavar="'NAME: VALUE'", help="Repeatable.")
@json_option
@click.argument("url")
def command(config: Path, method: str, headers: tuple[str, ...], as_json: bool, url: str) -> None:
    """Ask a URL, without paying, and say what would be done about its answer and why.

    The request is sent once, without a body, directly: a server that asks for no money carries it out. The exit
    code is 5 if the URL asks for money and would not be paid.

    \b
    Examples:
      bursar inspect https://api.example.com/quote
      bursar inspect -X POST https://api.example.com/v1/chat/completions
    """
    settings = load_settings(config)
    origin = _origin(url)
    fields = dict(_field(header) for header in headers)
    answer, channels, counters = asyncio.run(_look(settings, method.upper(), url, fields))
    told = _tell(settings, origin, url, answer, channels, counters)
    if as_json:
        echo_json(told)
    else:
        click.echo("\n".join(_lines(told)))
    if told["payments"] and not any(one["would_pay"] for one in told["payments"]):
        raise SystemExit(ExitCode.REFUSED)


def _origin(url: str) -> Origin:
    from proxy_addon.core.policy import Origin

    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in _PORTS or not host:
        raise click.BadParameter(f"{url!r} is no http(s) address", param_hint="URL")
    return Origin(parts.scheme, host.rstrip("."), port or _PORTS[parts.scheme])


def _field(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise click.BadParameter(f"{text!r} is no 'NAME: VALUE'", param_hint="--header")
    return name.strip(), value.strip()


async def _look(
    settings: Settings, method: str, url: str, fields: dict[str, str]
) -> tuple[Answer, list[Channel], Mapping[str, int]]:
    from proxy_addon.cli.records import open_store, read_channels
    from proxy_addon.core.errors import OutcomeUnknown
    from proxy_addon.methods import registry
    from proxy_addon.runtime import open_outbound

    outbound = open_outbound(settings)
    try:
        answer = await outbound.send(method, url, {"Accept-Payment": registry.accept_payment(), **fields})
    except OutcomeUnknown as error:
        raise Failure(
            f"{error}; is the address right, and can this machine reach it without a proxy?"
        ) from None
    finally:
        await outbound.aclose()
    channels = [view.channel for view in await read_channels(settings)]
    if not settings.store.directory.exists():
        return answer, channels, {}
    store = await open_store(settings)
    try:
        return answer, channels, await store.counters()
    finally:
        await store.close()


def _tell(
    settings: Settings,
    origin: Origin,
    url: str,
    answer: Answer,
    channels: list[Channel],
    counters: Mapping[str, int],
) -> dict[str, Any]:
    from proxy_addon.core.messages import parse_challenges

    parsed = parse_challenges(answer.all("www-authenticate")) if answer.status == 402 else None
    return {
        "url": url,
        "status": answer.status,
        "problems": list(parsed.problems) if parsed else [],
        "payments": [
            _payment(settings, origin, challenge, channels, counters)
            for challenge in (parsed.challenges if parsed else ())
        ],
    }


def _payment(
    settings: Settings,
    origin: Origin,
    challenge: Challenge,
    channels: Iterable[Channel],
    counters: Mapping[str, int],
) -> dict[str, Any]:
    from proxy_addon.audit import utc_date
    from proxy_addon.core.errors import BursarError, LocalRefusal
    from proxy_addon.methods import registry
    from proxy_addon.payer.offers import judge
    from proxy_addon.payer.prospect import foresee, same_terms
    from proxy_addon.runtime import now_ms

    now = now_ms()
    told: dict[str, Any] = {"method": challenge.method, "intent": challenge.intent, "would_pay": False}
    try:
        terms = registry.resolve(challenge).terms(challenge)
        token = settings.token(terms.chain, terms.token)
        told |= {
            "protocol": f"{terms.family}/{terms.version}",
            "price": str(terms.price),
            "price_human": token.show(terms.price),
            "unit": terms.unit_type,
            "suggested_deposit": None if terms.suggested_deposit is None else str(terms.suggested_deposit),
            "chain": terms.chain,
            "token": terms.token,
            "payee": terms.payee,
            "escrow": terms.escrow,
            "network_fee": "sponsored by the server" if terms.fee_payer else "ours, when a channel is opened",
        }
        payable = judge(settings.spend_policy(), origin, challenge, now)
    except BursarError as error:
        reason = error.reason if isinstance(error, LocalRefusal) else "not-understood"
        return told | {"reason": reason, "because": str(error)}
    of_scope = [one for one in channels if same_terms(one, terms, origin)]
    prospect = foresee(terms, payable.caps, of_scope, counters, utc_date(now))
    told |= {
        "expires": utc(payable.expires_at),
        "rule": payable.caps.rule,
        "limits": _limits(payable.caps, prospect),
    }
    if (over := prospect.over) is not None:
        limit = _amount(payable.caps, over.move.key, over.move.limit or 0)
        because = (
            f"{over.move.rule} = {limit} has {_amount(payable.caps, over.move.key, over.used)} used already"
        )
        return told | {"reason": "limit-reached", "because": because}
    if settings.mode == "shadow":
        return told | {
            "reason": "shadow",
            "because": 'mode = "shadow" pays nothing; it only says what it would do',
        }
    return told | {"would_pay": True, "step": prospect.step.value, "how": _how(payable.caps, prospect)}


def _amount(caps: Caps, key: str, amount: int) -> str:
    return str(amount) if key.startswith("opens/") else caps.token.show(amount)


def _limits(caps: Caps, prospect: Prospect) -> list[dict[str, str]]:
    return [
        {
            "rule": use.move.rule,
            "limit": _amount(caps, use.move.key, use.move.limit or 0),
            "used": _amount(caps, use.move.key, use.used),
            "adds": _amount(caps, use.move.key, use.move.amount),
        }
        for use in prospect.uses
    ]


def _how(caps: Caps, prospect: Prospect) -> str:
    from proxy_addon.payer.prospect import Step

    show, channel = caps.token.show, prospect.channel
    name = "" if channel is None else short_id(channel.channel_id)
    left = (
        ""
        if channel is None
        else f"{show(channel.ceiling - channel.authorised)} left of {show(channel.ceiling)}"
    )
    match prospect.step:
        case Step.USE:
            return f"channel {name} has it authorised already: no limit moves"
        case Step.RAISE:
            return f"resume channel {name} ({left}); sign a voucher for {show(prospect.new_money)} more"
        case Step.TOP_UP:
            return f"add {show(prospect.deposit)} to channel {name} ({left}), and sign a voucher"
        case Step.WAIT:
            return f"wait for channel {name}, which is being opened"
        case Step.OPEN:
            deposit = show(prospect.deposit)
            return f"open a channel with a deposit of {deposit}; what is not spent comes back at its close"


def _lines(told: dict[str, Any]) -> list[str]:
    payments = told["payments"]
    if told["status"] != 402:
        return [f"{printable(told['url'])} answers {told['status']}: it asks for no money"]
    lines = [f"{printable(told['url'])} answers 402, with {len(payments)} payment(s) that can be read"]
    lines += [f"  unreadable: {printable(problem)}" for problem in told["problems"]]
    for number, one in enumerate(payments, 1):
        unit = f" a {one['unit']}" if one.get("unit") else ""
        what = one.get("price_human", "an unknown amount")
        lines += ["", f"{number}. {printable(one['method'])}/{printable(one['intent'])}: {what}{unit}"]
        for name in ("chain", "token", "payee", "escrow", "network_fee", "expires", "rule"):
            if name in one:
                lines.append(f"   {name.replace('_', ' '):<12} {printable(one[name])}")
        for limit in one.get("limits", ()):
            lines.append(
                f"   {'limit':<12} {limit['rule']} = {limit['limit']}: {limit['used']} used, this adds {limit['adds']}"
            )
        if one["would_pay"]:
            lines.append(f"   would pay    {printable(one['how'])}")
        else:
            lines.append(f"   would not pay ({one['reason']}): {printable(one['because'])}")
    return lines
