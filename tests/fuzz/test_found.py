"""What the fuzzing and its oracles have found: each with the answer that it gets now."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from proxy_addon import config, rpc_answers
from proxy_addon.core import frames
from proxy_addon.core.errors import RemoteProtocolError
from proxy_addon.core.headers import parse_www_authenticate
from proxy_addon.core.messages import parse_problem, receipt_from
from proxy_addon.core.snapshot import snapshot_from
from store import codec, journal
from store.account import IllegalMove
from store.contract import UnknownVersion
from store.records import JournalMark
from tests.fuzz import samples
from tests.fuzz.target import kept
from tests.fuzz.targets.records import sealed

DEEP = "[" * 1000 + "]" * 1000
NEED = '{"mpp":"payment-need-voucher","data":'


# -- payment frames that a client would have got


@pytest.mark.parametrize(
    "rest",
    [
        "1" * 5000 + "}",  # more digits than Python reads
        "[" * 40 + "]" * 40 + "}",
        '{"channelId":',
        "NaN}",
        "1e999}",
    ],
)
def test_a_payment_frame_that_is_no_json_is_kept_from_the_client(rest: str) -> None:
    frame = frames.read(NEED + rest)
    assert isinstance(frame, frames.Unreadable)
    assert frame.name == "payment-need-voucher"


@pytest.mark.parametrize(
    "text", ['{"mpp":"message","data":', '{"x":{"mpp":"payment-receipt"', '{"mpp":"paymentary"']
)
def test_what_does_not_begin_like_one_is_the_applications(text: str) -> None:
    assert frames.read(text) is None


def test_what_a_frame_says_can_be_logged() -> None:
    failed = frames.read('{"mpp":"payment-error","status":true,"message":"a\\n\\ud800' + "b" * 500 + '"}')
    assert isinstance(failed, frames.Failed)
    assert failed.status == 0  # and true is no status
    assert failed.message.isprintable()
    assert len(failed.message) == 200
    unknown = frames.read('{"mpp":"payment-\\u001b[31m\\n"}')
    assert isinstance(unknown, frames.Unreadable)
    assert unknown.name.isprintable()


# -- errors that showed more of a value than could be shown


@pytest.mark.parametrize("value", [DEEP, '{"a":' + DEEP + "}"])
def test_a_deep_answer_of_an_endpoint_is_unusable(value: str) -> None:
    result = rpc_answers.result_of(f'{{"id":1,"result":{value}}}'.encode())
    for decode in (rpc_answers.quantity, rpc_answers.head_of, rpc_answers.logs_of, rpc_answers.data_of):
        with pytest.raises(rpc_answers.Unusable):
            rpc_answers.decoded(result, decode)
    with pytest.raises(rpc_answers.Unusable, match=r"an (array|object)"):
        rpc_answers.result_of(f'{{"id":1,"error":{{"message":{value}}}}}'.encode())


def test_a_pending_transaction_of_an_odd_kind_is_damage() -> None:
    for name in ("odd_kind.json", "deep_kind.json"):
        with pytest.raises(UnknownVersion, match="of an unknown kind"):
            codec.decode_channel(sealed(kept("records")[name][1:]))


def test_the_name_of_a_parameter_is_shown_in_part() -> None:
    (challenge,) = parse_www_authenticate(["Payment id=1, " + "n" * 2000 + "=1, " + "n" * 2000 + "=2"])
    assert challenge.problem == f"parameter {'n' * 40} appears more than once"


# -- integers without bounds


@pytest.mark.parametrize("number", [2**53, 10**79, -1])
def test_a_count_that_not_every_reader_takes_for_the_same(number: int) -> None:
    assert receipt_from({**samples.receipt(), "units": number}).units is None
    with pytest.raises(RemoteProtocolError, match="chainId"):
        snapshot_from({**samples.snapshot(), "chainId": number})


@pytest.mark.parametrize("status", [-1, 0, 99, 600, 10**70, True, "402", 402.5])
def test_a_status_that_is_none(status: object) -> None:
    found = parse_problem("application/problem+json", orjson.dumps({"status": str(status)}))
    assert found is not None
    assert found.status is None
    text = b'{"status":%d}' % status if type(status) is int else orjson.dumps({"status": status})
    found = parse_problem("application/problem+json", text)
    assert found is not None
    assert found.status is None


# -- lines of a ledger that nobody of ours has written


@pytest.mark.parametrize(
    "name", ["deep.jsonl", "deep_ending.jsonl", "endless.jsonl", "huge.jsonl", "list.jsonl", "negative.jsonl"]
)
def test_a_line_that_is_not_ours_is_missed_and_never_folded(name: str, tmp_path: Path) -> None:
    data = kept("journal")[name]
    (tmp_path / f"p1{journal.SUFFIX}").write_bytes(data)
    with pytest.raises(IllegalMove):
        journal.moves_after(tmp_path, JournalMark("p1", data.count(b"\n"), "boot"), "0xc1")


# -- config files


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("home.toml", r"store\.directory.* the home of a user that there is not"),
        ("nul.toml", r"store\.directory.* a path cannot hold a NUL"),
        ("deep.toml", "not valid TOML|Extra inputs"),  # Pythons differ in how deep they read
        ("digits.toml", "not valid TOML"),
        ("minutes.toml", r"proxy\.release_idle_s.* less than 2147483648"),
        ("odd_key.toml", r"chains\.'eip155:1\\x00\\x1b\[31m'"),
        ("rich.toml", r"policy\.hosts\[0\]\.max_deposit × max_opens_per_day.* more than a channel can hold"),
    ],
)
def test_a_config_that_cannot_be_used_is_said_to_be(name: str, says: str) -> None:
    with pytest.raises(config.ConfigError, match=says):
        config.parse_text(kept("config")[name].decode(), "config.toml")
