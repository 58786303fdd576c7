from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from proxy_addon.config import ConfigError, parse
from proxy_addon.keys import load_signer
from proxy_addon.keystore import KeystoreError
from proxy_addon.signer import Signer

ONE, OTHER = "11" * 32, "22" * 32
ADDRESS = Signer.from_hex(ONE).address
DELEGATE = Signer.from_hex(OTHER).address


def loaded(wallet: dict[str, Any]) -> Signer:
    return load_signer(parse({"wallet": wallet}, "test"))


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE", ONE)
    monkeypatch.setenv("OTHER", "0x" + OTHER)
    monkeypatch.setenv("BAD", "no key at all")
    monkeypatch.setenv("WORD", "p")


def test_one_key_does_both() -> None:
    signer = loaded({"private_key_env": "ONE"})
    assert (signer.address, signer.voucher_signer, signer.signs_transactions) == (ADDRESS, ADDRESS, True)


def test_a_key_for_each() -> None:
    signer = loaded({"private_key_from": "env:ONE", "voucher_key": {"private_key_env": "OTHER"}})
    assert (signer.address, signer.voucher_signer, signer.signs_transactions) == (ADDRESS, DELEGATE, True)


def test_the_key_of_the_vouchers_alone() -> None:
    signer = loaded({"payer": ADDRESS, "voucher_key": {"private_key_from": "command:printenv OTHER"}})
    assert (signer.address, signer.voucher_signer, signer.signs_transactions) == (ADDRESS, DELEGATE, False)


@pytest.mark.parametrize("password", [{"password_from": "env:WORD"}, {"password_env": "WORD"}])
def test_a_file_with_its_password_from_anywhere(tmp_path: Path, password: dict[str, str]) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "key.json"
    # With few rounds: how a key file is made is not what this is about.
    path.write_text(json.dumps(Account.encrypt(bytes.fromhex(ONE), "p", kdf="pbkdf2", iterations=10)))
    path.chmod(0o600)
    assert loaded({"keystore": str(path), **password}).address == ADDRESS


def test_a_key_from_a_descriptor() -> None:
    ours, its = os.pipe()
    os.write(its, ONE.encode())
    os.close(its)
    assert loaded({"private_key_from": f"fd:{ours}"}).address == ADDRESS


@pytest.mark.parametrize(
    ("wallet", "error", "says"),
    [
        ({}, ConfigError, r"names no key: set \[wallet\]\.keystore"),
        ({"payer": ADDRESS}, ConfigError, r"payer is set without a key"),
        ({"payer": DELEGATE, "private_key_env": "ONE"}, ConfigError, f"the key is that of {ADDRESS}"),
        ({"payer": ADDRESS, "voucher_key": {}}, ConfigError, r"set \[wallet\.voucher_key\]\.keystore"),
        ({"keystore": "/k"}, ConfigError, r"names no password: set \[wallet\]\.password_env"),
        ({"private_key_env": "BAD"}, KeystoreError, "64 hex digits"),
        ({"private_key_from": "env:BAD"}, KeystoreError, r"\[wallet\]\.private_key_from: .*64 hex digits"),
    ],
)
def test_what_is_missing_or_does_not_fit(wallet: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        loaded(wallet)
    assert "no key at all" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["", "hunter2", "fd:x", "fd:", "command:", "command:pass 'x", "vault:x", "file: "]
)
def test_a_secret_itself_is_never_taken_for_its_place(spec: str) -> None:
    with pytest.raises(ConfigError, match="password_from: ") as caught:
        parse({"wallet": {"keystore": "/k", "password_from": spec}}, "test")
    assert "hunter2" not in str(caught.value)


def test_two_keys_of_one_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="names both private_key_env and private_key_from; keep one"):
        parse({"wallet": {"private_key_env": "A", "private_key_from": "fd:3"}}, "test")
