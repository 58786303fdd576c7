"""The proxy's certificate authority, and the bundle that makes clients trust it.

All but Node's variable *replace* a client's trust store; so the bundle holds the public authorities, those
that the user's own variables name, and ours.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from proxy_addon.cli.failure import ExitCode, Failure

CERTIFICATE: Final = "mitmproxy-ca-cert.pem"
_KEY: Final = "mitmproxy-ca.pem"
_KEY_SIZE: Final = 2048
_BLOCK: Final = re.compile(
    rb"-----BEGIN (?:TRUSTED )?CERTIFICATE-----\r?\n.+?-----END (?:TRUSTED )?CERTIFICATE-----", re.DOTALL
)

_SYSTEM: Final = tuple(
    map(
        Path,
        (
            "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
            "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
            "/etc/ssl/ca-bundle.pem",  # SUSE
            "/etc/ssl/cert.pem",  # macOS, BSD
        ),
    )
)
"""Where systems keep their authorities, with those that the machine's owner added."""

INHERITED: Final = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
)
"""Variables whose authorities the user trusts already."""


def private_directory(path: Path) -> None:
    """Make `path`, for its owner only; one that is there must be so already."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise Failure(f"{path} is open to others (mode {mode:o}): chmod 700 {path}", ExitCode.CONFIG)


def ensure_ca(directory: Path) -> Path:
    """The authority's certificate; it is made if there is none. Whoever has its key can read what clients send."""
    certificate = directory / CERTIFICATE
    private_directory(directory)
    if not (directory / _KEY).exists():
        from mitmproxy.certs import CertStore  # slow to import

        CertStore.create_store(
            directory, "mitmproxy", _KEY_SIZE, organization="bursar", cn=f"bursar {secrets.token_hex(4)}"
        )
    if not certificate.exists():
        raise Failure(
            f"{directory} has a key but no {CERTIFICATE}: remove the directory, and a new authority is made",
            ExitCode.CONFIG,
        )
    return certificate


def bundle(directory: Path, sources: Iterable[Path]) -> Path:
    """A file in `directory` with the certificates of all `sources`. Named by its content: processes do not disturb
    each other, and an old one goes on being what it was. A source that cannot be read adds nothing."""
    content = b"\n".join(dict.fromkeys(block for path in sources for block in _blocks(path)))
    path = directory / f"bundle-{hashlib.sha256(content).hexdigest()[:16]}.pem"
    if not path.exists():
        write_whole(path, content + b"\n")
    return path


def public_authorities() -> Path:
    """What mitmproxy trusts, too."""
    import certifi

    return Path(certifi.where())


def trusted_by_user(environ: Mapping[str, str]) -> list[Path]:
    """Where the user's clients find the authorities that they trust without us."""
    named = [Path(value) for name in INHERITED if (value := environ.get(name))]
    system = ssl.get_default_verify_paths().cafile
    usual = next((path for path in _SYSTEM if path.is_file()), None)
    return [*named, public_authorities(), *(Path(path) for path in (system, usual) if path)]


def write_whole(path: Path, content: bytes) -> None:
    """Readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def certificates(pem: bytes) -> list[bytes]:
    """The PEM blocks of a bundle."""
    return _BLOCK.findall(pem)


def _blocks(path: Path) -> list[bytes]:
    try:
        return certificates(path.read_bytes())
    except OSError:  # a variable that names nothing: the client would have had to do without it, too
        return []
