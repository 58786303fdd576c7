"""Keys at rest: an encrypted keystore file, an environment variable, or text from elsewhere.

A keystore is the JSON file that Ethereum wallets write (Web3 Secret Storage, version 3). It must be readable by
its owner only, in a directory that only its owner can enter.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from proxy_addon.core.errors import BursarError
from proxy_addon.private_file import check_directory, read_private
from proxy_addon.signer import KeyRejected, Signer, parse_key

if TYPE_CHECKING:
    from eth_account import Account

PasswordSource = Callable[[], str]


class KeystoreError(BursarError):
    """The key cannot be loaded or stored. The message says why and what to do, and holds no secret."""


def signer_from_env(name: str, environ: Mapping[str, str] = os.environ) -> Signer:
    """From a hex key in the environment variable `name`. Raises `KeystoreError`.

    Other processes of the same user can read it there: a keystore file is better for more than pocket money.
    """
    return Signer(key_from_env(name, environ))


def key_from_env(name: str, environ: Mapping[str, str] = os.environ) -> bytes:
    """The 32 bytes of a hex key in the environment variable `name`. Raises `KeystoreError`."""
    value = environ.get(name)
    if not value:
        raise KeystoreError(
            f"the environment variable {name} is not set: it should hold the private key in hex"
        )
    try:
        return _checked(parse_key(value))
    except KeyRejected as error:
        raise KeystoreError(f"the environment variable {name}: {error}") from None


def key_from(source: PasswordSource) -> bytes:
    """The 32 bytes of a hex key, from wherever `source` has it. Raises `KeystoreError`, and what `source` raises."""
    try:
        return _checked(parse_key(source()))
    except KeyRejected as error:
        raise KeystoreError(f"[wallet].private_key_from: {error}") from None


def _checked(key: bytes) -> bytes:
    Signer(key)
    return key


def signer_from_keystore(path: Path, password: PasswordSource) -> Signer:
    """From an encrypted keystore. Raises `KeystoreError`; asks for the password only if the file is in order."""
    return Signer(key_from_keystore(path, password))


def key_from_keystore(path: Path, password: PasswordSource) -> bytes:
    """The 32 bytes of an encrypted keystore's key. Raises `KeystoreError`, and what `password` raises."""
    document = _read_document(path)
    word = password()
    try:
        return _checked(bytes(_eth_account().decrypt(document, word)))
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
    signer, document = _encrypted(password, _random_key() if key is None else key)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_directory(path.parent, KeystoreError)
        _write_new(path, document)
    except FileExistsError:
        raise KeystoreError(f"{path} exists: a key is never overwritten; choose another name") from None
    except OSError as error:
        raise KeystoreError(f"{path} cannot be written: {error.strerror}") from None
    return signer


def replace_keystore(path: Path, password: str, key: bytes) -> Signer:
    """The same key under a new password. After a crash the file is the old one or the new one, whole.

    `key` is what the file held. Raises `KeystoreError`; then the old file is as it was.
    """
    signer, document = _encrypted(password, key)
    try:
        with _complete(path, document) as temporary:
            temporary.replace(path)
    except OSError as error:
        raise KeystoreError(f"{path} cannot be written: {error.strerror}") from None
    return signer


def rotate_keystore(path: Path, kept: Path, password: str) -> Signer:
    """A new random key at `path`; the old file stays, as `kept`. Raises `KeystoreError`; then nothing has changed.

    After a crash the old key is at `path`, at `kept` or at both, and a file at `path` is always whole.
    """
    signer, document = _encrypted(password, _random_key())
    try:
        os.link(path, kept)
        with _complete(path, document) as temporary:
            temporary.replace(path)
    except FileExistsError:
        raise KeystoreError(f"{kept} exists: a key is never overwritten; move it away") from None
    except OSError as error:
        raise KeystoreError(f"{path} cannot be written: {error.strerror}") from None
    return signer


def _encrypted(password: str, key: bytes) -> tuple[Signer, bytes]:
    if not password:
        raise KeystoreError("an empty password protects nothing: choose another")
    try:
        signer = Signer(key)
    except KeyRejected as error:
        raise KeystoreError(str(error)) from None
    return signer, orjson.dumps(_eth_account().encrypt(key, password))


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
        lines = read_private(path, KeystoreError).decode("utf-8", "replace").splitlines()
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
        document = orjson.loads(read_private(path, KeystoreError))
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise KeystoreError(f"{path} is no keystore: no JSON object")
    return document


def _write_new(path: Path, data: bytes) -> None:
    """A hard link from a synced temporary file: never half a file, never over another one."""
    with _complete(path, data) as temporary:
        os.link(temporary, path)


@contextlib.contextmanager
def _complete(path: Path, data: bytes) -> Iterator[Path]:
    """A synced file beside `path`, for a step that makes it `path`; in the end that step is synced, too."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
