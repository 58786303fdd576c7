"""Channels that mppx and the tempo wallet keep: written by mppx's own code where that can be, and imported."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxy_addon.cli.failure import Failure
from proxy_addon.cli.mppx_state import Unreadable, read_mppx
from store.lifecycle import ChannelStatus
from store.merging import Incoming
from store.records import Channel
from tests.peers import devnet
from tests.unit.cli.test_moving import MakeHome, make
from tests.unit.methods import samples

__all__ = ["make"]

S = ChannelStatus


def entry(channel: Channel, **changes: Any) -> dict[str, Any]:
    """As mppx has a channel in memory, amounts as text."""
    usual = {
        "channelId": channel.channel_id,
        "cumulativeAmount": "12345",
        "deposit": "50000",
        "descriptor": dict(channel.descriptor),
        "escrow": channel.scope.escrow,
        "chainId": channel.scope.chain_id,
        "opened": True,
    }
    return usual | changes


CHANNEL = samples.ours()
OTHER = samples.ours(descriptor=samples.descriptor(salt="0x" + "77" * 32))


API = "https://api.example.com"
SESSION = {
    "status": "open",
    "channel": entry(CHANNEL),
    "account": {"name": "main", "address": samples.ADDRESS},
    "endpoint": f"{API}/data",
    "challenge": {
        **{"id": "c1", "realm": "api.example.com", "method": "tempo", "intent": "session"},
        "request": samples.request(),
    },
    "receipt": {
        **{"method": "tempo", "intent": "session", "status": "success", "challengeId": "c1"},
        **{"timestamp": "2027-01-15T08:00:00.000Z", "reference": CHANNEL.channel_id},
        **{"channelId": CHANNEL.channel_id, "acceptedCumulative": "12000", "spent": "10000", "units": 1},
    },
    "spent": "10000",
    "units": 1,
}
ROWS = [
    {"namespace": API, "requestUrl": f"{API}/data?key=secret", "entry": entry(CHANNEL)},
    # Set again, by another run of the wallet: the higher amount stays.
    {"namespace": API, "requestUrl": f"{API}/data", "entry": entry(CHANNEL, cumulativeAmount="9")},
    {
        "namespace": "https://other.example.com:8443",
        "requestUrl": "https://other.example.com:8443/x",
        "entry": entry(OTHER),
    },
]


@pytest.fixture(scope="module")
def mppx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what mppx has written."""
    devnet.install()
    directory = tmp_path_factory.mktemp("mppx")
    jobs = [
        ("sqlite", "wallet/channels.db", ROWS),
        ("sqlite", "one.db", ROWS[:1]),
        ("sessions", "open", [SESSION]),
        ("sessions", "stale", [SESSION, SESSION | {"status": "stale"}]),
        ("kv", "kv.json", [entry(CHANNEL)]),
    ]
    done = subprocess.run(
        [devnet.find_node(), str(devnet.PEERS / "mppx_state.mjs")],
        input=json.dumps(
            [{"kind": kind, "target": str(directory / to), "rows": rows} for kind, to, rows in jobs]
        ),
        env={"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


def only(rows: list[Incoming | Unreadable]) -> Channel:
    (row,) = rows
    assert isinstance(row, Incoming), row
    assert row.moved is False
    return row.channel


def test_the_database_of_mppx(mppx: Path) -> None:
    first, second = read_mppx(mppx / "wallet" / "channels.db", None)
    assert isinstance(first, Incoming)
    assert isinstance(second, Incoming)
    found = {one.channel.channel_id: one.channel for one in (first, second)}
    one, two = found[CHANNEL.channel_id], found[OTHER.channel_id]
    assert one.scope == samples.scope()
    assert one.resource == "https://api.example.com:443/data"
    assert (one.authorised, one.paid, one.uncertain, one.deposit) == (12_345, 0, 12_345, 50_000)
    assert one.descriptor == samples.descriptor()
    assert one.status is S.OPEN
    assert one.updated_at > 1_700_000_000_000
    assert two.scope.origin == "https://other.example.com:8443"


def test_a_session_of_the_command_line(mppx: Path) -> None:
    found = only(read_mppx(mppx / "open" / "channels", None))
    assert found == only(read_mppx(mppx / "open" / "channels" / f"{CHANNEL.channel_id}.json", None))
    assert (found.authorised, found.paid, found.uncertain, found.accepted) == (12_345, 10_000, 2_345, 12_000)
    assert found.status is S.OPEN
    assert only(read_mppx(mppx / "stale" / "channels", None)).status is S.ASIDE


def test_entries_of_a_key_value_store(mppx: Path) -> None:
    found = only(read_mppx(mppx / "kv.json", API))
    assert (found.channel_id, found.scope) == (CHANNEL.channel_id, samples.scope())
    (row,) = read_mppx(mppx / "kv.json", None)
    assert isinstance(row, Unreadable)
    assert "--origin" in row.why


def test_it_is_imported_and_can_be_paid_with_when_its_user_says_so(mppx: Path, make: MakeHome) -> None:
    path, home = mppx / "one.db", make("new")
    before = path.read_bytes()
    (told,) = home.take(path, "--from", "mppx", "--dry-run")
    assert (told["action"], told["status"]) == ("added", "aside")
    (told,) = home.take(path, "--from", "mppx", "--take-over")
    assert (told["status"], told["authorised"], told["uncertain"]) == ("open", "12345", "12345")
    assert {one["action"] for one in home.take(path, "--from", "mppx", "--take-over")} == {"unchanged"}
    (channel,) = home.channels.values()
    assert (channel.status, channel.free) == (S.OPEN, 0)
    assert sum(amount for key, amount in home.counters.items() if key.startswith("lifetime/")) == 12_345
    assert path.read_bytes() == before


# -- rows as the tempo wallet has them beside


def database(path: Path, *rows: dict[str, Any]) -> Path:
    connection = sqlite3.connect(path)
    usual = _row(CHANNEL)
    connection.execute(f"CREATE TABLE channels ({', '.join(usual)})")
    for row in rows:
        values = usual | row
        marks = ", ".join("?" * len(values))
        connection.execute(
            f"INSERT INTO channels ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
        )
    connection.commit()
    connection.close()
    return path


def _row(channel: Channel) -> dict[str, Any]:
    scope = channel.scope
    return {
        "channel_id": channel.channel_id,
        "origin": "https://api.example.com",
        "request_url": "",
        "chain_id": scope.chain_id,
        "escrow_contract": scope.escrow.upper().replace("0X", "0x"),
        "token": scope.token,
        "payee": scope.payee,
        "payer": scope.payer,
        "authorized_signer": samples.ZERO,
        "salt": "0x" + samples.SALT.hex(),
        "session_protocol": "v2",
        "descriptor_json": json.dumps(dict(channel.descriptor)),
        "deposit": "50000",
        "cumulative_amount": "100",
        "accepted_cumulative": "200",
        "server_spent": "150",
        "state": "active",
        "created_at": 1_700_000_000,
        "last_used_at": 1_700_000_100,
    }


def test_what_the_wallet_knows_of_the_server_counts(tmp_path: Path) -> None:
    found = only(read_mppx(database(tmp_path / "c.db", {}), None))
    assert (found.authorised, found.paid, found.uncertain, found.accepted) == (200, 150, 50, 200)
    assert found.scope == samples.scope()
    assert (found.opened_at, found.updated_at) == (1_700_000_000_000, 1_700_000_100_000)


def test_sessions_of_v1_have_no_descriptor_but_columns(tmp_path: Path) -> None:
    channel = samples.v1_ours()
    row = _row(channel) | {
        "session_protocol": "v1",
        "descriptor_json": None,
        "escrow_contract": samples.V1_ESCROW,
    }
    found = only(read_mppx(database(tmp_path / "c.db", row), None))
    assert found.scope == samples.v1_scope()
    assert found.descriptor == samples.v1_descriptor()


def test_another_state_than_active_is_for_closing(tmp_path: Path) -> None:
    assert only(read_mppx(database(tmp_path / "c.db", {"state": "closing"}), None)).status is S.ASIDE


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"channel_id": "0x" + "ab" * 32}, "its id is not that of its descriptor"),
        ({"descriptor_json": None}, "the JSON object must be str"),
        ({"descriptor_json": "[]"}, "a JSON object was expected"),
        ({"descriptor_json": "{}"}, "payer is missing"),
        ({"cumulative_amount": "1e3"}, "its cumulative amount"),
        ({"cumulative_amount": "60000"}, "over the deposit of 50000"),
        ({"chain_id": "42431"}, "its chain id is '42431'"),
        ({"origin": "ftp://x"}, "no http address"),
        ({"session_protocol": "v9"}, "v9"),
        ({"escrow_contract": "0x12"}, "escrow"),
    ],
)
def test_a_row_that_makes_no_sense_is_named_and_skipped(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    other = _row(OTHER) | {"created_at": 1_800_000_000}
    first, second = read_mppx(database(tmp_path / "c.db", row, other), None)
    assert isinstance(first, Unreadable)
    assert says in first.why
    assert isinstance(second, Incoming)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "SQLite format 3\x00 and no more"])
def test_what_is_nothing_of_the_kind(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(Failure):
        read_mppx(path, None)
    with pytest.raises(Failure, match=r"has no \*\.json"):
        read_mppx(tmp_path, None)
    with pytest.raises(Failure, match="cannot be read"):
        read_mppx(tmp_path / "none", None)
