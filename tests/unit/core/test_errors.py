"""A refusal of ours says what it is to the ledger, and why to people."""

from __future__ import annotations

import pytest

from proxy_addon.core.errors import BursarError, LocalRefusal


def test_a_refusal_has_a_word_for_the_ledger_and_a_sentence_for_people() -> None:
    with pytest.raises(BursarError) as raised:
        raise LocalRefusal("over-max-price", "api.example.com asks 0.50 USDC, over max_price 0.10")
    assert isinstance(raised.value, LocalRefusal)
    assert raised.value.reason == "over-max-price"
    assert str(raised.value) == "api.example.com asks 0.50 USDC, over max_price 0.10"
