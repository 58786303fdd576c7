from __future__ import annotations

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy_addon.methods.abi import to_hex
from proxy_addon.methods.tempo_session.voucher import CODECS, V1, V2, VoucherCodec
from proxy_addon.signer import Signer
from tests.unit.methods.samples import channel, scope

CHAINS = st.integers(1, 2**53 - 1)
BYTES20 = st.binary(min_size=20, max_size=20).map(to_hex)
BYTES32 = st.binary(min_size=32, max_size=32).map(to_hex)
KEYS = st.integers(1, 2**255).map(lambda number: number.to_bytes(32, "big"))


@pytest.mark.parametrize("version", ["v1", "v2"])
@settings(max_examples=60, deadline=None)
@given(key=KEYS, chain=CHAINS, escrow=BYTES20, channel_id=BYTES32, data=st.data())
def test_a_signature_is_the_one_of_eth_account(
    version: str, key: bytes, chain: int, escrow: str, channel_id: str, data: st.DataObject
) -> None:
    codec = CODECS["tempo-session", version]
    amount = data.draw(st.integers(1, codec.limit))
    signer = Signer(key)
    record = channel(
        channel_id=channel_id,
        scope=scope(
            version=version,
            chain=f"eip155:{chain}",
            escrow=escrow,
            payer=signer.address,
            voucher_signer=signer.address,
        ),
        authorised=amount,
        deposit=amount,
    )
    digest = codec.digest_for(record, amount)
    theirs = Account.sign_typed_data(
        key,
        {"name": codec.domain_name, "version": "1", "chainId": chain, "verifyingContract": escrow},
        {
            "Voucher": [
                {"name": "channelId", "type": "bytes32"},
                {"name": "cumulativeAmount", "type": f"uint{codec.amount_bits}"},
            ]
        },
        {"channelId": bytes.fromhex(channel_id[2:]), "cumulativeAmount": amount},
    )
    assert digest == theirs.message_hash
    assert signer.sign_voucher(digest, record, amount) == theirs.signature


@pytest.mark.parametrize("codec", [V1, V2])
def test_an_amount_outside_the_type_has_no_digest(codec: VoucherCodec) -> None:
    record = channel()
    for amount in (-1, codec.limit + 1):
        with pytest.raises(ValueError, match=f"uint{codec.amount_bits}"):
            codec.digest_for(record, amount)
    codec.digest_for(record, codec.limit)


def test_a_voucher_of_one_chain_escrow_channel_or_version_is_no_other() -> None:
    records = [
        channel(),
        channel(channel_id="0x" + "c2" * 32),
        channel(scope=scope(chain="eip155:4217")),
        channel(scope=scope(escrow="0x" + "4e" * 20)),
    ]
    digests = {codec.digest_for(record, 1) for record in records for codec in (V1, V2)}
    assert len(digests) == 8
