"""A whole paying world on one machine: a Tempo chain, an unmodified mppx server, and funded accounts.

As a library:

    with Devnet() as net:
        net.fund("0x…", 5_000_000)          # base units (6 decimals): 5 pathUSD
        requests.get(net.http + "/req")     # 402: a tempo/session challenge
        net.channels()                      # the seller's books

As a program, `python -m tests.peers.devnet` prints one JSON line and stays until Ctrl-C or SIGTERM.

Needs Node.js 20 or newer; everything else comes from npm and is installed on first use. Every port is a free one,
so that any number of devnets can run at the same time. All children end when this process ends, however it ends:
they hold the other end of a pipe.
"""

from __future__ import annotations

import argparse
import fcntl
import ipaddress
import json
import os
import platform
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from eth_abi.abi import encode as abi_encode
from eth_keys.datatypes import PrivateKey

from .chain import BANK, PATH_USD, RESERVE_ADDRESS, V1_ESCROW_ADDRESS, RpcClient

PEERS = Path(__file__).resolve().parent
OLDEST_NODE = 20

Json = dict[str, Any]


@dataclass(frozen=True)
class Account:
    """A key pair of the well-known development mnemonic."""

    address: str
    private_key: str


#: The first accounts of anvil's development mnemonic, each with 2**64 - 1 base units of pathUSD (0, 3 and 4 among
#: them). The server uses 1 as payee and 2 as fee payer; 9 is where `Devnet.fund` takes its money from.
PAYER = Account(
    "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266",
    "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80",
)
PAYEE = Account(
    "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
    "0x59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d",
)
OTHER_PAYER = Account(
    "0x90F79bf6EB2c4f870365E785982E1f101E93b906",
    "0x7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6",
)

#: Tempo's fee manager: fees are TIP-20 transfers to it.
_FEE_MANAGER = "0xfeec000000000000000000000000000000000000"
_TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"

_SELECTOR_TRANSFER = "a9059cbb"  # transfer(address,uint256)
_SELECTOR_BALANCE_OF = "70a08231"  # balanceOf(address)


def _topic(address: str) -> str:
    return "0x" + address[2:].lower().rjust(64, "0")


class DevnetError(Exception):
    """The testbed could not be set up; the message says what to do."""


# ---------------------------------------------------------------------- installing


def find_node() -> str:
    """The path of a Node.js that is new enough."""
    node = shutil.which(os.environ.get("NODE", "node"))
    if node is None:
        raise DevnetError(
            f"The testbed needs Node.js {OLDEST_NODE} or newer, and there is no `node` on the PATH."
        )
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").split(".")[0]) < OLDEST_NODE:
        raise DevnetError(f"The testbed needs Node.js {OLDEST_NODE} or newer; {node} is {version}.")
    return node


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Lets one process at a time past."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def install() -> None:
    """Installs the locked npm packages, unless they are there already."""
    installed, lock = PEERS / "node_modules" / ".package-lock.json", PEERS / "package-lock.json"

    def is_current() -> bool:
        return installed.exists() and installed.stat().st_mtime >= lock.stat().st_mtime

    if is_current():
        return
    build = PEERS / ".build"
    build.mkdir(exist_ok=True)
    with _file_lock(build / "install.lock"):
        if is_current():  # another process did it while this one waited
            return
        npm = shutil.which("npm")
        if npm is None:
            raise DevnetError("The testbed needs npm (it comes with Node.js) to install its packages.")
        result = subprocess.run(
            [npm, "ci", "--no-progress"], cwd=PEERS, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise DevnetError(f"`npm ci` in {PEERS} failed:\n{result.stdout}\n{result.stderr}")
        # npm keeps the time stamp of what it installed from; make "newer than the lock" true.
        installed.touch()


def find_anvil() -> Path:
    """The anvil binary of the installed npm package for this platform, or $ANVIL."""
    if "ANVIL" in os.environ:
        return Path(os.environ["ANVIL"])
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}.get(
        platform.machine().lower(), platform.machine()
    )
    package = f"anvil-{platform.system().lower()}-{machine}"
    anvil = PEERS / "node_modules" / "@foundry-rs" / package / "bin" / "anvil"
    if not anvil.exists():
        raise DevnetError(
            f"There is no anvil for this platform: @foundry-rs/{package} is not installed. "
            "Set ANVIL to the path of an anvil 1.7 binary."
        )
    return anvil


