"""Where the payer's key comes from: an encrypted keystore file, or an environment variable.

A keystore is the JSON file that Ethereum wallets write (Web3 Secret Storage, version 3). It must be readable by
its owner only, in a directory that only its owner can enter.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from proxy_addon.core.errors import BursarError
from proxy_addon.signer import KeyRejected, Signer

if TYPE_CHECKING:
    from eth_account import Account

PasswordSource = Callable[[], str]

_SIZE_LIMIT: Final = 65_536


class KeystoreError(BursarError):
    """The key cannot be loaded or stored. The message says why and what to do, and holds no secret."""


def signer_from_env(name: str, environ: Mapping[str, str] = os.environ) -> Signer:
    """From a hex key in the environment variable `name`. Raises `KeystoreError`.

    Other processes of the same user can read it there: a keystore file is better for more than pocket money.
    """
    value = environ.get(name)
    if not value:
        raise KeystoreError(
            f"the environment variable {name} is not set: it should hold the private key in hex"
        )
    try:
        return Signer.from_hex(value)
    except KeyRejected as error:
        raise KeystoreError(f"the environment variable {name}: {error}") from None


def signer_from_keystore(path: Path, password: PasswordSource) -> Signer:
    """From an encrypted keystore. Raises `KeystoreError`; asks for the password only if the file is in order."""
    document = _read_document(path)
    try:
        return Signer(bytes(_eth_account().decrypt(document, password())))
    except KeystoreError:
        raise
    except Exception as error:  # ValueError for a bad MAC, KeyError and TypeError for an odd document
        reason = "the password is wrong" if str(error) == "MAC mismatch" else "it is no keystore of version 3"
        raise KeystoreError(f"{path} cannot be decrypted: {reason}") from None


def keystore_address(path: Path) -> str | None:
    """The address that the keystore claims, without the password. Raises `KeystoreError` as opening it does."""
    address = _read_document(path).get("address")
    if not isinstance(address, str):
        return None
    return "0x" + address.lower().removeprefix("0x")


def create_keystore(path: Path, password: str, key: bytes | None = None) -> Signer:
    """Writes a new keystore, 0600, and returns its signer. `key` is imported; without it a random one is made.

    Promises never to overwrite: the file appears complete or not at all, also across a crash, and an existing one
    stays as it is. Its directory is created 0700 if it is missing. Raises `KeystoreError`.
    """
    if not password:
        raise KeystoreError("an empty password protects nothing: choose another")
    secret = _random_key() if key is None else key
    try:
        signer = Signer(secret)
    except KeyRejected as error:
        raise KeystoreError(str(error)) from None
    document = orjson.dumps(_eth_account().encrypt(secret, password))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_directory(path.parent)
        _write_new(path, document)
    except FileExistsError:
        raise KeystoreError(f"{path} exists: a key is never overwritten; choose another name") from None
    except OSError as error:
        raise KeystoreError(f"{path} cannot be written: {error.strerror}") from None
    return signer


def password_from_env(name: str, environ: Mapping[str, str] = os.environ) -> PasswordSource:
    """Reads the password from the environment variable `name` when it is needed."""

    def read() -> str:
        value = environ.get(name)
        if not value:
            raise KeystoreError(f"the environment variable {name} is not set: it should hold the password")
        return value

    return read


def password_from_file(path: Path) -> PasswordSource:
    """Reads the first line of `path`, which must be as private as the keystore, when it is needed."""

    def read() -> str:
        lines = _read_private(path).decode("utf-8", "replace").splitlines()
        if not lines or not lines[0]:
            raise KeystoreError(f"{path} is empty: its first line should be the password")
        return lines[0]

    return read


def _eth_account() -> Account:
    """Loaded late, since it takes most of a second, and kept from changing the process.

    A library of its own raises the recursion limit to 100,000; from then on a peer's ``[[[[…`` ends the process
    where Python's json would have raised.
    """
    limit = sys.getrecursionlimit()
    try:
        from eth_account import Account
    finally:
        sys.setrecursionlimit(limit)
    return Account()


def _random_key() -> bytes:
    while True:
        key = secrets.token_bytes(32)
        with contextlib.suppress(KeyRejected):  # once in 2**128: zero, or above the curve's order
            Signer(key)
            return key


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(_read_private(path))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise KeystoreError(f"{path} is no keystore: no JSON object")
    return document


def _read_private(path: Path) -> bytes:
    """The file's bytes, after checking the very file that was opened. Raises `KeystoreError`."""
    if not os.path.lexists(path):
        raise KeystoreError(
            f"there is no file {path}: name the right one in the config; bursar init makes one"
        )
    _check_directory(path.parent)
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeystoreError(f"{path} is not a file")
            _check_private(path, status, "600")
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise KeystoreError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > _SIZE_LIMIT:
        raise KeystoreError(f"{path} has more than {_SIZE_LIMIT} bytes: not one of ours")
    return data


def _check_directory(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise KeystoreError(f"{path} cannot be read: {error.strerror}") from None
    _check_private(path, status, "700")


def _check_private(path: Path, status: os.stat_result, mode: str) -> None:
    if status.st_mode & 0o077:
        raise KeystoreError(
            f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):o}): chmod {mode} {path}"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise KeystoreError(f"{path} belongs to another user: chown it to the one who runs the proxy")


def _write_new(path: Path, data: bytes) -> None:
    """A hard link from a synced temporary file: never half a file, never over another one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
