from __future__ import annotations

import os
import stat
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy_addon.secret_sources import SecretUnavailable, descriptor_of, source, variable_of

SECRET = "c4n4ry-never-to-be-shown"
WHAT = "the password"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    path = tmp_path / "secret"
    path.touch(mode=0o600)
    path.write_text(f"{SECRET}\nand a second line\n")
    return path


def a_pipe(text: str) -> int:
    ours, its = os.pipe()
    os.write(its, text.encode())
    os.close(its)
    return ours


SOURCES: dict[str, Callable[[Path], str]] = {
    "a file": lambda private: f"file:{private}",
    "a descriptor": lambda private: f"fd:{a_pipe(SECRET)}",
    "a command": lambda private: f"command:head -n 1 '{private}'",
    "a variable": lambda private: "env:WHERE_IT_IS",
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_first_line_is_it(kind: str, private: Path) -> None:
    assert source(SOURCES[kind](private), WHAT, {"WHERE_IT_IS": SECRET})() == SECRET


def test_a_descriptor_is_closed_once_it_is_read() -> None:
    number = a_pipe(SECRET)
    assert source(f"fd:{number}", WHAT)() == SECRET
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_the_systems_keyring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library itself is optional, and there is no desktop here: what is asked of it."""
    asked = []

    def get_password(service: str, user: str) -> str | None:
        asked.append((service, user))
        return SECRET if service == "bursar" else None

    class KeyringError(Exception):
        pass

    keyring = types.ModuleType("keyring")
    keyring.get_password = get_password  # type: ignore[attr-defined]
    errors = types.ModuleType("keyring.errors")
    errors.KeyringError = KeyringError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keyring", keyring)
    monkeypatch.setitem(sys.modules, "keyring.errors", errors)
    assert source("keyring:bursar/me", WHAT)() == SECRET
    assert source("keyring:bursar", WHAT)() == SECRET
    assert asked == [("bursar", "me"), ("bursar", "bursar")]
    with pytest.raises(SecretUnavailable, match="keyring:other is empty or not set"):
        source("keyring:other", WHAT)()


def test_without_the_keyring_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(SecretUnavailable, match=r"pip install 'bursar\[keyring\]'"):
        source("keyring:bursar", WHAT)()


WRONG: dict[str, tuple[Callable[[Path], str], str]] = {
    "no such file": (lambda private: f"file:{private}x", "there is no file"),
    "an empty file": (lambda private: f"file:{_emptied(private)}", "is empty or not set"),
    "a file for others": (lambda private: f"file:{_opened(private)}", "chmod 600"),
    "a closed descriptor": (lambda private: "fd:987", "start bursar with 987<"),
    "an endless descriptor": (
        lambda private: f"fd:{os.open('/dev/zero', os.O_RDONLY)}",
        "more than 65536 bytes",
    ),
    "no such command": (lambda private: "command:no-such-tool x", "no-such-tool.* is no command here"),
    "a command that fails": (lambda private: f"command:sh -c 'echo {SECRET}; exit 3'", "ended with 3"),
    "a command that is no file": (lambda private: "command:/", "Permission denied"),
    "a silent command": (lambda private: f"command:true {SECRET}", "command:true is empty"),
    "no variable": (lambda private: "env:NOT_THERE", "the environment variable NOT_THERE"),
    "nothing we know": (lambda private: "vault:x", "vault: is none of env, file, fd, command, keyring"),
}


def _emptied(path: Path) -> Path:
    path.write_text("\n")
    return path


def _opened(path: Path) -> Path:
    path.chmod(0o644)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    return path


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_without_the_secret(what: str, private: Path) -> None:
    spec, says = WRONG[what]
    with pytest.raises(SecretUnavailable, match=says) as caught:
        source(spec(private), WHAT, {})()
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("spec", "descriptor", "variable"),
    [("fd:3", 3, None), ("env:X", None, "X"), ("command:fd:3", None, None), (None, None, None)],
)
def test_what_a_child_has_to_inherit_or_must_not(
    spec: str | None, descriptor: int | None, variable: str | None
) -> None:
    assert (descriptor_of(spec), variable_of(spec)) == (descriptor, variable)
