from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from account_tax.errors import Refused
from account_tax.ledger.dates import cut_by_days, read_days


def days_of(texts: list[str], order: str | None = None) -> list[str]:
    days, _ = read_days(pd.Series(texts, dtype="str"), order)
    return ["" if pd.isna(day) else f"{day:%Y-%m-%d}" for day in days]


@pytest.mark.parametrize(
    "text",
    [
        *("2024-01-31", "2024-1-31", "2024/01/31", "2024.01.31", "2024. 1. 31.", "20240131"),
        *("2024년 1월 31일", "2024년1월31일", "2024-01-31(수)", "2024年1月31日", "31.01.2024"),
        *("31.1.2024", "31-Jan-2024", "31 Jan 2024", "31JAN2024", "31-Jan-24"),
        *("Jan 31, 2024", "January 31, 2024", "31 January 2024", "20240131101500", "20240131.0"),
        *("2024-01-31 10:15:00", "2024-01-31T10:15:00+09:00", "2024-01-31 오후 3:15"),
        *("2024-01-31T00:00:00.000Z", "45322", "45322.4375"),
    ],
)
def test_a_date_of_one_meaning_is_read_as_it_stands(text):
    assert days_of([text]) == ["2024-01-31"]


def test_a_slip_of_the_pen_decides_no_order():
    texts = [f"{day:02d}.{month:02d}.24" for day in range(1, 29) for month in range(1, 4)]
    with pytest.raises(Refused, match="81 different dates can be read as ymd or dmy"):
        days_of([*texts, "31.02.24"])
    assert days_of([*texts, "31.02.24"], "dmy")[-2:] == ["2024-03-28", ""]


@pytest.mark.parametrize(
    ("texts", "days", "order"),
    [
        (["01/31/2024", "02/01/2024"], ["2024-01-31", "2024-02-01"], "mdy"),
        (["31/01/2024", "02/01/2024"], ["2024-01-31", "2024-01-02"], "dmy"),
        (["31-01-98", "02-01-98"], ["1998-01-31", "1998-01-02"], "dmy"),
        (["98.01.31", "98.02.28"], ["1998-01-31", "1998-02-28"], "ymd"),
        (["31012024", "02012024"], ["2024-01-31", "2024-01-02"], "dmy"),
        (["05/05/2024", "06/06/2024"], ["2024-05-05", "2024-06-06"], "dmy"),  # the same either way
        (["2024-01-31", "2024-02-01"], ["2024-01-31", "2024-02-01"], None),
    ],
)
def test_the_whole_column_decides_what_stands_first(texts, days, order):
    assert days_of(texts) == days
    assert read_days(pd.Series(texts, dtype="str"), None)[1] == order


def test_what_the_column_leaves_open_is_refused_with_the_key_that_decides():
    with pytest.raises(Refused, match=r"2 different dates can be read as dmy or mdy.*date_order"):
        days_of(["01/02/2024", "03/04/2024", "05/05/2024"])
    assert days_of(["01/02/2024"], "dmy") == ["2024-02-01"]
    assert days_of(["01/02/2024"], "mdy") == ["2024-01-02"]
    with pytest.raises(Refused, match="1 different dates can be read as ymd or dmy"):
        days_of(["24.01.31"])
    assert days_of(["24.01.31"], "ymd") == ["2024-01-31"]


def test_a_column_of_two_orders_is_refused_and_the_key_sets_the_others_aside():
    texts = ["31/01/2024", "30/01/2024", "01/31/2024"]
    with pytest.raises(Refused, match=r"2 only as dmy and 1 only as mdy .*date_order"):
        days_of(texts)
    assert days_of(texts, "dmy") == ["2024-01-31", "2024-01-30", ""]


@pytest.mark.parametrize(
    "text", ["", "soon", "2024-13-01", "2024-02-30", "0024-01-31", "3024-01-31", "1234", "811000"]
)
def test_what_is_no_date_is_none(text):
    assert days_of([text, "2024-01-31"]) == ["", "2024-01-31"]


def split_days(rows: list[int], train: float = 0.8, validation: float = 0.1) -> list[list[int]]:
    """Return the days in each split, of so many rows on each day."""
    days = np.repeat(np.arange(len(rows)), rows)
    order = np.random.RandomState(0).permutation(len(days))
    drawn = cut_by_days(days[order], {"train": train, "validation": validation, "test": 0.1})
    return [sorted(set(days[order][drawn == split])) for split in range(3)]


def test_train_is_before_validation_and_validation_before_test():
    assert split_days([10] * 10) == [list(range(8)), [8], [9]]


@pytest.mark.parametrize("rows", [[1, 1, 1], [100, 1, 1], [1, 1, 100], [1, 100, 1], [5] * 40])
@pytest.mark.parametrize("train", [0.98, 0.8, 0.1])
def test_no_day_is_in_two_splits_and_no_split_is_empty(rows, train):
    found = split_days(rows, train, (1 - train) / 2)
    assert all(found)
    assert [day for part in found for day in part] == list(range(len(rows)))


def test_fewer_days_than_splits_are_refused():
    with pytest.raises(Refused, match="2 different days"):
        split_days([50, 50])
