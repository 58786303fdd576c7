from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from proxy_addon import keystore
from proxy_addon.keystore import KeystoreError, create_keystore, keystore_address, signer_from_keystore
from tests.unit.methods.samples import ADDRESS, KEY

RAW = bytes.fromhex(KEY[2:])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture(scope="module")
def document() -> str:
    """A real keystore with few rounds, so that the tests are quick."""
    return json.dumps(Account.encrypt(RAW, "correct horse", kdf="pbkdf2", iterations=10))


@pytest.fixture
def stored(home: Path, document: str) -> Path:
    path = home / "key.json"
    path.write_text(document)
    path.chmod(0o600)
    return path


@pytest.fixture(autouse=True)
def _cheap_encryption(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Account.encrypt
    monkeypatch.setattr(
        Account, "encrypt", lambda self, key, password: real(key, password, kdf="pbkdf2", iterations=10)
    )


def test_a_keystore_is_opened(stored: Path) -> None:
    assert signer_from_keystore(stored, lambda: "correct horse").address == ADDRESS
    assert keystore_address(stored) == ADDRESS


def test_opening_one_leaves_the_recursion_limit_alone(stored: Path) -> None:
    """Else a peer's deeply nested JSON would end the process: eth_account's libraries raise it to 100,000."""
    program = (
        "import sys; from pathlib import Path; from proxy_addon.keystore import signer_from_keystore\n"
        "before = sys.getrecursionlimit()\n"
        "signer_from_keystore(Path(sys.argv[1]), lambda: 'correct horse')\n"
        "assert 'eth_account' in sys.modules\n"
        "sys.exit(sys.getrecursionlimit() != before)"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(stored)], check=False)
    assert ended.returncode == 0


def test_a_wrong_password_says_so(stored: Path) -> None:
    with pytest.raises(KeystoreError, match="the password is wrong"):
        signer_from_keystore(stored, lambda: "wrong")


@pytest.mark.parametrize("text", ["{}", '{"version": 3}', '{"crypto": 1, "version": 3}'])
def test_another_document_says_so(stored: Path, text: str) -> None:
    stored.write_text(text)
    with pytest.raises(KeystoreError, match="no keystore of version 3"):
        signer_from_keystore(stored, lambda: "x")
    assert keystore_address(stored) is None


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\xff", "[" * 50_000])
def test_what_is_no_document_says_so(stored: Path, text: str) -> None:
    stored.write_bytes(text.encode("latin-1"))
    with pytest.raises(KeystoreError, match="no JSON object"):
        signer_from_keystore(stored, lambda: "x")


def test_a_huge_file_is_not_read(stored: Path) -> None:
    stored.write_bytes(b" " * 70_000)
    with pytest.raises(KeystoreError, match="65536"):
        signer_from_keystore(stored, lambda: "x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o666])
def test_a_file_that_others_can_open_is_refused_before_the_password(stored: Path, mode: int) -> None:
    stored.chmod(mode)
    with pytest.raises(KeystoreError, match=f"chmod 600 {stored}"):
        signer_from_keystore(stored, lambda: pytest.fail("asked for the password"))


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o710])
def test_a_directory_that_others_can_enter_is_refused(stored: Path, mode: int) -> None:
    stored.parent.chmod(mode)
    with pytest.raises(KeystoreError, match=f"chmod 700 {stored.parent}"):
        signer_from_keystore(stored, lambda: "x")


