"""Amounts as ledgers write them: signs, currencies, thousands and decimals."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from .dates import ORDERS, read_days

# CR and DR are no currency: which of them is negative, the two sides of a ledger see differently.
# What a cheque or a Swiss bill writes around one goes with it: 일금 5,000원정, 5,000.-
CURRENCY = re.compile(
    r"^(?![CD]R[\W\d])[A-Z]{2,3}(?=\W|\d)|[A-Z]{3}$|[원円元\\]정?|^일?금(?=\W|\d)|[.,][-–—]{1,2}$"
)
SPACE = re.compile(r"(?<=\d)[ '’](?=\d{3}(?!\d))|(?<!\d)\s+|\s+(?!\d)")
SIGN = re.compile(r"(-|△|▲)(.*)|\([-△▲]?(.*)\)|(.*)-|\+?(.*)")  # all but the last of them: negative
UNITS = {"조": 1e12, "억": 1e8, "천만": 1e7, "백만": 1e6, "만": 1e4, "천": 1e3, "백": 1e2}
PART = re.compile(rf"([\d.,]+)({'|'.join(UNITS)}|)")
# A number where a point, or a comma, stands before the decimals.
NUMBERS = {
    "point": re.compile(r"([1-9]\d{0,2}(?:,\d{3})+|\d*)(?:\.(\d+))?"),
    "comma": re.compile(r"([1-9]\d{0,2}(?:\.\d{3})+|\d*)(?:,(\d+))?"),
}
# What a column that shows no decimals leaves open, such as 1,234, has thousands.
READINGS = (*NUMBERS, "thousands")

# What shows which is which: one or two decimals, two marks, or three decimals where no thousands
# would be: 0.125, 1375.125. A slip such as 1,2345 shows nothing.
SHOWS = re.compile(r"\d[.,]\d{1,2}(?!\d)|[.,]\d{3}[.,]|(?<!\d)0[.,]\d|\d{4}[.,]\d{3}(?!\d)")

LOOKED_AT, FEW = 1000, 20  # rows, at most and at least
MOST, MANY = 0.9, 0.2  # share that can be read; share that differs: codes repeat
DATES = (
    "holds dates, of which a model learns single days: take it out of data.text_columns, and name "
    "it as data.time_column"
)
AMOUNTS = (
    "holds numbers such as amounts, each of which is another text: take it out, and name it as "
    "data.amount_column, or write a column of bands (under 100, 100 to 1000)"
)


def read_amounts(texts: Any) -> tuple[np.ndarray, str]:
    """Return each amount, (N,), NaN where it is none, and in words what was read."""
    parsed = parse_amounts(texts)
    counts = count_amounts(parsed)
    reading = choose_reading(counts)
    values = parsed["sure"].fillna(parsed[reading]) if reading else parsed["sure"]
    missing, read = int((texts == "").sum()), int(values.notna().sum())
    unread = f"{len(texts) - read - missing:,} not readable"
    mark = {"thousands": "no decimals", "": "points and commas both stand for decimals"}
    words = mark.get(reading, f"the decimal mark is a {reading}")
    return values.to_numpy(), f"{read:,} read, {unread}, {missing:,} missing; {words}"


def mind_texts(table: pd.DataFrame) -> str:
    """Return what to do about columns of the text that hold dates or amounts, "" for none."""
    said = []
    for name, column in table.head(LOOKED_AT).items():
        texts: Any = column[column != ""]
        if len(texts) < FEW:
            continue
        dated = texts.mask(texts.str.fullmatch(r"\d{5}(\.\d+)?"), "")  # as Excel's dates are, too
        days = max(read_days(dated, order)[0].notna().mean() for order in ORDERS)
        amounts = parse_amounts(texts)[["sure", "point"]].notna().any(axis=1)
        if days >= MOST:
            said.append(f"{name} {DATES}")
        elif amounts.mean() >= MOST and texts.nunique() >= MANY * len(texts):
            said.append(f"{name} {AMOUNTS}")
    return "; ".join(said)


def parse_amounts(texts: Any) -> Any:
    """Return each amount by how it can be read, NaN where it can't.

    One of one meaning is in the column sure. What 1,234 is depends on the others in the column, so
    it is in each of READINGS. `only` says which decimal mark an amount shows.
    """
    places, different = pd.factorize(texts)
    columns = ["sure", *READINGS, "only"]
    frame = pd.DataFrame([_read(text) for text in different], columns=columns)
    return frame.iloc[places].set_axis(texts.index)


def count_amounts(parsed: Any) -> dict[str, int]:
    """Return how many amounts show each decimal mark."""
    return {f"only {mark}": int((parsed["only"] == mark).sum()) for mark in NUMBERS}


def choose_reading(counts: Mapping[str, float]) -> str:
    """Return how to read what could be either, by `count_amounts` of the column; "": not at all."""
    shown = [mark for mark in NUMBERS if counts.get(f"only {mark}")]
    return "" if len(shown) > 1 else (*shown, "thousands")[0]


def sum_amounts(texts: Any, labels: Any) -> dict[str, float]:
    """Return sums of a part of a column by reading and label, and counts; they add up."""
    parsed = parse_amounts(texts)
    either = parsed[["sure", "point"]].notna()
    sums = parsed[["sure", *READINGS]].groupby(labels.to_numpy()).sum()
    return {
        **count_amounts(parsed),
        "unread": int((~either.any(axis=1)).sum()),
        "open": int(either["point"].sum()),
        **{f"{reading} {label}": total for (label, reading), total in sums.stack().items()},
    }


def settle_sums(counts: Mapping[str, float], labels: Sequence[str]) -> tuple[dict[str, float], int]:
    """Return the sum of each label, and how many amounts are in none, of the whole column."""
    reading = choose_reading(counts)
    sums = {
        label: counts.get(f"sure {label}", 0.0) + counts.get(f"{reading} {label}", 0.0)
        for label in labels
    }
    return sums, int(counts.get("unread", 0) + counts.get("open", 0) * (not reading))


def _read(text: str) -> tuple[float, float, float, float, str]:
    point, comma = (_parse(text, number) for number in NUMBERS.values())
    if point == comma or math.isnan(point) or math.isnan(comma):
        mark = "" if math.isnan(point) == math.isnan(comma) else "point"
        mark = "comma" if mark and math.isnan(point) else mark
        mark = mark if SHOWS.search(text) else ""
        sure = comma if math.isnan(point) else point
        return (sure, math.nan, math.nan, math.nan, mark)
    return (math.nan, point, comma, max(point, comma, key=abs), "")


def _parse(text: str, number: re.Pattern[str]) -> float:
    """Return the amount of a text in which numbers are written in one way, NaN for none."""
    plain = unicodedata.normalize("NFKC", text).replace("−", "-").strip()
    plain = "".join(each for each in plain if unicodedata.category(each) != "Sc")
    plain = SPACE.sub("", CURRENCY.sub("", SPACE.sub("", plain)))
    sign = SIGN.fullmatch(plain)
    body = next(filter(None, sign.groups()[1:]), "") if sign else ""
    parts = PART.findall(body)
    units = [UNITS.get(unit, 1.0) for _, unit in parts]
    found = [number.fullmatch(digits) for digits, _ in parts]
    if not parts or not all(found) or "".join(map("".join, parts)) != body:
        return math.nan
    if any(one <= other for one, other in pairwise(units)):
        return math.nan
    values = [float(re.sub(r"\D", "", each[1]) + "." + (each[2] or "0")) for each in found if each]
    amount = sum(value * unit for value, unit in zip(values, units, strict=True))
    if math.isinf(amount):
        return math.nan
    return amount if sign and sign[5] else -amount
