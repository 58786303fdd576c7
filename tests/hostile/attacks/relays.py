"""Other hosts: a relayed challenge, redirects with and without a downgrade (A7, and the origin in the scope)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from tests.hostile.attack import HONEST, NOTHING, Attack, Bound, Stage, expect
from tests.hostile.peer import GOODS, Line, Peer
from tests.hostile.wire import Request, answer

VICTIM = "the other"
SECRETS = ("authorization", "payment-authorization", "payment-session", "payment-receipt")


def other(stage: Stage) -> Peer:
    return stage.world.peers[f"{stage.attack.name}/{VICTIM}"]


# -- relayed challenges


async def relays(peer: Peer, request: Request, line: Line) -> None:
    """Asks for money in the victim's name, and keeps what comes."""
    victim: Peer = peer.memory["victim"]
    peer.land(request)
    if request.authorization is None:
        await line.send(peer.refusal(challenge=victim.challenge()))
    else:
        await line.send(answer(200, GOODS, (peer.receipt(request),)))


def relayed(stage: Stage) -> None:
    victim = other(stage)
    stage.peer.memory["victim"] = victim
    stage.got += stage.world.curl(f"{victim.url}/", 3)
    stage.world.decided(victim)
    stage.one()
    stage.settled()
    stage.one()
    stage.got += stage.world.curl(f"{victim.url}/", 2)
    ours, theirs = set(stage.peer.vouchers), set(victim.vouchers)
    expect(ours, "it was not even paid")
    expect(not ours & theirs, "a channel of the victim's was spent where its challenge was relayed")


async def replays_elsewhere(peer: Peer, request: Request, line: Line) -> None:
    """Sells, and says in its challenge that the victim's realm is meant."""
    challenge = peer.challenge(params={"realm": "the other", "description": "pay the other one"})
    if request.authorization is None:
        await line.send(peer.refusal(challenge=challenge))
    else:
        peer.land(request)
        peer.delivered += 10_000
        await line.send(answer(200, GOODS, (peer.receipt(request),)))


def named_after_another(stage: Stage) -> None:
    for _ in range(3):
        stage.bought()


# -- redirects


async def redirects(peer: Peer, request: Request, line: Line, *, status: int, paid: bool) -> None:
    """To the victim; before the payment, or in answer to it."""
    target = peer.memory.get("target", "")
    if paid and request.authorization is None:
        await line.send(peer.refusal())
        return
    peer.land(request)
    fields = [("Location", f"{target}/landed")]
    if request.authorization is not None:
        fields.append(peer.receipt(request))
    await line.send(answer(status, b"", fields))


def redirected(stage: Stage) -> None:
    victim = other(stage)
    stage.peer.memory["target"] = victim.url
    got = stage.one("/", "-L")
    expect(got.status == 200, f"the redirect led to {got.shown}")
    first = next(one for one in victim.requests if one.path == "/landed")
    expect(first.authorization is None, "a credential followed the redirect")
    expect(first.get("payment-session") is None, "a hint followed the redirect")
    ours, theirs = set(stage.peer.vouchers), set(victim.vouchers)
    expect(not ours & theirs, "the same channel paid both")


def downgraded(stage: Stage) -> None:
    """From https to a host without it, that nobody has allowed."""
    stranger = stage.world.peers["stranger"]
    place = f"/{stage.peer.port}"
    stage.peer.memory["target"] = stranger.url + place
    got = stage.one("/", "-L")
    seen = [one for one in stranger.requests if one.path.startswith(place)]
    expect(len(seen) == 1, "the redirect was not followed")
    expect(got.status == 402, f"a host that is not allowed got {got.shown}")
    for request in seen:
        found = [name for name, _ in request.headers if name.lower() in SECRETS]
        expect(not found, f"{found} went over plain http")


async def redirects_vouchers(peer: Peer, request: Request, line: Line) -> None:
    """A stream; the HEAD that pays for more is sent elsewhere."""
    target = peer.memory.get("target", "")
    peer.land(request)
    if request.authorization is None:
        await line.send(peer.refusal(challenge=peer.challenge(unitType="token")))
    elif request.method == "HEAD":
        await line.send(answer(307, b"", (("Location", f"{target}/landed"),), length=False))
    else:
        need = (
            b'event: payment-need-voucher\ndata: {"channelId":"%b","requiredCumulative":"20000",'
            b'"acceptedCumulative":"10000","deposit":"200000"}\n\n'
        )
        head = answer(200, b"", (("Content-Type", "text/event-stream"),), length=False)
        await line.send(head + b"data: one\n\n" + need % request.payload["channelId"].encode())
        await line.gone()


def not_followed(stage: Stage) -> None:
    victim = other(stage)
    stage.peer.memory["target"] = victim.url
    stage.one("/stream", seconds=3.0)
    expect(not victim.requests, "our own request followed a redirect")


def of_redirects() -> Iterator[Attack]:
    for status in (301, 302, 303, 307, 308):
        for paid in (False, True):
            yield Attack(
                f"{status} to another host, {'in answer to the payment' if paid else 'unpaid'}",
                "A7",
                partial(redirects, status=status, paid=paid),
                redirected,
                Bound("max_price") if paid else NOTHING,
                quick=paid and status == 307,
                others=(VICTIM,),
            )


ATTACKS = (
    Attack(
        "another host relays a challenge",
        "A5",
        relays,
        relayed,
        Bound("max_price", 2),
        quick=True,
        others=(VICTIM,),
    ),
    Attack("a challenge in another host's name", "A5", replays_elsewhere, named_after_another, HONEST),
    *of_redirects(),
    Attack(
        "a redirect from https to http, in answer to the payment",
        "A7",
        partial(redirects, status=302, paid=True),
        downgraded,
        Bound("max_price"),
        tls=True,
        quick=True,
    ),
    Attack(
        "a redirect from https to http, unpaid",
        "A7",
        partial(redirects, status=307, paid=False),
        downgraded,
        NOTHING,
        tls=True,
    ),
    Attack(
        "a redirect for a stream's voucher",
        "A7",
        redirects_vouchers,
        not_followed,
        Bound("max_price"),
        unanswered=True,
        others=(VICTIM,),
    ),
)