def test_a_file_of_another_user_is_refused(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(stored, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(KeystoreError, match="another user"):
        signer_from_keystore(stored, lambda: "x")


def test_what_is_not_there_says_so(home: Path) -> None:
    with pytest.raises(KeystoreError, match="there is no file"):
        signer_from_keystore(home / "none.json", lambda: "x")
    with pytest.raises(KeystoreError, match="there is no file"):
        signer_from_keystore(home / "none" / "none.json", lambda: "x")
    folder = home / "folder"
    folder.mkdir(mode=0o700)
    with pytest.raises(KeystoreError, match="directory"):
        signer_from_keystore(folder, lambda: "x")


def test_a_pipe_is_no_keystore(home: Path) -> None:
    path = home / "pipe"
    os.mkfifo(path, 0o600)
    keep = os.open(path, os.O_RDWR)  # so that opening does not wait
    try:
        with pytest.raises(KeystoreError, match="not a file"):
            signer_from_keystore(path, lambda: "x")
    finally:
        os.close(keep)


def test_a_password_source_fails_in_its_own_words(stored: Path) -> None:
    with pytest.raises(KeystoreError, match="BURSAR_PASSWORD is not set"):
        signer_from_keystore(stored, keystore.password_from_env("BURSAR_PASSWORD", {}))


def test_passwords_come_from_the_environment_or_a_private_file(stored: Path, home: Path) -> None:
    assert keystore.password_from_env("P", {"P": "correct horse"})() == "correct horse"
    secret = home / "password"
    secret.write_text("correct horse\nsecond line\n")
    secret.chmod(0o600)
    assert signer_from_keystore(stored, keystore.password_from_file(secret)).address == ADDRESS
    secret.chmod(0o644)
    with pytest.raises(KeystoreError, match="chmod 600"):
        keystore.password_from_file(secret)()
    secret.chmod(0o600)
    secret.write_text("\n")
    with pytest.raises(KeystoreError, match="is empty"):
        keystore.password_from_file(secret)()
    secret.write_text("")
    with pytest.raises(KeystoreError, match="is empty"):
        keystore.password_from_file(secret)()


def test_a_key_comes_from_the_environment() -> None:
    assert keystore.signer_from_env("KEY", {"KEY": KEY}).address == ADDRESS
    for environ in ({}, {"KEY": ""}):
        with pytest.raises(KeystoreError, match="KEY is not set"):
            keystore.signer_from_env("KEY", environ)
    with pytest.raises(KeystoreError, match="64 hex digits") as caught:
        keystore.signer_from_env("KEY", {"KEY": KEY[:-1]})
    assert KEY[:-1] not in str(caught.value)


def test_a_new_keystore_is_private_and_opens(home: Path) -> None:
    path = home / "new" / "key.json"
    signer = create_keystore(path, "hunter2", RAW)
    assert signer.address == ADDRESS
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert signer_from_keystore(path, lambda: "hunter2").address == ADDRESS
    assert [entry.name for entry in path.parent.iterdir()] == ["key.json"]
    assert KEY[2:] not in path.read_text()


def test_a_random_key_is_new_each_time(home: Path) -> None:
    assert create_keystore(home / "a", "x").address != create_keystore(home / "b", "x").address


def test_a_keystore_is_never_overwritten(stored: Path) -> None:
    before = stored.read_bytes()
    with pytest.raises(KeystoreError, match="never overwritten"):
        create_keystore(stored, "x")
    assert stored.read_bytes() == before
    assert [entry.name for entry in stored.parent.iterdir()] == [stored.name]


def test_a_dangling_link_is_not_followed(home: Path) -> None:
    (home / "link").symlink_to(home / "target")
    with pytest.raises(KeystoreError, match="never overwritten"):
        create_keystore(home / "link", "x")
    assert not (home / "target").exists()


def test_a_failed_write_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(KeystoreError, match="No space left"):
        create_keystore(home / "key.json", "x")
    assert list(home.iterdir()) == []


def test_what_cannot_be_made_says_so(home: Path) -> None:
    with pytest.raises(KeystoreError, match="empty password"):
        create_keystore(home / "k", "")
    with pytest.raises(KeystoreError, match="private key"):
        create_keystore(home / "k", "x", bytes(32))
    home.chmod(0o755)
    with pytest.raises(KeystoreError, match="chmod 700"):
        create_keystore(home / "k", "x")
    assert list(home.iterdir()) == []
