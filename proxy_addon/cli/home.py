"""Where things are: the home directory, its config, and what lies beside it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from proxy_addon.config import Settings

_F = TypeVar("_F", bound=Callable[..., Any])

CONFIG_NAME: Final = "config.toml"


def default_home() -> Path:
    return Path(os.environ.get("BURSAR_HOME") or "~/.bursar").expanduser()


@dataclass(frozen=True, slots=True)
class Home:
    """The files that belong together; the config's directory holds them."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / CONFIG_NAME

    @property
    def keystore(self) -> Path:
        return self.directory / "key.json"

    @property
    def password(self) -> Path:
        return self.directory / "password"

    @property
    def store(self) -> Path:
        return self.directory / "store"

    @property
    def ca(self) -> Path:
        return self.directory / "ca"


def home_of(config: Path) -> Home:
    """The home that a config file belongs to: its directory."""
    return Home(config.expanduser().absolute().parent)


def config_option(command: _F) -> _F:
    """``--config FILE``: the argument `config`, a path."""
    return click.option(
        "--config",
        "-c",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="BURSAR_CONFIG",
        default=lambda: default_home() / CONFIG_NAME,
        show_default="~/.bursar/config.toml",
        help="The config file.",
    )(command)


def json_option(command: _F) -> _F:
    return click.option("--json", "as_json", is_flag=True, help="Write JSON, for programs.")(command)


def load_settings(config: Path) -> Settings:
    """Raises `ConfigError`."""
    from proxy_addon.config import load  # pydantic is slow to import

    return load(config)
