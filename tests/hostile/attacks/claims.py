"""Forged receipts, snapshots and hints: a server's word moves no money (A4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from proxy_addon.demo.payload import PaymentProblem
from tests.hostile.attack import HONEST, Attack, Bound, Stage, expect
from tests.hostile.peer import GOODS, PAID, PRICE, Line, Peer
from tests.hostile.wire import Request, answer, b64, chunk

HUGE = str(2**256 - 1)
MOST = str(2**96 - 1)
FOREIGN = "0x" + "ab" * 32

Field = tuple[str, str]
MakeReceipt = Callable[[Peer, Request], list[Field]]


def saying(**changes: Any) -> MakeReceipt:
    return lambda peer, request: [peer.receipt(request, **changes)]


def of_bytes(data: str | bytes) -> MakeReceipt:
    value = data if isinstance(data, str) else b64(data)
    return lambda peer, request: [("Payment-Receipt", value)]


RECEIPTS: Mapping[str, MakeReceipt] = {
    "spent over accepted": saying(spent=MOST),
    "accepted over signed": saying(acceptedCumulative=MOST, spent="0"),
    "both of 2^256": saying(acceptedCumulative=HUGE, spent=HUGE),
    "spent nothing": saying(spent="0"),
    "spent -1": saying(spent="-1"),
    "spent a float": saying(spent=10_000.5),
    "spent a number": saying(spent=10_000),
    "spent an exponent": saying(spent="1e9"),
    "spent with zeros before it": saying(spent="0010000"),
    "spent of ten thousand digits": saying(spent="9" * 10_000),
    "spent in other digits": saying(spent="１００"),
    "spent a list": saying(spent=["1"]),
    "spent true": saying(spent=True),
    "spent NaN": of_bytes(
        b'{"method":"tempo","status":"success","timestamp":"x","reference":"y","spent":NaN}'
    ),
    "units of 10^400": of_bytes(
        b'{"method":"tempo","status":"success","timestamp":"x","reference":"y","units":1%b}' % (b"0" * 400)
    ),
    "of another channel": saying(channelId=FOREIGN),
    "of no channel": saying(channelId=None, spent=MOST),
    "of a failure": saying(status="failed"),
    "with a member twice": of_bytes(
        b'{"status":"success","status":"success","spent":"1","spent":"%b"}' % MOST.encode()
    ),
    "no object": of_bytes(b"[]"),
    "no JSON": of_bytes(b"{" * 2000),
    "nested deep": of_bytes(b'{"status":' + b"[" * 5000 + b"]" * 5000 + b"}"),
    "no base64": of_bytes("\u00ff!!!"),
    "of 60 KB": of_bytes(b'{"status":"success","reference":"' + b"x" * 40_000 + b'"}'),
    "twice": lambda peer, request: [peer.receipt(request, spent="0"), peer.receipt(request, spent=MOST)],
    "a hundred times": lambda peer, request: [peer.receipt(request, spent=str(one)) for one in range(100)],
    "half a surrogate pair": of_bytes(b'{"status":"success","reference":"\\ud800"}'),
}


# -- receipts


async def lies(peer: Peer, request: Request, line: Line, *, receipt: MakeReceipt) -> None:
    """Sells honestly, all checks included; only its receipt is forged."""
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    try:
        _, serve = peer.take(request)
    except PaymentProblem as problem:
        await line.send(peer.refusal(problem.kind, problem.status))
        return
    if not serve:
        await line.send(answer(204, length=False))
        return
    peer.delivered += PRICE
    await line.send(answer(200, GOODS, [*PAID, *receipt(peer, request)]))


def served_all_the_same(stage: Stage) -> None:
    for _ in range(4):
        stage.bought()
    stage.settled()
    for _ in range(4):
        stage.bought()


def receipts() -> Iterator[Attack]:
    for name, make in RECEIPTS.items():
        yield Attack(
            f"a receipt {name}",
            "A4",
            partial(lies, receipt=make),
            served_all_the_same,
            HONEST,
            quick=name in ("spent over accepted", "accepted over signed", "spent a float"),
        )


async def in_trailers(peer: Peer, request: Request, line: Line) -> None:
    """The forged receipt comes behind the body."""
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    try:
        peer.take(request)
    except PaymentProblem as problem:
        await line.send(peer.refusal(problem.kind, problem.status))
        return
    peer.delivered += PRICE
    name, value = peer.receipt(request, spent=MOST)
    head = answer(200, b"", [*PAID, ("Transfer-Encoding", "chunked"), ("Trailer", name)], length=False)
    await line.send(head + chunk(GOODS) + b"0\r\n" + f"{name}: {value}\r\n\r\n".encode())


async def on_errors(peer: Peer, request: Request, line: Line) -> None:
    """Refuses each payment, and says that it was charged for: a 402 of an application that charges."""
    if request.authorization is None:
        await line.send(peer.refusal())
        return
    peer.land(request)
    await line.send(peer.refusal("verification-failed", headers=(peer.receipt(request, spent=MOST),)))


def refused_with_receipts(stage: Stage) -> None:
    for got in stage.get("/", 3):
        expect(got.status == 402, f"got {got.shown}")
        expect(got.get("payment-receipt") is None, "the client was shown a receipt")


# -- snapshots


def snapshot(peer: Peer, **changes: Any) -> dict[str, Any]:
    """Of the newest channel, all of it invented but for its descriptor."""
    voucher = next(reversed(peer.vouchers.values()), None)
    descriptor = dict(voucher.descriptor) if voucher is not None else {}
    return {
        "channelId": voucher.channel if voucher is not None else FOREIGN,
        "chainId": peer.chain.chain_id,
        "escrow": "0x4d50500000000000000000000000000000000000",
        "descriptor": descriptor,
        "acceptedCumulative": MOST,
        "requiredCumulative": MOST,
        "deposit": MOST,
        "settled": "0",
        "spent": MOST,
        **changes,
    }


def voucher_of(peer: Peer, **changes: Any) -> dict[str, Any]:
    best = next(reversed(peer.vouchers.values()), None)
    if best is None:
        return {}
    signature = "0x" + best.signature.hex()
    return {
        "channelId": best.channel,
        "cumulativeAmount": str(best.amount),
        "signature": signature,
        **changes,
    }


SNAPSHOTS: Mapping[str, Callable[[Peer], Any]] = {
    "accepted over signed": snapshot,
    "spent over accepted": lambda peer: snapshot(peer, acceptedCumulative="1"),
    "required up to the deposit": lambda peer: snapshot(peer, acceptedCumulative="0", spent="0"),
    "nothing spent": lambda peer: snapshot(peer, spent="0", acceptedCumulative="0"),
    "of 2^256": lambda peer: snapshot(peer, deposit=HUGE, spent=HUGE),
    "with floats": lambda peer: snapshot(peer, spent=1.5),
    "negative": lambda peer: snapshot(peer, spent="-5"),
    "of another channel": lambda peer: snapshot(peer, channelId=FOREIGN),
    "of another escrow": lambda peer: snapshot(peer, escrow="0x" + "5e" * 20),
    "with a forged voucher": lambda peer: snapshot(
        peer, highestVoucher=voucher_of(peer, cumulativeAmount=MOST)
    ),
    "with a voucher signed by nobody": lambda peer: snapshot(
        peer, highestVoucher=voucher_of(peer, cumulativeAmount=MOST, signature="0x" + "11" * 65)
    ),
    "with our voucher for another channel": lambda peer: snapshot(
        peer, channelId=FOREIGN, highestVoucher=voucher_of(peer, channelId=FOREIGN)
    ),
    "with our own voucher": lambda peer: snapshot(peer, highestVoucher=voucher_of(peer)),
    "no object": lambda peer: [1, 2, 3],
    "a string": lambda peer: "accepted",
}


async def tells(
    peer: Peer, request: Request, line: Line, *, make: Callable[[Peer], Any], field: bool
) -> None:
    """Sells honestly; each second time it refuses once, and its challenge comes with a snapshot."""
    number = peer.memory["number"] = peer.memory.get("number", 0) + 1
    refuse = request.action == "voucher" and number % 3 == 0
    if request.authorization is not None and not refuse:
        await line.send(peer.sell(request))
        return
    told = make(peer)
    if field:
        await line.send(peer.refusal(headers=(("Payment-Session-Snapshot", b64(told)),)))
        return
    # Its id is a MAC over what it says: the honest part must know it again.
    made = peer.challenge()
    shown = {
        **made.request_json,
        "methodDetails": {**made.request_json["methodDetails"], "sessionSnapshot": told},
    }
    unsigned = type(made)(**{**made.echo(), "request": b64(shown)})
    signed = type(made)(**{**unsigned.echo(), "id": peer.payee.challenges._id(unsigned)})
    await line.send(peer.refusal(challenge=signed))


def told(stage: Stage) -> None:
    for index in range(6):
        stage.bought(f"/{index % 2}")
    stage.settled()
    for index in range(6):
        stage.bought(f"/{index % 2}")


def snapshots() -> Iterator[Attack]:
    for name, make in SNAPSHOTS.items():
        for field in (True, False):
            yield Attack(
                f"a snapshot {name}, in {'its field' if field else 'the challenge'}",
                "A4",
                partial(tells, make=make, field=field),
                told,
                HONEST,
                quick=not field and name in ("accepted over signed", "with a forged voucher"),
            )


# -- hints


async def hints(peer: Peer, request: Request, line: Line) -> None:
    """Proposes channels that are none of ours, and says how much it lacks."""
    if request.authorization is None or (peer.delivered and "hinted" not in peer.memory):
        if request.authorization is not None:
            peer.memory["hinted"] = True
        challenge = peer.challenge(details={"channelId": FOREIGN})
        headers = (("Payment-Session", FOREIGN), ("Payment-Session", "0x"))
        kind = "session/insufficient-balance" if peer.delivered else "payment-required"
        await line.send(peer.refusal(kind, challenge=challenge, headers=headers, requiredTopUp=MOST))
    else:
        peer.land(request)
        peer.delivered += PRICE
        await line.send(answer(200, GOODS, [*PAID, peer.receipt(request)]))


def hinted(stage: Stage) -> None:
    stage.bought()
    stage.settled()
    for _ in range(3):
        stage.bought()
    told = {one["channelId"] for one in stage.credentials}
    expect(FOREIGN not in told, "a channel that it proposed was paid with")
    expect(
        all(FOREIGN not in one.all("payment-session") for one in stage.peer.requests), "its hint was echoed"
    )


ATTACKS = (
    *receipts(),
    *snapshots(),
    Attack("a forged receipt in the trailers", "A4", in_trailers, served_all_the_same, HONEST),
    Attack("a 402 with a receipt", "A4", on_errors, refused_with_receipts, Bound("max_price", 3)),
    Attack("hints at channels that are none", "A4", hints, hinted, Bound("max_price"), quick=True),
)
