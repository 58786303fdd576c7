from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from store.amounts import UINT96_MAX, UINT128_MAX, Token, format_units, parse_units, parse_wire

amounts = st.integers(0, UINT128_MAX)
decimal_places = st.integers(0, 24)


@given(amounts)
@example(0)
@example(UINT96_MAX)
@example(UINT128_MAX)
def test_wire_amounts_come_back(amount: int) -> None:
    assert parse_wire(str(amount), "amount") == amount


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1\n",
            "00",
            "01",
            "1.0",
            "1e3",
            "0x10",
            "1_000",
            "one",
            "١٢",
            "²",
            "NaN",
        ),
        *("Infinity", "9" * 40, "1" + "0" * 39, "9" * 10_000, "1\x00"),
        *(1, 0, 1.0, None, True, b"1", ["1"], Decimal(1)),
    ],
)
def test_other_wire_amounts_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="suggestedDeposit") as raised:
        parse_wire(value, "suggestedDeposit")
    assert len(str(raised.value)) < 200


@given(st.text(max_size=45) | st.text("0123456789+-_. ex", max_size=45))
def test_whatever_is_taken_from_the_wire_is_canonical(value: str) -> None:
    try:
        amount = parse_wire(value, "amount")
    except ValueError:
        return
    assert str(amount) == value
    assert 0 <= amount <= UINT128_MAX


@pytest.mark.parametrize("limit", [0, 1, 9, 10, UINT96_MAX, UINT128_MAX])
def test_the_limit_is_the_last_that_is_taken(limit: int) -> None:
    assert parse_wire(str(limit), "deposit", limit=limit) == limit
    with pytest.raises(ValueError, match=f"deposit is {limit + 1}: over {limit}"):
        parse_wire(str(limit + 1), "deposit", limit=limit)


@given(amounts, decimal_places)
@example(UINT128_MAX, 0)
@example(UINT128_MAX, 6)
@example(UINT128_MAX, 18)
@example(1, 24)
@example(10**38, 6)
def test_human_amounts_come_back(amount: int, decimals: int) -> None:
    assert parse_units(format_units(amount, decimals), decimals) == amount


@given(st.integers(-UINT128_MAX, UINT128_MAX), decimal_places)
def test_the_human_form_is_exact(amount: int, decimals: int) -> None:
    assert Fraction(format_units(amount, decimals)) == Fraction(amount, 10**decimals)


@pytest.mark.parametrize(
    ("amount", "decimals", "text"),
    [
        (0, 6, "0.00"),
        (1, 6, "0.000001"),
        (12_340, 6, "0.01234"),
        (100_000, 6, "0.10"),
        (1_000_000, 6, "1.00"),
        (1_234_567, 6, "1.234567"),
        (-1_500_000, 6, "-1.50"),
        (-1, 6, "-0.000001"),
        (5, 0, "5"),
        (-5, 0, "-5"),
        (5, 1, "0.5"),
        (50, 1, "5.0"),
        (5, 2, "0.05"),
        (UINT128_MAX, 6, "340282366920938463463374607431768.211455"),
    ],
)
def test_human_forms(amount: int, decimals: int, text: str) -> None:
    assert format_units(amount, decimals) == text
    assert Token("0x", "USDC", decimals).show(amount) == f"{text} USDC"


@pytest.mark.parametrize(
    ("text", "decimals", "amount"),
    [
        ("0.10", 6, 100_000),
        ("0", 6, 0),
        ("1", 6, 1_000_000),
        ("1.000000", 6, 1_000_000),
        ("1.0000000000", 6, 1_000_000),
        ("00.5", 6, 500_000),
        (" 2.5 ", 6, 2_500_000),
        ("1_000", 0, 1000),
        ("1_000.25", 6, 1_000_250_000),
        ("0.000001", 6, 1),
        (str(UINT128_MAX), 0, UINT128_MAX),
        ("340282366920938463463374607431768.211455", 6, UINT128_MAX),
        ("12345678901234567890123456789.123456", 6, 12345678901234567890123456789123456),
    ],
)
def test_amounts_that_people_write(text: str, decimals: int, amount: int) -> None:
    assert parse_units(text, decimals) == amount


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "_",
            ".",
            "1.",
            ".5",
            "-1",
            "+1",
            "1e3",
            "1E3",
            "0x1",
            "1,5",
            "1 000",
            "NaN",
            "Infinity",
            "∞",
        ),
        *("١", "1.0.0", "$1", "1 USDC", "1\x00", "0.1f"),
        "0.0000001",
        "1.0000001",
        "0.1234567",
        "1." + "0" * 40 + "1",  # more digits than a decimal context carries
        "123456789012345678901234.12345678901234567890",
        "9" * 28 + ".0000001",
        "340282366920938463463374607431768.211456",
        "9" * 40,
        "9" * 10_000,
    ],
)
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"policy\.max_price"):
        parse_units(text, 6, "policy.max_price")


@given(st.text("0123456789._ -+e", max_size=50), decimal_places)
def test_whatever_is_taken_from_people_is_exact(text: str, decimals: int) -> None:
    try:
        amount = parse_units(text, decimals)
    except ValueError:
        return
    assert Fraction(text.strip().replace("_", "")) * 10**decimals == amount
    assert 0 <= amount <= UINT128_MAX


def test_what_fits_the_contracts() -> None:
    """uint96 and uint128 as Solidity has them."""
    assert UINT96_MAX == 79_228_162_514_264_337_593_543_950_335
    assert UINT128_MAX == 340_282_366_920_938_463_463_374_607_431_768_211_455


@pytest.mark.parametrize("digits", [38, 39, 40, 41, 5_000])
def test_an_amount_that_no_channel_can_hold_is_said_to_be_that(digits: int) -> None:
    text = "9" * digits
    if digits == 38:
        assert parse_units(text, 0) == int(text)
        return
    with pytest.raises(ValueError, match=r"policy\.x is '9+': more than a channel can hold"):
        parse_units(text, 0, "policy.x")