def compile_contracts(*names: str) -> list[Path]:
    """Compiles contracts (once per state of their sources) and returns the artefacts' paths."""
    command = [find_node(), str(PEERS / "compile.mjs"), *names]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise DevnetError(f"Compiling {', '.join(names)} failed:\n{result.stderr}")
    return [Path(json.loads(line)["artifact"]) for line in result.stdout.splitlines()]


def write_tls_files(folder: Path) -> tuple[Path, Path, Path]:
    """Makes a CA and a certificate for localhost; returns the paths of CA, certificate and key."""
    now = datetime.now(UTC)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("test CA"))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    authority_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    ca = (
        builder("test CA", ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
        )
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    certificate = (
        builder("localhost", key.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(authority_id, critical=False)
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    paths = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    paths[0].write_bytes(ca.public_bytes(pem))
    paths[1].write_bytes(certificate.public_bytes(pem))
    paths[2].write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


# ---------------------------------------------------------------------- running


def _environment() -> dict[str, str]:
    """This process's environment without proxy settings: the testbed talks to itself directly."""
    unwanted = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "node_use_env_proxy"}
    return {name: value for name, value in os.environ.items() if name.lower() not in unwanted}


class Child:
    """A subprocess that prints one JSON line when it is ready, and ends when its standard input does."""

    def __init__(self, command: list[str], log: Path, cwd: Path, seconds: float = 30.0) -> None:
        self._log_path = log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # a Ctrl-C is for us: the children go when we let them
            )
        assert self.process.stdout is not None
        watchdog = threading.Timer(seconds, self.process.kill)
        watchdog.start()
        line = self.process.stdout.readline()
        watchdog.cancel()
        if not line:
            self.process.wait()
            raise DevnetError(
                f"{command[:3]} did not start (status {self.process.returncode}):\n{self.log()}"
            )
        self.ready: Json = json.loads(line)

    def log(self) -> str:
        """What the child wrote to standard error."""
        return self._log_path.read_text()

    def stop(self) -> None:
        """Ends the child: by closing its standard input, or by force."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def _get_json(url: str) -> Any:
    # Never through a proxy, whatever the environment says.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=30) as answer:
        return json.load(answer)


@dataclass(frozen=True)
class Seller:
    """A running server.mjs: its addresses, and its books. Amounts are decimal strings of base units."""

    http: str
    https: str
    admin_url: str
    payee: str

    def admin(self, action: str, **parameters: object) -> Any:
        """Calls the admin listener: stats, log, reset, channels, settle, forget, rotate, terms, clock."""
        return _get_json(f"{self.admin_url}/{action}?{urlencode(parameters)}")

    def channels(self) -> list[Json]:
        """Every channel that the seller knows."""
        channels: list[Json] = self.admin("channels")
        return channels

    def channel(self, channel_id: str) -> Json:
        """One channel: deposit, spent, accepted, settled, finalized and more."""
        for channel in self.channels():
            if channel["channelId"] == channel_id.lower():
                return channel
        raise KeyError(channel_id)

    def stats(self, route: str) -> Json:
        """What was received on a route: total, withCredential, actions, charges, sent402, statuses."""
        stats: Json = self.admin("stats")["routes"].get(route, {})
        return stats


class Devnet:
    """A running testbed. `server_options` are options of server.mjs, such as {"expires-seconds": 5}."""

    def __init__(
        self,
        server_options: Mapping[str, object] | None = None,
        chain_id: int = 42431,
        token: str = PATH_USD,
    ) -> None:
        self.chain_id = chain_id
        self.token = token
        self.escrow = RESERVE_ADDRESS
        self.v1_escrow = V1_ESCROW_ADDRESS
        self.payer = PAYER
        self.payee = PAYEE
        self.other_payer = OTHER_PAYER
        self._server_options = dict(server_options or {})
        self._children: list[Child] = []
        self._sellers: list[Seller] = []
        self._processes: dict[Seller, Child] = {}
        #: How far `warp` has put the chain's clock ahead of the machine's, in seconds.
        self.clock_ahead = 0
        #: Set by `start`: the RPC URL (any path will do; faults can be limited to one) and the one of the anvil
        #: behind it, the seller, the CA file that signed its certificate, the folder with the logs.
        self.rpc_url = ""
        self.anvil_url = ""
        self.seller = Seller("", "", "", "")
        self.ca = self._certificate = self._key = Path()
        self.folder = Path()

    # ------------------------------------------------------------ life

    def start(self) -> Devnet:
        """Installs, compiles and starts everything."""
        find_node()
        install()
        reserve, v1_escrow = compile_contracts("TempoChannelReserve", "TempoStreamChannel")
        self.folder = Path(tempfile.mkdtemp(prefix="devnet-"))
        try:
            self.ca, self._certificate, self._key = write_tls_files(self.folder)
            chain_command = [sys.executable, "-m", f"{__package__}.chain"]
            chain_command += ["--anvil", str(find_anvil()), "--artifact", str(reserve)]
            chain_command += ["--contract", f"{self.v1_escrow}={v1_escrow}"]
            chain_command += ["--chain-id", str(self.chain_id), "--log", str(self.folder / "anvil.log")]
            chain = self._spawn("chain", chain_command)
            self.rpc_url, self.anvil_url = chain["rpc"], chain["anvil"]
            self._rpc = RpcClient(f"{self.rpc_url}/tests")
            self.seller = self.start_server(self._server_options)
        except BaseException:
            self.stop()
            raise
        return self

    def start_server(self, options: Mapping[str, object], name: str = "server") -> Seller:
        """Starts a (further) seller on the same chain; `{"protocol": "v1"}` makes it sell over v1 sessions.

        Its RPC calls go to the URL path /`name`.
        """
        command = [find_node(), str(PEERS / "server.mjs"), "--rpc", f"{self.rpc_url}/{name}"]
        command += ["--chain-id", str(self.chain_id), "--currency", self.token]
        command += ["--tls-cert", str(self._certificate), "--tls-key", str(self._key)]
        command += ["--clock-ahead", str(self.clock_ahead)]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        ready = self._spawn(name, command)
        seller = Seller(ready["http"], ready["https"], ready["admin"], ready["payee"])
        self._sellers.append(seller)
        self._processes[seller] = self._children[-1]
        return seller

    def stop_server(self, seller: Seller) -> None:
        """A seller that is gone for good."""
        self._sellers.remove(seller)
        child = self._processes.pop(seller)
        self._children.remove(child)
        child.stop()

    def _spawn(self, name: str, command: list[str]) -> Json:
        # The repository's root when run from there: `-m` has to find this package again.
        root = PEERS.parents[__package__.count(".")]
        child = Child(command, self.folder / f"{name}.log", root)
        self._children.append(child)
        return child.ready

    def stop(self) -> None:
        """Ends everything and removes the folder with the logs, unless DEVNET_KEEP is set."""
        while self._children:
            self._children.pop().stop()
        if self.folder != Path() and "DEVNET_KEEP" not in os.environ:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Devnet:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def describe(self) -> Json:
        """The JSON line that the program prints."""
        return {
            "rpc": self.rpc_url,
            "anvil": self.anvil_url,
            "chainId": self.chain_id,
            "token": self.token,
            "escrow": self.escrow,
            "payee": self.payee.address,
            "payer": {"address": self.payer.address, "privateKey": self.payer.private_key},
            "http": self.http,
            "https": self.https,
            "ca": str(self.ca),
            "admin": self.seller.admin_url,
            "logs": str(self.folder),
        }

    # ------------------------------------------------------------ chain

    def rpc(self, method: str, *params: object) -> Any:
        """Calls a JSON-RPC method (on the path /tests, so that faults can leave it alone); raises RpcError."""
        return self._rpc.call(method, *params)

    def balance(self, address: str, token: str | None = None, block: str = "latest") -> int:
        """A token balance in base units."""
        data = "0x" + _SELECTOR_BALANCE_OF + abi_encode(["address"], [address]).hex()
        return int(self.rpc("eth_call", {"to": token or self.token, "data": data}, block), 16)

    def fees(self, address: str, since_block: int = 0, token: str | None = None) -> int:
        """What an address has paid for gas in a token, in base units.

        A transaction that names no fee token is paid for in another stablecoin: the seller's are.
        """
        topics = [_TRANSFER_TOPIC, _topic(address), _topic(_FEE_MANAGER)]
        query = {"fromBlock": hex(since_block), "address": token or self.token, "topics": topics}
        return sum(int(log["data"], 16) for log in self.rpc("eth_getLogs", query))

    def block_number(self) -> int:
        """The latest block's number."""
        return int(self.rpc("eth_blockNumber"), 16)

    def fund(self, address: str, amount: int, token: str | None = None) -> None:
        """Transfers `amount` base units to an address, from a development account."""
        data = "0x" + _SELECTOR_TRANSFER + abi_encode(["address", "uint256"], [address, amount]).hex()
        request = {"from": BANK, "to": token or self.token, "data": data}
        receipt = self.receipt(self.rpc("eth_sendTransaction", request))
        if receipt["status"] != "0x1":
            raise DevnetError(f"funding {address} with {amount} failed: {receipt}")

    def new_account(self, amount: int = 0) -> Account:
        """A fresh key pair, with `amount` base units: no development account's endless balance."""
        key = PrivateKey(secrets.token_bytes(32))
        account = Account(key.public_key.to_checksum_address(), key.to_hex())
        if amount:
            self.fund(account.address, amount)
        return account

    def receipt(self, transaction_hash: str, seconds: float = 10.0) -> Json:
        """A transaction's receipt; waits for it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            receipt: Json | None = self.rpc("eth_getTransactionReceipt", transaction_hash)
            if receipt is not None:
                return receipt
            time.sleep(0.01)
        raise TimeoutError(f"{transaction_hash} was not mined within {seconds} s")

    def now(self) -> int:
        """The latest block's time: after `warp` it is ahead of the machine's clock."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def warp(self, seconds: int) -> None:
        """Moves the chain's clock forward and mines a block; the seller's clock moves along.

        A client has to sign its transactions by the chain's time from then on: one that goes by the machine's
        clock signs transactions that have expired.
        """
        self.rpc("evm_increaseTime", seconds)
        self.rpc("evm_mine")
        self.clock_ahead += seconds
        for seller in self._sellers:
            seller.admin("clock", ahead=self.clock_ahead)

    def fault(self, method: str, mode: str, **options: object) -> None:
        """Makes calls of an RPC method fail; see chain.py for the modes and options."""
        self.rpc("devnet_setFault", {"method": method, "mode": mode, **options})

    def clear_faults(self) -> None:
        """Ends all faults, and lets go of calls that hang."""
        self.rpc("devnet_clearFaults")

    def rpc_calls(self, path: str | None = None) -> dict[str, int]:
        """How often each RPC method was called (on the URL path `path`)."""
        counts: dict[str, int] = self.rpc("devnet_calls", {"path": path})
        return counts

    # ------------------------------------------------------------ the seller's books

    @property
    def http(self) -> str:
        """The seller's plain address."""
        return self.seller.http

    @property
    def https(self) -> str:
        """The seller's TLS address; see `ca`."""
        return self.seller.https

    def admin(self, action: str, **parameters: object) -> Any:
        """See Seller."""
        return self.seller.admin(action, **parameters)

    def channels(self) -> list[Json]:
        """See Seller."""
        return self.seller.channels()

    def channel(self, channel_id: str) -> Json:
        """See Seller."""
        return self.seller.channel(channel_id)

    def stats(self, route: str) -> Json:
        """See Seller."""
        return self.seller.stats(route)

    def ssl_context(self) -> ssl.SSLContext:
        """A client context that trusts the seller's certificate."""
        return ssl.create_default_context(cafile=str(self.ca))


def main(arguments: list[str] | None = None) -> int:
    """Runs a testbed until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="A Tempo chain and an mppx server for tests.")
    parser.add_argument(
        "--server-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of server.mjs, such as expires-seconds=5",
    )
    parser.add_argument("--chain-id", type=int, default=42431)
    options = parser.parse_args(arguments)
    server_options = dict(item.split("=", 1) for item in options.server_option)

    def stop(number: int, frame: object) -> None:
        # Once is enough: a second signal must not interrupt the cleaning up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        with Devnet(server_options, options.chain_id) as net:
            print(json.dumps(net.describe()), flush=True)
            signal.pause()
    except DevnetError as problem:
        print(problem, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
