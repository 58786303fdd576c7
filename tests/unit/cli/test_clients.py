"""Unmodified clients reach an https site through the proxy, and trust it, by the environment alone.

The site's own authority is known to the proxy only: a client that came past the proxy would refuse it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from proxy_addon.cli import trust
from proxy_addon.cli.environment import behind
from proxy_addon.cli.supervise import start_proxy
from tests.unit.cli.conftest import KEY, KEY_ENV, ROOT, clean_environ
from tests.unit.cli.tls import BODY, Site, https_site

JAVA = """
import java.io.*;
import java.net.*;
public class Get {
  public static void main(String[] a) throws Exception {
    System.out.write(new URL(a[0]).openStream().readAllBytes());
    System.out.flush();
  }
}
"""

CLIENTS = {
    "curl": ["curl", "-sS", "{url}"],
    "urllib": [
        sys.executable,
        "-c",
        "import urllib.request as r; print(r.urlopen('{url}').read().decode(), end='')",
    ],
    "requests": [sys.executable, "-c", "import requests; print(requests.get('{url}').text, end='')"],
    "httpx": [sys.executable, "-c", "import httpx; print(httpx.get('{url}').text, end='')"],
    "node-fetch": ["node", "-e", "fetch('{url}').then(r => r.text()).then(t => process.stdout.write(t))"],
    "java": ["java", "{directory}/Get.java", "{url}"],
    "git": ["git", "ls-remote", "{url}"],
}


@dataclass(frozen=True)
class Behind:
    environ: dict[str, str]
    site: Site
    directory: Path


@pytest.fixture(scope="module")
def proxied(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    directory = tmp_path_factory.mktemp("clients")
    directory.chmod(0o700)
    with https_site(directory) as site:
        config = directory / "config.toml"
        text = (home / "config.toml").read_text().replace(str(home / "store"), str(directory / "store"))
        config.write_text(text.replace("[proxy]", f'[proxy]\nupstream_ca = "{site.certificate}"'))
        (directory / "ca").symlink_to(home / "ca")
        (directory / "Get.java").write_text(JAVA)
        environ = clean_environ()
        log = directory / "proxy.log"
        proxy = start_proxy(config, {**os.environ, KEY_ENV: KEY, "PYTHONPATH": str(ROOT)}, log)
        try:
            yield Behind(
                behind(environ, proxy.url, trust.prepare(directory / "ca", environ)), site, directory
            )
        finally:
            assert proxy.stop() == 0, log.read_text()


def run(client: str, proxied: Behind, **more: str) -> subprocess.CompletedProcess[str]:
    arguments = [
        part.replace("{url}", proxied.site.url).replace("{directory}", str(proxied.directory))
        for part in CLIENTS[client]
    ]
    if shutil.which(arguments[0]) is None:
        pytest.skip(f"{arguments[0]} is not installed")
    return subprocess.run(
        arguments, env={**proxied.environ, **more}, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.parametrize("client", [name for name in CLIENTS if name != "git"])
def test_client_goes_through_the_proxy_and_trusts_it(client: str, proxied: Behind) -> None:
    done = run(client, proxied)
    assert done.stdout == BODY.decode(), done.stderr


def test_git_gets_as_far_as_the_site(proxied: Behind) -> None:
    proxied.site.asked.clear()
    done = run("git", proxied)
    assert any(agent.startswith("git/") for agent in proxied.site.asked), done.stderr


@pytest.mark.parametrize("client", ["curl", "requests", "node-fetch", "java"])
def test_whom_the_user_exempts_is_not_proxied(client: str, proxied: Behind) -> None:
    exempting = behind(
        clean_environ(no_proxy="127.0.0.1"),
        proxied.environ["http_proxy"],
        trust.prepare(proxied.directory / "ca", {}),
    )
    done = run(client, Behind(exempting, proxied.site, proxied.directory))
    assert done.returncode != 0  # the site's own authority is unknown here
    assert "cert" in (done.stdout + done.stderr).lower()
