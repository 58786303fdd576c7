"""A client that pays by hand: one call, one request, with exactly the voucher that the test wants.

It shares no code with bursar: mppx and viem encode and sign everything (see oracle.py). That makes it good for
two things: to pin down what the server does, and to act as a second party (another wallet, an attacker).
Amounts are base units.
"""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .devnet import Account, Devnet
from .oracle import Oracle

ZERO_ADDRESS = "0x" + "00" * 20
_EXPIRING_NONCE_KEY = (1 << 256) - 1
#: A first open needs about 570,000. A sponsor (mppx's default policy) takes no more than 2,000,000, and no more than
#: 0.05 of the fee token for gas limit times maximum price.
_GAS_LIMIT = 900_000
_MAX_FEE_PER_GAS = 50 * 10**9
_VALIDITY_SECONDS = 25


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """The first header field of that name."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    @property
    def challenge(self) -> str:
        """The WWW-Authenticate header."""
        value = self.header("www-authenticate")
        if value is None:
            raise AssertionError(f"no challenge in a {self.status}: {self.body!r}")
        return value

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)

    @property
    def problem(self) -> str:
        """The last parts of the problem type, such as `session/insufficient-balance`; empty if there is none."""
        prefix = "https://paymentauth.org/problems/"
        try:
            kind = str(self.json.get("type", ""))
        except (ValueError, AttributeError):
            return ""
        return kind.removeprefix(prefix)


def send(
    net: Devnet,
    method: str,
    url: str,
    headers: dict[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """Sends a request, without a proxy, and reads the whole answer."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context: ssl.SSLContext = net.ssl_context()
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, timeout=30, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body=body, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


class HandClient:
    """One payer with (after `open`) one channel."""

    def __init__(self, net: Devnet, oracle: Oracle, account: Account | None = None) -> None:
        self.net = net
        self.oracle = oracle
        self.account = account or net.payer
        self.descriptor: dict[str, str] = {}
        self.channel_id = ""

    def ask(self, url: str, method: str = "GET") -> Answer:
        """A request without payment."""
        return send(self.net, method, url)

    def sign_transaction(self, call_data: str, fee_payer: bool = False) -> str:
        """A signed 0x76 transaction with one call to the channel reserve, valid for 25 s."""
        transaction: dict[str, Any] = {
            "chainId": self.net.chain_id,
            "calls": [{"to": self.net.escrow, "data": call_data}],
            "nonceKey": str(_EXPIRING_NONCE_KEY),
            "nonce": 0,
            "validBefore": self.net.now() + _VALIDITY_SECONDS,
            "gas": str(_GAS_LIMIT),
            "maxFeePerGas": str(_MAX_FEE_PER_GAS),
            "maxPriorityFeePerGas": "0",
        }
        if fee_payer:
            transaction["feePayer"] = True
        else:
            transaction["feeToken"] = self.net.token
        signed: str = self.oracle.call(
            "signTransaction", privateKey=self.account.private_key, transaction=transaction
        )
        return signed

    def send_call(self, function: str, *args: object) -> dict[str, Any]:
        """Calls a function of the channel reserve as this account; returns the receipt."""
        data = self.oracle.call("encodeCall", functionName=function, args=list(args))
        transaction = self.sign_transaction(data)
        return self.net.receipt(self.net.rpc("eth_sendRawTransaction", transaction))

    def prepare_open(
        self, challenge: str, deposit: int, fee_payer: bool = False, authorized_signer: str = ZERO_ADDRESS
    ) -> str:
        """Signs an open transaction for a challenge and remembers the channel; returns the transaction."""
        request = self.oracle.call("parseChallenge", header=challenge)["request"]
        operator = request["methodDetails"].get("operator", ZERO_ADDRESS)
        salt = "0x" + secrets.token_hex(32)
        args = [request["recipient"], operator, request["currency"], str(deposit), salt, authorized_signer]
        data = self.oracle.call("encodeCall", functionName="open", args=args)
        transaction = self.sign_transaction(data, fee_payer)
        nonce_hash = self.oracle.call(
            "expiringNonceHash", transaction=transaction, sender=self.account.address, feePayer=fee_payer
        )
        self.descriptor = {
            "payer": self.account.address,
            "payee": request["recipient"],
            "operator": operator,
            "token": request["currency"],
            "salt": salt,
            "authorizedSigner": authorized_signer,
            "expiringNonceHash": nonce_hash,
        }
        self.channel_id = self.oracle.call(
            "channelId", **self.descriptor, escrow=self.net.escrow, chainId=self.net.chain_id
        )
        return transaction

    def sign(self, cumulative: int) -> str:
        """A voucher's signature."""
        signature: str = self.oracle.call(
            "signVoucher",
            privateKey=self.account.private_key,
            escrow=self.net.escrow,
            chainId=self.net.chain_id,
            channelId=self.channel_id,
            cumulativeAmount=str(cumulative),
        )
        return signature

    def credential(self, challenge: str, payload: dict[str, Any]) -> str:
        """An Authorization header."""
        source = f"did:pkh:eip155:{self.net.chain_id}:{self.account.address}"
        header: str = self.oracle.call("credential", challenge=challenge, payload=payload, source=source)
        return header

    def pay(
        self,
        method: str,
        url: str,
        challenge: str,
        payload: dict[str, Any],
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        header: str = "authorization",
    ) -> Answer:
        """Sends a request with a credential."""
        fields = {**(headers or {}), header: self.credential(challenge, payload)}
        return send(self.net, method, url, fields, body)

    def open_payload(self, transaction: str, cumulative: int) -> dict[str, Any]:
        """The payload of an open, for a transaction of `prepare_open`."""
        return {
            "action": "open",
            "type": "transaction",
            "channelId": self.channel_id,
            "transaction": transaction,
            "cumulativeAmount": str(cumulative),
            "signature": self.sign(cumulative),
            "descriptor": self.descriptor,
            "authorizedSigner": self.descriptor["authorizedSigner"],
        }

    def voucher_payload(self, cumulative: int, action: str = "voucher") -> dict[str, Any]:
        """The payload of a voucher or of a close."""
        return {
            "action": action,
            "channelId": self.channel_id,
            "descriptor": self.descriptor,
            "cumulativeAmount": str(cumulative),
            "signature": self.sign(cumulative),
        }

    def open(self, url: str, deposit: int, cumulative: int, method: str = "GET") -> tuple[Answer, str]:
        """Asks for a challenge and answers it with an open; returns the answer and the challenge."""
        challenge = self.ask(url).challenge
        transaction = self.prepare_open(challenge, deposit)
        return self.pay(method, url, challenge, self.open_payload(transaction, cumulative)), challenge

    def voucher(
        self, url: str, challenge: str, cumulative: int, method: str = "GET", body: bytes | None = None
    ) -> Answer:
        """A request with a voucher."""
        return self.pay(method, url, challenge, self.voucher_payload(cumulative), body)

    def top_up(self, url: str, challenge: str, additional_deposit: int) -> Answer:
        """A top-up through the server."""
        args = [self.descriptor, str(additional_deposit)]
        data = self.oracle.call("encodeCall", functionName="topUp", args=args)
        payload = {
            "action": "topUp",
            "type": "transaction",
            "channelId": self.channel_id,
            "transaction": self.sign_transaction(data),
            "descriptor": self.descriptor,
            "additionalDeposit": str(additional_deposit),
        }
        return self.pay("POST", url, challenge, payload)

    def close(self, url: str, challenge: str, cumulative: int) -> Answer:
        """A cooperative close."""
        return self.pay("POST", url, challenge, self.voucher_payload(cumulative, "close"))
