from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_addon.cli.ca import CERTIFICATE, bundle, certificates
from proxy_addon.cli.environment import BUNDLES, PROXIES, Trust, behind, replaced
from proxy_addon.cli.trust import java_store, prepare

URL = "http://127.0.0.1:41234"
TRUST = Trust(
    Path("/h/bundle.pem"),
    Path("/h/bundle.jks"),
    "changeit",
    Path('/my "home"/node.cjs'),
    Path("/h/wgetrc"),
)
PEM = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----"


def test_every_variable_is_set_over_what_was_inherited() -> None:
    inherited = dict.fromkeys((*PROXIES, *BUNDLES), "old") | {"HTTP_PROXY": "old", "PATH": "/bin"}
    result = behind(inherited, URL, TRUST)
    assert "old" not in result.values()
    assert result["PATH"] == "/bin"
    assert {result[name.upper()] for name in PROXIES} == {URL}


def test_the_machines_settings_of_wget_are_kept(tmp_path: Path) -> None:
    theirs = tmp_path / "etc"
    theirs.write_text("tries = 3\nca_certificate = /old\nca-cert=/older\n")
    (tmp_path / CERTIFICATE).write_text(PEM.format("AAAA"))
    files = prepare(tmp_path, {"SYSTEM_WGETRC": str(theirs)})
    assert files.wgetrc.read_text() == f"tries = 3\nca_certificate = {files.bundle}\n"
    assert prepare(tmp_path, {"SYSTEM_WGETRC": str(files.wgetrc)}) == files


def test_secrets_do_not_reach_the_command() -> None:
    assert "P" not in behind({"P": "secret", "Q": "q"}, URL, TRUST, without=["P", "absent"])


@pytest.mark.parametrize(
    ("inherited", "expected"),
    [
        ({}, (None, None)),
        ({"no_proxy": "a"}, ("a", "a")),
        ({"NO_PROXY": "b"}, ("b", "b")),
        ({"no_proxy": "a", "NO_PROXY": "b"}, ("a", "b")),
    ],
)
def test_whom_the_user_exempts_stays_exempt(
    inherited: dict[str, str], expected: tuple[str | None, str | None]
) -> None:
    result = behind(inherited, URL, TRUST)
    assert (result.get("no_proxy"), result.get("NO_PROXY")) == expected


def test_options_of_node_and_java_are_added_to_the_users() -> None:
    inherited = {
        "NODE_OPTIONS": "--max-old-space-size=99",
        "JAVA_TOOL_OPTIONS": "-Xmx1g",
        "no_proxy": ".a.b, c",
    }
    result = behind(inherited, URL, TRUST)
    assert result["NODE_OPTIONS"] == '--max-old-space-size=99 --require="/my \\"home\\"/node.cjs"'
    java = result["JAVA_TOOL_OPTIONS"]
    assert java.startswith(
        "-Xmx1g -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=41234 -Dhttps.proxyHost=127.0.0.1"
    )
    assert "'-Dhttp.nonProxyHosts=*.a.b|c|*.c'" in java


def test_java_proxies_loopback_unless_the_user_exempts_it() -> None:
    assert "-Dhttp.nonProxyHosts= " in behind({}, URL, TRUST)["JAVA_TOOL_OPTIONS"]


def test_replaced_names_what_is_not_used() -> None:
    assert replaced({"http_proxy": "x", "ALL_PROXY": "y", "https_proxy": "", "no_proxy": "z"}) == [
        "http_proxy",
        "ALL_PROXY",
    ]


def test_a_bundle_has_every_source_once_and_survives_one_that_is_missing(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text(f"# a comment\n{PEM.format('AAAA')}\n{PEM.format('BBBB')}\n")
    second.write_text(f"{PEM.format('BBBB')}{PEM.format('CCCC')}")
    path = bundle(tmp_path, [first, tmp_path / "missing", second])
    assert [block.splitlines()[1] for block in certificates(path.read_bytes())] == [b"AAAA", b"BBBB", b"CCCC"]
    assert bundle(tmp_path, [first, second]) == path
    assert bundle(tmp_path, [second]) != path
    assert path.stat().st_mode & 0o777 == 0o600


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_a_java_store_can_be_read_back(certificates: list[bytes]) -> None:
    data = java_store(certificates)
    magic, version, count = struct.unpack_from(">III", data)
    assert (magic, version, count) == (0xFEEDFEED, 2, len(certificates))
    place, found = 12, []
    for _ in range(count):
        place += 4  # the kind of entry
        place += 2 + int.from_bytes(data[place : place + 2], "big") + 8  # its alias, its time
        place += 2 + int.from_bytes(data[place : place + 2], "big")  # its type
        size = int.from_bytes(data[place : place + 4], "big")
        found.append(data[place + 4 : place + 4 + size])
        place += 4 + size
    assert found == certificates
    seal = "changeit".encode("utf-16-be") + b"Mighty Aphrodite" + data[:place]
    assert data[place:] == hashlib.sha1(seal).digest()
