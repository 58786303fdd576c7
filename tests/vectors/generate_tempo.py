"""Writes tempo_session.json: what pytempo, eth_account, eth_abi and viem make of a few transactions and vouchers.

Nothing of this project takes part, so that the file says what others expect. Run from the repository's root, with
Node.js installed: ``python -m tests.vectors.generate_tempo``. It should change nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_utils.crypto import keccak
from pytempo import Call, TempoTransaction

from tests.peers.oracle import Oracle
from tests.unit.methods.samples import (
    ADDRESS,
    KEY,
    OTHER_ADDRESS,
    PAYEE,
    RESERVE,
    SALT,
    TOKEN,
    V1_ESCROW,
    ZERO,
)

TARGET = Path(__file__).with_name("tempo_session.json")
VALID_BEFORE = 1_795_420_025
GAS, MAX_FEE, PRIORITY = 1_000_000, 41_000_000_000, 1_000_000_000
V2_GAS = {"topUp": 500_000, "requestClose": 200_000, "withdraw": 400_000}
V1_GAS = {"open": 2_000_000, "topUp": 800_000, "requestClose": 200_000, "withdraw": 500_000}
TOP_UP = 30_000

Json = dict[str, Any]


class Made(NamedTuple):
    """One transaction, by pytempo and by viem."""

    preimage: bytes
    raw: str


def transaction(
    oracle: Oracle, calls: list[tuple[str, str]], *, chain_id: int, gas: int, sponsored: bool
) -> Made:
    """What both make of it, valid until `VALID_BEFORE`; the two agree, or this fails."""
    theirs = TempoTransaction.create(
        chain_id=chain_id,
        gas_limit=gas,
        max_fee_per_gas=MAX_FEE,
        max_priority_fee_per_gas=PRIORITY,
        nonce_key=2**256 - 1,
        valid_before=VALID_BEFORE,
        fee_token=None if sponsored else TOKEN,
        awaiting_fee_payer=sponsored,
        calls=tuple(Call.create(to=to, data=data) for to, data in calls),
    )
    if sponsored:
        return Made(theirs.encode_for_signing(), preimage_with_signature(theirs))
    request = {
        "chainId": chain_id,
        "gas": str(gas),
        "maxFeePerGas": str(MAX_FEE),
        "maxPriorityFeePerGas": str(PRIORITY),
        "nonceKey": str(2**256 - 1),
        "nonce": 0,
        "validBefore": VALID_BEFORE,
        "calls": [{"to": to, "data": data} for to, data in calls],
        "feeToken": TOKEN,
    }
    raw = oracle.call("signTransaction", privateKey=KEY, transaction=request)
    assert raw == "0x" + theirs.sign(KEY).encode().hex()
    return Made(theirs.encode_for_signing(), raw)


def opening(oracle: Oracle, *, chain_id: int, deposit: int, operator: str, sponsored: bool) -> Json:
    arguments = [PAYEE, operator, TOKEN, deposit, "0x" + SALT.hex(), ZERO]
    signature = "open(address,address,address,uint96,bytes32,address)"
    types = ["address", "address", "address", "uint96", "bytes32", "address"]
    data = "0x" + (keccak(text=signature)[:4] + abi_encode(types, [*arguments[:4], SALT, ZERO])).hex()
    theirs = oracle.call("encodeCall", functionName="open", args=[str(argument) for argument in arguments])
    assert theirs == data
    made = transaction(oracle, [(RESERVE, data)], chain_id=chain_id, gas=GAS, sponsored=sponsored)
    nonce_hash = "0x" + keccak(made.preimage + bytes.fromhex(ADDRESS[2:])).hex()
    assert oracle.call("expiringNonceHash", transaction=made.raw, feePayer=sponsored) == nonce_hash
    descriptor = {
        "payer": ADDRESS,
        "payee": PAYEE,
        "operator": operator,
        "token": TOKEN,
        "salt": "0x" + SALT.hex(),
        "authorizedSigner": ZERO,
        "expiringNonceHash": nonce_hash,
    }
    return {
        "chain_id": chain_id,
        "deposit": deposit,
        "operator": operator,
        "sponsored": sponsored,
        "call": data,
        "signing_payload": "0x" + made.preimage.hex(),
        "transaction": made.raw,
        "transaction_hash": "0x" + keccak(hexstr=made.raw).hex(),
        "descriptor": descriptor,
        "channel_id": oracle.call("channelId", escrow=RESERVE, chainId=chain_id, **descriptor),
    }


def approval(amount: int) -> tuple[str, str]:
    arguments = abi_encode(["address", "uint256"], [V1_ESCROW, amount])
    return TOKEN, "0x" + (keccak(text="approve(address,uint256)")[:4] + arguments).hex()


def v1_opening(oracle: Oracle, *, chain_id: int, deposit: int, signer: str) -> Json:
    arguments = [PAYEE, TOKEN, str(deposit), "0x" + SALT.hex(), signer]
    data = oracle.call("encodeCall", version="v1", functionName="open", args=arguments)
    calls = [approval(deposit), (V1_ESCROW, data)]
    made = transaction(oracle, calls, chain_id=chain_id, gas=V1_GAS["open"], sponsored=False)
    descriptor = {
        "payer": ADDRESS,
        "payee": PAYEE,
        "token": TOKEN,
        "salt": "0x" + SALT.hex(),
        "authorizedSigner": signer,
    }
    return {
        "chain_id": chain_id,
        "deposit": deposit,
        "voucher_signer": ADDRESS if signer == ZERO else signer,
        "transaction": made.raw,
        "transaction_hash": "0x" + keccak(hexstr=made.raw).hex(),
        "descriptor": descriptor,
        "channel_id": oracle.call(
            "channelId", version="v1", escrow=V1_ESCROW, chainId=chain_id, **descriptor
        ),
    }


def on_channel(oracle: Oracle, opened: Json, *, version: str, action: str, sponsored: bool = False) -> Json:
    """A top-up by `TOP_UP`, or a step of a forced close, of a channel that was opened above."""
    who = opened["descriptor"] if version == "v2" else opened["channel_id"]
    args = [who, str(TOP_UP)] if action == "topUp" else [who]
    data = oracle.call("encodeCall", version=version, functionName=action, args=args)
    calls = [(RESERVE if version == "v2" else V1_ESCROW, data)]
    if (version, action) == ("v1", "topUp"):
        calls.insert(0, approval(TOP_UP))
    gas = (V1_GAS if version == "v1" else V2_GAS)[action]
    made = transaction(oracle, calls, chain_id=opened["chain_id"], gas=gas, sponsored=sponsored)
    return {
        "version": version,
        "action": action,
        "sponsored": sponsored,
        "chain_id": opened["chain_id"],
        "channel_id": opened["channel_id"],
        "descriptor": opened["descriptor"],
        "amount": TOP_UP if action == "topUp" else 0,
        "transaction": made.raw,
        "transaction_hash": "0x" + keccak(hexstr=made.raw).hex(),
    }


def preimage_with_signature(transaction: TempoTransaction) -> str:
    """A sponsored handoff: the signing payload with the signature as one more field, as the draft says.

    pytempo leaves the placeholder out of its own `encode`, and viem writes the sender in its place.
    """
    import rlp

    payload = transaction.encode_for_signing()
    signature = transaction.sign(KEY).sender_signature
    assert signature is not None
    fields = rlp.encode([*rlp.decode(payload[1:]), signature.to_bytes()])
    return f"0x76{fields.hex()}"


def voucher(oracle: Oracle, *, version: str, chain_id: int, escrow: str, amount: int) -> Json:
    channel_id = "0x" + keccak(text=f"{version}/{chain_id}").hex()
    name, bits = {"v1": ("Tempo Stream Channel", 128), "v2": ("TIP20 Channel Reserve", 96)}[version]
    signed = Account.sign_typed_data(
        KEY,
        {"name": name, "version": "1", "chainId": chain_id, "verifyingContract": escrow},
        {
            "Voucher": [
                {"name": "channelId", "type": "bytes32"},
                {"name": "cumulativeAmount", "type": f"uint{bits}"},
            ]
        },
        {"channelId": bytes.fromhex(channel_id[2:]), "cumulativeAmount": amount},
    )
    fields = {
        "version": version,
        "chainId": chain_id,
        "escrow": escrow,
        "channelId": channel_id,
        "cumulativeAmount": str(amount),
    }
    digest, signature = "0x" + signed.message_hash.hex(), "0x" + signed.signature.hex()
    assert oracle.call("voucherDigest", **fields) == digest
    assert oracle.call("verifyVoucher", **fields, signature=signature, signer=ADDRESS) is True
    return {**fields, "digest": digest, "signature": signature}


def generate() -> Json:
    with Oracle() as oracle:
        openings = [
            opening(oracle, chain_id=42431, deposit=50_000, operator=ZERO, sponsored=False),
            opening(oracle, chain_id=42431, deposit=50_000, operator=ZERO, sponsored=True),
            opening(oracle, chain_id=4217, deposit=2**96 - 1, operator=OTHER_ADDRESS, sponsored=False),
            opening(oracle, chain_id=4217, deposit=1, operator=OTHER_ADDRESS, sponsored=True),
        ]
        v1_openings = [
            v1_opening(oracle, chain_id=42431, deposit=50_000, signer=ZERO),
            v1_opening(oracle, chain_id=4217, deposit=2**128 - 1, signer=ZERO),
            v1_opening(oracle, chain_id=4217, deposit=1, signer=OTHER_ADDRESS),
        ]
        return {
            "key": KEY,
            "payer": ADDRESS,
            "payee": PAYEE,
            "token": TOKEN,
            "escrow": RESERVE,
            "v1_escrow": V1_ESCROW,
            "salt": "0x" + SALT.hex(),
            "valid_before": VALID_BEFORE,
            "gas_limit": GAS,
            "max_fee_per_gas": MAX_FEE,
            "max_priority_fee_per_gas": PRIORITY,
            "openings": openings,
            "v1_openings": v1_openings,
            "on_channels": [
                on_channel(oracle, opened, version=version, action=action, sponsored=sponsored)
                for version, opened in (("v2", openings[0]), ("v1", v1_openings[0]))
                for action, sponsored in (
                    ("topUp", False),
                    ("topUp", True),
                    ("requestClose", False),
                    ("withdraw", False),
                )
            ],
            "vouchers": [
                voucher(oracle, version=version, chain_id=chain_id, escrow=escrow, amount=amount)
                for version, escrow, largest in (
                    ("v2", RESERVE, 2**96 - 1),
                    ("v1", "0x33b901018174ddabe4841042ab76ba85d4e24f25", 2**128 - 1),
                )
                for chain_id, amount in ((42431, 1), (4217, 10_000), (4217, largest))
            ],
        }


if __name__ == "__main__":
    TARGET.write_text(json.dumps(generate(), indent=1) + "\n")
