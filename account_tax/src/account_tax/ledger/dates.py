"""Dates as ledgers write them, and splits that follow each other in time."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pandas as pd

from account_tax.errors import Refused
from account_tax.storage.names import SPLITS

TIME = re.compile(r"(T| ?)(오전|오후|AM|PM)? ?\d{1,2}:\d{2}.*$", re.IGNORECASE)
# What is taken away or written as one, so that a few formats are enough.
STEPS = (
    (r"\s+|\([^)]*\)$|[일日]$", ""),  # also a weekday behind a date
    (r"[-년월年月]", "/"),
    (r"[./]+$", ""),
    (r"^((?:19|20)\d\d)([01]\d)([0-3]\d)(\d{6}|\.0)?$", r"\1/\2/\3"),
    (r"^([A-Za-z]{3,9})\.?(\d{1,2}),", r"\2/\1/"),  # Jan 31, 2024
    (r"^(\d\d)(\d\d)((?:19|20)\d\d)$", r"\1/\2/\3"),
)
# A year of four digits in front, a name of a month and points before the year have one meaning.
CLEAR = (
    *("%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%d/%b/%Y", "%d%b%Y"),
    *("%d/%b/%y", "%d/%B/%Y", "%d%B%Y"),
)
ORDERS = {
    "ymd": ("%y/%m/%d", "%y.%m.%d"),
    "dmy": ("%d/%m/%Y", "%d/%m/%y", "%d.%m.%y"),
    "mdy": ("%m/%d/%Y", "%m/%d/%y"),
}
YEARS = (1900, 2099)  # others are slips of the pen
MOST = 0.95  # of the dates: an order that reads fewer is none; a slip of the pen decides nothing
EXCEL = r"[1-7]\d{4}(?:\.\d+)?"  # days since 1899-12-30, of about these years


def read_days(texts: pd.Series, order: str | None) -> tuple[pd.Series, str | None]:
    """Return the day of each date, NaT where it is none, and what stands first in those dates.

    Args:
        texts: Dates, with a time or without, as `as_text` gives them.
        order: ymd, dmy or mdy; None finds it by the whole column.

    Raises:
        Refused: If the column leaves it open; the message follows its name.
    """
    places, different = pd.factorize(texts)
    plain = pd.Series(different, dtype="str").str.replace(TIME, "", regex=True)
    for found, instead in STEPS:
        plain = plain.str.replace(found, instead, regex=True)
    clear = _parse(plain, CLEAR).fillna(_parse_excel(plain))
    by_order = {name: clear.fillna(_parse(plain, formats)) for name, formats in ORDERS.items()}
    if order is None and not all(days.equals(clear) for days in by_order.values()):
        order = _find_order(by_order)
    days = by_order[order] if order else clear
    return days.iloc[places].set_axis(texts.index), order


def _parse(texts: pd.Series, formats: tuple[str, ...]) -> pd.Series:
    days = pd.Series(pd.NaT, index=texts.index, dtype="datetime64[s]")  # of any year
    for each in formats:
        days = days.fillna(pd.to_datetime(texts, format=each, errors="coerce").astype(days.dtype))
    return days.where(days.dt.year.between(*YEARS))


def _parse_excel(texts: pd.Series) -> pd.Series:
    numbers = texts.where(texts.str.fullmatch(EXCEL)).astype("float64")
    days = pd.to_datetime(numbers, unit="D", origin="1899-12-30")
    return days.dt.floor("D").astype("datetime64[s]")


def _find_order(by_order: Mapping[str, pd.Series]) -> str:
    """Return the order that reads all that any does, if no other reads most of them elsewise."""
    days = {order: column.to_numpy() for order, column in by_order.items()}
    read = {order: ~np.isnat(column) for order, column in days.items()}
    ways = np.sum(list(read.values()), axis=0)
    whole = [order for order, mask in read.items() if (mask == (ways > 0)).all()]
    decide = "Set data.date_order to ymd, dmy or mdy."
    if not whole:
        alone = {order: int((mask & (ways == 1)).sum()) for order, mask in read.items()}
        counts = " and ".join(f"{rows:,} only as {order}" for order, rows in alone.items() if rows)
        raise Refused(f"of its different dates {counts} can be read. {decide}")
    first = days[whole[0]]
    most = [order for order, mask in read.items() if mask.sum() >= MOST * (ways > 0).sum()]
    differ = [(days[order] != first) & read[order] for order in most]
    if rows := int(np.any(differ, axis=0).sum()):
        raise Refused(f"{rows:,} different dates can be read as {' or '.join(most)}. {decide}")
    return whole[0]


def cut_by_days(days: np.ndarray, shares: Mapping[str, float]) -> np.ndarray:
    """Return the position in SPLITS of each row, (N,): rows of a day are in one split.

    Train ends and validation ends with the days that come nearest to their shares of the rows.

    Args:
        days: Of each row, (N,).
        shares: data.split.

    Raises:
        Refused: If there are fewer days than splits.
    """
    different, places, rows = np.unique(days, return_inverse=True, return_counts=True)
    if len(different) < len(SPLITS):
        raise Refused(
            f"{len(different)} different days. Expected at least {len(SPLITS)}, one for each split."
        )
    done = np.cumsum(rows)  # rows up to the end of each day
    first = 0
    drawn = np.zeros(len(different), dtype=np.int64)
    for split, share in enumerate(np.cumsum([shares[name] for name in SPLITS[:-1]]), start=1):
        last = len(different) - len(SPLITS) + split  # a day is left for each split after this one
        first += int(np.abs(done[first:last] - share * done[-1]).argmin()) + 1
        drawn[first:] = split
    return drawn[places]


def describe_days(splits: Mapping[str, pd.DataFrame]) -> dict[str, list[str]]:
    """Return the first and last day of each split, where its rows have one."""
    return {
        name: [f"{day:%Y-%m-%d}" for day in (rows["day"].min(), rows["day"].max())]
        for name, rows in splits.items()
        if "day" in rows
    }
