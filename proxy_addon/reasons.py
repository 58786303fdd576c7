"""Why a payment was refused: each word that the ledger, the log and `Bursar-Reason` use, and what to do about it.

`docs/reasons.md` is written from this table; a test holds it against every word that the code can say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Reason:
    """What it means, and the way out. Sentences for people."""

    word: str
    means: str
    mend: str


_POLICY: Final = (
    Reason(
        "host-not-allowed",
        "No rule of the config is about this host.",
        "Add a [[policy.hosts]] table for it.",
    ),
    Reason(
        "insecure",
        "The host asks for money over plain http, where anybody on the way could take the payment.",
        "Use https. If you know the network, set allow_http = true in the host's table. Loopback needs neither.",
    ),
    Reason(
        "shadow",
        'mode = "shadow": it is said what would be paid, and nothing is.',
        'Set mode = "pay" when you are ready.',
    ),
    Reason(
        "destination-not-allowed",
        "The host is at an address that is not public, or on a port that its client may not use.",
        "If it should be reached: [egress].allow, or [egress].ports.",
    ),
    Reason(
        "client-not-allowed",
        "This client is not paid for: it is on another machine and the proxy asks for no password, or mitmproxy's"
        " ssl_insecure is set, or its own table in [[policy.clients]] says so.",
        "Set proxyauth or listen on 127.0.0.1 only; take ssl_insecure away.",
    ),
    Reason(
        "chain-not-allowed",
        "The host wants to be paid on a chain that the config does not name.",
        'Add [chains."eip155:…"] with its rpc and tokens, or name the chain in the host\'s chains.',
    ),
    Reason(
        "token-not-allowed",
        "The host wants a token that the config does not name.",
        "Add it to the chain's tokens, after checking that it is the one it claims to be.",
    ),
    Reason(
        "escrow-not-allowed",
        "The host names an escrow contract that is not the canonical one of its chain.",
        "Usually nothing: whoever owns that contract gets the deposit. If you know it: extra_escrows.",
    ),
    Reason(
        "payee-not-allowed", "The payee is not in the host's payees.", "Ask the API whether it has a new one."
    ),
    Reason(
        "payee-changed",
        "The host has been paid before, to another payee, and pin_payee holds it to that one.",
        "Ask the API. If it is so: `bursar pins forget HOST`.",
    ),
    Reason(
        "over-max-price",
        "One request would cost more than max_price, its retries together.",
        "Raise max_price.",
    ),
    Reason(
        "over-max-delta",
        "The server takes vouchers in steps so large that the first would be over the host's limits.",
        "Raise max_price to four times the step.",
    ),
    Reason("over-max-deposit", "The price, or the deposit, is over max_deposit.", "Raise max_deposit."),
    Reason(
        "limit-reached",
        "A limit of the day, in total, or of this client is used up; the message names it with what is used.",
        "Raise it, or wait until the day (UTC) is over.",
    ),
    Reason(
        "over-stream-step", "A stream asked for more at once than max_stream_step.", "Raise max_stream_step."
    ),
    Reason(
        "over-stream-total", "A stream asked for more in all than max_per_stream.", "Raise max_per_stream."
    ),
    Reason(
        "breaker-open",
        "The host took money and delivered nothing, several times in a row; it is not paid for a while.",
        "See the ledger's `ended` lines. It is tried again by itself; [breaker] says when.",
    ),
    Reason(
        "too-many-attempts", "More new payments a minute than [limits] allows.", "Slow down, or raise it."
    ),
    Reason(
        "too-many-in-flight",
        "More paid requests at a time than [limits] allows.",
        "Fewer at a time, or raise it.",
    ),
    Reason(
        "strict-retries",
        "The client sent again a request that may have been charged and done already, and strict_retries is set.",
        "Wait until its outcome is known (`bursar reconcile`), or send it with a key of its own.",
    ),
    Reason("retry-after", "The server said when to come back.", "Wait; it is asked again then."),
    Reason(
        "client-authorization",
        "The server wants the payment in Authorization, where the client has its own; that is never overwritten.",
        "Leave the client's own away, or ask the API to take Payment-Authorization.",
    ),
)

_WALLET: Final = (
    Reason("no-key", "There is no key to pay with.", "Set [wallet]; `bursar init` makes a key."),
    Reason(
        "no-payer-key",
        "It needs the payer's key, and here is only that of the vouchers.",
        "Open, top up or close by force where the payer's key is.",
    ),
    Reason(
        "unfunded",
        "The wallet has less than it takes.",
        "Send money to its address: `bursar doctor` shows both.",
    ),
    Reason(
        "fee-too-high", "The network asks a higher fee than the config's max_fee.", "Wait, or raise max_fee."
    ),
)

_CHANNEL: Final = (
    Reason(
        "deposit-used-up",
        "The channel's deposit is used up, and no limit leaves room for more.",
        "Raise max_deposit.",
    ),
    Reason(
        "scope-full",
        "As many channels for these terms as max_channels_per_scope allows, all in use.",
        "Raise it, or let fewer streams run at a time.",
    ),
    Reason(
        "scope-busy", "No channel got free in time.", "`bursar channels list` shows who has them; try again."
    ),
    Reason(
        "stream", "The channel is a stream's, or the stream has ended.", "Nothing: another channel is taken."
    ),
    Reason("fenced", "Another process has the channel now.", "Nothing: it is asked for anew."),
    Reason("halted", "The channel signs nothing for the moment.", "`bursar channels show` says why."),
    Reason(
        "channel-not-open", "The channel is being closed, or set aside.", "`bursar channels show` says why."
    ),
    Reason(
        "close-begun",
        "Somebody has begun to close the channel on the chain.",
        "`bursar channels close` ends it.",
    ),
    Reason(
        "close-requested",
        "A close of the channel is on its way.",
        "Wait; `bursar channels show` says for what.",
    ),
    Reason(
        "closing-by-force", "The channel is being closed by force.", "Wait until the grace period is over."
    ),
    Reason("no-channel", "There is no such channel on record.", "`bursar channels list --all` has them all."),
    Reason("no-proof", "What the server has charged is not proven.", "Close by force, or reconcile first."),
    Reason("open-refused", "The server refused the opening.", "The chain decides; `bursar channels list`."),
    Reason(
        "refused-by-server", "The server refused the payment, and nothing more may be tried.", "Ask the API."
    ),
    Reason("top-up-failed", "The top-up did not land.", "Nothing was added; it is tried again later."),
    Reason("close-not-confirmed", "The chain does not show the close yet.", "Run the close again."),
    Reason(
        "close-not-found", "The chain shows no end of the channel where it should be.", "Run the close again."
    ),
    Reason("not-mined", "A transaction of ours is not in a block yet.", "Run the command again."),
    Reason("pending-unknown", "A transaction of ours may still land.", "Wait for the chain, then try again."),
    Reason("unknown-method", "A newer version wrote the channel.", "Update bursar."),
)

_WORLD: Final = (
    Reason(
        "expired",
        "The challenge's time ran out.",
        "Try again; if it happens always, check this machine's clock.",
    ),
    Reason(
        "expires-too-late",
        "The challenge is good for over an hour.",
        "Ask the API: that is longer than is paid.",
    ),
    Reason("no-chain", "The config has no endpoint for the channel's chain.", 'Add [chains."eip155:…"].'),
    Reason(
        "chain-unavailable",
        "No endpoint of the chain answered.",
        "`bursar doctor`; add another endpoint to rpc.",
    ),
    Reason("server-unreachable", "The server did not answer us.", "Try again later."),
    Reason("server-unknown", "The channel does not say where its server is.", "Close it by force."),
    Reason(
        "no-challenge", "The server gave no challenge where one is needed.", "Close by force, or ask the API."
    ),
    Reason(
        "not-understood",
        "The server asks for a payment of a kind that bursar does not make, or its terms cannot be read.",
        "Usually nothing: another of its offers may do. Else ask the API for tempo sessions.",
    ),
    Reason("protocol", "What the server said cannot be read, or contradicts itself.", "Ask the API."),
)

_OURSELVES: Final = (
    Reason(
        "store", "The store cannot be written; nothing was signed.", "The message says why; `bursar doctor`."
    ),
    Reason(
        "unattributed",
        "The machine was restarted before a process had written all of its ledger: what its channel had not paid"
        " provably is uncertain.",
        "`bursar reconcile` finds out what was charged.",
    ),
    Reason("ledger", "The ledger cannot be written; nothing was paid.", "Free some space on its disk."),
    Reason(
        "store-is-old",
        "The store is an older copy: it may not know of vouchers that have left.",
        "`bursar reconcile` learns what it can; `--assume-spent` takes the rest for spent.",
    ),
    Reason(
        "clock-went-back",
        "This machine's clock is days before the newest day on record: no budget of the past is opened.",
        "Set the clock (NTP).",
    ),
    Reason(
        "clock-ahead",
        "This machine's clock is days after the chain's newest block: no budget of a day to come is used.",
        "Set the clock (NTP).",
    ),
    Reason(
        "clock-unconfirmed",
        "It is a new day by this machine's clock, and the chain does not answer to confirm it.",
        "`bursar doctor`; add another endpoint to rpc. On a day that was paid on already nobody is asked.",
    ),
    Reason("internal", "A mistake of ours; nothing was signed.", "Please report it, with the log around it."),
)

REASONS: Final = {
    one.word: one for group in (_POLICY, _WALLET, _CHANNEL, _WORLD, _OURSELVES) for one in group
}

GROUPS: Final = {
    "What the config says": _POLICY,
    "The wallet": _WALLET,
    "The channel": _CHANNEL,
    "Server and chain": _WORLD,
    "This machine": _OURSELVES,
}


def page() -> str:
    """`docs/reasons.md`."""
    lines = [
        "# Why a payment was refused",
        "",
        "Each word that the ledger (`reason`), the log and, where `reason_header` is set, `Bursar-Reason` use. `bursar"
        " explain WORD` says the same.",
    ]
    for title, group in GROUPS.items():
        lines += ["", f"## {title}"]
        for one in group:
            lines += ["", f"### {one.word}", "", f"{one.means} *{one.mend}*"]
    return "\n".join(lines) + "\n"
