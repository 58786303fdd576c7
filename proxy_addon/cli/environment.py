"""The environment of a command behind the proxy: every variable that makes a client use it and trust it.

Inherited values mask each other (`SSL_CERT_FILE` and `REQUESTS_CA_BUNDLE`, both cases of `http_proxy`), so
all of them are set. Whom the user exempted with no_proxy stays exempt; loopback is exempt only if named there.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "wss_proxy")
"""In both cases. CGI programs ignore HTTP_PROXY in capitals, others the small ones."""

BUNDLES: Final = (
    "SSL_CERT_FILE",  # OpenSSL: curl, Python's ssl and httpx, Ruby, Go, Rust's native roots, uv
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "HTTPLIB2_CA_CERTS",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NIX_SSL_CERT_FILE",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "PERL_LWP_SSL_CA_FILE",
)


@dataclass(frozen=True, slots=True)
class Trust:
    """The files that make clients trust the proxy."""

    bundle: Path
    java_store: Path
    java_password: str
    node_preload: Path
    wgetrc: Path


def behind(
    environ: Mapping[str, str], url: str, trust: Trust, *, without: Iterable[str] = ()
) -> dict[str, str]:
    """`environ` for a command that reaches the world through the proxy at `url`, `without` the wallet's secrets."""
    kept = {name: value for name, value in environ.items() if name not in frozenset(without)}
    return kept | additions(environ, url, trust)


def additions(environ: Mapping[str, str], url: str, trust: Trust) -> dict[str, str]:
    """The variables that `behind` sets, over what `environ` has of them. Made twice they are what they were."""
    result = {}
    for name in PROXIES:
        result[name] = result[name.upper()] = url
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    for name in ("no_proxy", "NO_PROXY"):
        if exempt and not environ.get(name):
            result[name] = exempt
    for name in BUNDLES:
        result[name] = str(trust.bundle)
    result["SYSTEM_WGETRC"] = str(trust.wgetrc)  # wget with GnuTLS knows no variable for certificates
    result["PERL_LWP_ENV_PROXY"] = "1"  # libwww-perl looks at proxy variables only if it is told to
    result["NODE_USE_ENV_PROXY"] = "1"  # Node 24 and later; the preload serves those before
    result["NODE_OPTIONS"] = _joined(
        environ.get("NODE_OPTIONS"), f"--require={_node_quoted(trust.node_preload)}"
    )
    result["JAVA_TOOL_OPTIONS"] = _joined(environ.get("JAVA_TOOL_OPTIONS"), *_java(url, trust, exempt))
    return result


def replaced(environ: Mapping[str, str]) -> list[str]:
    """Names of the proxy variables that were set before: what they named is not used."""
    names = (*PROXIES, *(name.upper() for name in PROXIES))
    return [name for name in names if environ.get(name)]


def _joined(before: str | None, *parts: str) -> str:
    """The user's own options, and then ours, less those that are in there already."""
    present = f" {before or ''} "
    ours = [part for part in parts if f" {part} " not in present]
    return " ".join(part for part in (before, *ours) if part)


def _node_quoted(path: Path) -> str:
    """NODE_OPTIONS splits at spaces outside double quotes, and takes backslashes inside them."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _java(url: str, trust: Trust, exempt: str) -> list[str]:
    address = urlsplit(url)
    options = [
        f"-D{scheme}.{key}={value}"
        for scheme in ("http", "https")
        for key, value in (("proxyHost", address.hostname), ("proxyPort", address.port))
    ]
    options += [
        # Set even when empty: Java's own default exempts loopback.
        f"-Dhttp.nonProxyHosts={'|'.join(_java_patterns(exempt))}",
        f"-Djavax.net.ssl.trustStore={trust.java_store}",
        "-Djavax.net.ssl.trustStoreType=JKS",
        f"-Djavax.net.ssl.trustStorePassword={trust.java_password}",
    ]
    return [shlex.quote(option) for option in options]


def _java_patterns(exempt: str) -> list[str]:
    """no_proxy's suffixes, as Java writes them: ``.example.com`` is ``*.example.com``."""
    patterns: list[str] = []
    for name in (part.strip() for part in exempt.split(",")):
        if name == "*" or not name:
            patterns += [name] if name else []
        elif name.startswith((".", "*.")):
            patterns.append("*" + name.removeprefix("*"))
        else:
            patterns += [name, f"*.{name}"]
    return patterns
