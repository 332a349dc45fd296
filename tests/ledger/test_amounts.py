from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from account_tax.ledger.amounts import read_amounts


def amounts_of(*texts: str) -> list[float]:
    return read_amounts(pd.Series(texts, dtype="str"))[0].tolist()


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        *[("1234", 1234), ("1,234.56", 1234.56), ("1.234,56", 1234.56), ("1 234,56", 1234.56)],
        *[("1'234.50", 1234.5), ("12,5", 12.5), ("0.500", 0.5), ("1,234,567", 1234567)],
        *[("-12.30", -12.3), ("12.30-", -12.3), ("(1,234.50)", -1234.5), ("−7", -7), ("+7", 7)],
        *[("△1,234,000", -1234000), ("▲5", -5), ("$12.30", 12.3), ("-$12.30", -12.3)],
        *[("12,30 €", 12.3), ("₩1,200,000", 1200000), ("￦１２０", 120), ("5,000,000원", 5000000)],
        *[("USD 12.30", 12.3), ("12.30 EUR", 12.3), ("3만", 30000), ("1.5억", 150000000)],
        *[("1억 2,000만원", 120000000), ("3만 5천원", 35000), ("2만500", 20500), (".5", 0.5)],
        *[("5천만", 50000000), ("1억 2천만원", 120000000), ("3백만", 3000000)],
        *[("(₩3,000,000)", -3000000), ("\\5,000.00", 5000), ("(△5,000)", -5000), ("(-7)", -7)],
        *[
            ("3천5백원", 3500),
            ("1조 2억", 1000200000000),
            ("2천백만", math.nan),
            ("3백만", 3000000),
        ],
        *[("5,000,000원정", 5000000), ("일금 5,000,000원정", 5000000), ("금5만원", 50000)],
        *[("5'000.-", 5000), ("50,--", 50), ("CHF 5.–", 5), ("정", math.nan), ("금", math.nan)],
    ],
)
def test_an_amount_of_one_meaning_is_read_as_it_stands(text, amount):
    assert amounts_of(text) == [pytest.approx(amount, nan_ok=True)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "free",
        "12%",
        "12 34",
        "1,23,456.7",
        "5만천만",
        "만",
        "3천2만",
        "1.2.3",
        "--5",
        "1e5",
        "CR 100",
        "DR100.00",
        "9" * 400,
        "2024-01-31",
    ],
)
def test_what_is_no_amount_is_none(text):
    assert math.isnan(amounts_of(text)[0])


def test_the_whole_column_decides_whether_a_comma_is_for_thousands():
    assert amounts_of("1,234", "5.25") == [1234, 5.25]
    assert amounts_of("1,234", "5,25") == [1.234, 5.25]
    assert amounts_of("1.234", "5,25") == [1234, 5.25]
    assert amounts_of("1.234", "5.25") == [1.234, 5.25]
    assert amounts_of("1,234", "20,000") == [1234, 20000]  # nothing speaks of decimals
    assert amounts_of("1,234", "20,0001") == [1234, 20.0001]  # a slip, which shows nothing
    # three decimals: no group of thousands begins with 0, or follows four digits
    assert amounts_of("0.125", "1.375", "2.625") == [0.125, 1.375, 2.625]
    assert amounts_of("0,234", "1,234", "2,500") == [0.234, 1.234, 2.5]
    assert amounts_of("1375.125", "2.625") == [1375.125, 2.625]
    assert amounts_of("1.234", "1.234.567") == [1234, 1234567]
    np.testing.assert_equal(amounts_of("1,234", "5.25", "5,25"), [math.nan, 5.25, 5.25])


def test_what_was_read_is_said_in_words():
    texts = pd.Series(["1,234.5", "7", "", "soon", "-3"], dtype="str")
    assert (
        read_amounts(texts)[1] == "3 read, 1 not readable, 1 missing; the decimal mark is a point"
    )
    texts = pd.Series(["1,234.5", "1,5", "2,000"], dtype="str")
    assert read_amounts(texts)[1] == (
        "2 read, 1 not readable, 0 missing; points and commas both stand for decimals"
    )
