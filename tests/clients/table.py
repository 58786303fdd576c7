"""The client matrix as data: what is run, what it shows, and what its user has to know."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROGRAMS: Final = Path(__file__).with_name("programs")
MODULES: Final = Path(__file__).resolve().parents[1] / "peers" / "node_modules"
GET: Final = (sys.executable, str(PROGRAMS / "get.py"))


@dataclass(frozen=True)
class Client:
    """One row. `{url}` is a paid address on the server, `{base}` the server, `{scratch}` an empty folder."""

    name: str
    command: tuple[str, ...]
    version: tuple[str, ...]  # the command that tells it
    package: str = ""  # what to install, where it is not a Python or npm package of the tests
    shows: str = '"ok":true'  # in its output, once it was paid for
    paid: int = 1  # requests that were paid for
    note: str = ""
    quick: bool = True

    @property
    def tool(self) -> str:
        return self.command[0]


def python(library: str, distribution: str, note: str = "") -> Client:
    return Client(
        name=f"Python: {library}",
        command=(*GET, library, "{url}"),
        version=(
            sys.executable,
            "-c",
            f"from importlib.metadata import version; print(version('{distribution}'))",
        ),
        note=note,
    )


def perl(module: str, code: str, note: str = "") -> Client:
    return Client(
        name=f"Perl: {module}",
        command=("perl", "-e", code, "{url}"),
        version=("perl", f"-M{module}", "-e", f"print ${module}::VERSION"),
        package="perl, libio-socket-ssl-perl, libwww-perl",
        note=note,
    )


CLIENTS: Final[Sequence[Client]] = (
    Client("curl", ("curl", "-sS", "{url}"), ("curl", "--version"), "curl"),
    Client("wget", ("wget", "-q", "-O", "-", "{url}"), ("wget", "--version"), "wget"),
    Client(
        "git clone",
        (
            "sh",
            "-c",
            "git clone -q {base}/files/repository.git {scratch}/clone && cat {scratch}/clone/paid.txt",
        ),
        ("git", "--version"),
        "git",
        shows="content that was paid for",
        paid=5,
        note="each file of the repository is paid for (a static one, over git's plain HTTP protocol)",
    ),
    Client(
        "Python: urllib",
        (*GET, "urllib", "{url}"),
        (sys.executable, "--version"),
    ),
    python("requests", "requests"),
    python("httpx", "httpx"),
    python("httpx-async", "httpx"),
    python("aiohttp", "aiohttp", "the session needs `trust_env=True`, else it looks at no variable"),
    Client(
        "Python: openai, streaming",
        (sys.executable, str(PROGRAMS / "chat.py"), "{base}/v1"),
        (sys.executable, "-c", "import openai; print(openai.__version__)"),
        shows="tok0tok1tok2",
    ),
    Client(
        "Node: fetch",
        (
            "node",
            "-e",
            "fetch(process.argv[1]).then(r => r.text()).then(t => process.stdout.write(t))",
            "{url}",
        ),
        ("node", "--version"),
        "nodejs 20",
        note="by a preload in NODE_OPTIONS; from 22.21 and 24.5 on Node does it by itself",
    ),
    Client(
        "Node: axios",
        ("node", str(PROGRAMS / "axios.cjs"), str(MODULES), "{url}"),
        ("node", "-p", f"require('{MODULES}/axios/package.json').version"),
        "nodejs 20",
    ),
    Client(
        "Java: HttpClient",
        ("java", str(PROGRAMS / "Get.java"), "{url}"),
        ("java", "--version"),
        "default-jdk",
        quick=False,
        note="by JAVA_TOOL_OPTIONS, which the JVM announces on stderr",
    ),
    perl(
        "HTTP::Tiny",
        "use HTTP::Tiny; print HTTP::Tiny->new(verify_SSL => 1)->get($ARGV[0])->{content}",
        "without `verify_SSL => 1` older versions trust everyone",
    ),
    perl("LWP::UserAgent", "use LWP::UserAgent; print LWP::UserAgent->new->get($ARGV[0])->content"),
    Client(
        "Chromium",
        ("sh", str(PROGRAMS / "chromium.sh"), "{base}/files/page.html", "{scratch}"),
        ("chromium", "--version"),
        "chromium, libnss3-tools",
        shows="the script was paid for",
        paid=3,
        quick=False,
        note="has a certificate store of its own: `certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n bursar -i"
        " ~/.bursar/ca/mitmproxy-ca-cert.pem`; it never proxies loopback unless told so",
    ),
)
