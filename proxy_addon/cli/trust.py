"""The files that make clients use and trust the proxy: a bundle, in Java's and wget's forms too, a preload for Node."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from proxy_addon.cli.ca import CERTIFICATE, bundle, certificates, trusted_by_user, write_whole
from proxy_addon.cli.environment import Trust
from proxy_addon.cli.node_preload import SOURCE

JAVA_PASSWORD: Final = "changeit"  # noqa: S105 (Java's own default; the store holds public certificates)

_JKS_MAGIC: Final = 0xFEEDFEED
_JKS_VERSION: Final = 2
_JKS_TRUSTED: Final = 2
_JKS_SALT: Final = b"Mighty Aphrodite"  # part of the format: KeyStore's digest is over password, this, data


def prepare(directory: Path, environ: Mapping[str, str]) -> Trust:
    """Write what is missing of them into the authority's directory."""
    pem = bundle(directory, [*trusted_by_user(environ), directory / CERTIFICATE])
    java = pem.with_suffix(".jks")
    if not java.exists():
        write_whole(java, java_store(_der(pem)))
    preload = directory / f"node-{hashlib.sha256(SOURCE.encode()).hexdigest()[:16]}.cjs"
    if not preload.exists():
        write_whole(preload, SOURCE.encode())
    return Trust(
        bundle=pem,
        java_store=java,
        java_password=JAVA_PASSWORD,
        node_preload=preload,
        wgetrc=_wgetrc(directory, pem, environ),
    )


def _wgetrc(directory: Path, pem: Path, environ: Mapping[str, str]) -> Path:
    """The machine's own settings of wget, with our bundle. The user's file is read after it, as ever."""
    try:
        lines = Path(environ.get("SYSTEM_WGETRC") or "/etc/wgetrc").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    kept = [line for line in lines if not line.replace("-", "").replace("_", "").strip().startswith("cacert")]
    text = "\n".join([*kept, f"ca_certificate = {pem}", ""])
    path = directory / f"wgetrc-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    if not path.exists():
        write_whole(path, text.encode())
    return path


def java_store(der: Iterable[bytes]) -> bytes:
    """A JKS file of trusted certificates: Java reads neither PEM nor, without Oracle's own attribute, PKCS #12."""
    entries = [
        struct.pack(">I", _JKS_TRUSTED)
        + _utf(f"authority-{number}")
        + struct.pack(">q", 0)  # when it was added
        + _utf("X.509")
        + struct.pack(">I", len(one))
        + one
        for number, one in enumerate(der)
    ]
    data = struct.pack(">III", _JKS_MAGIC, _JKS_VERSION, len(entries)) + b"".join(entries)
    seal = JAVA_PASSWORD.encode("utf-16-be") + _JKS_SALT + data
    return data + hashlib.sha1(seal, usedforsecurity=False).digest()


def _utf(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def _der(pem: Path) -> list[bytes]:
    blocks = certificates(pem.read_bytes())
    return [base64.b64decode(b"".join(block.splitlines()[1:-1])) for block in blocks]
