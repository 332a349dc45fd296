"""Which rows are one: repeats of a text and rows of one group, which no two splits share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd


def number_units(frame: pd.DataFrame) -> np.ndarray:
    """Return a unit number for each row, (N,): repeats and rows of one group share it.

    A row without a group is a group of its own, and its text's.
    """
    texts = pd.factorize(frame["seen"])[0]
    if "group" not in frame:
        return texts
    groups = pd.factorize(frame["group"])[0]
    alone = (frame["group"] == "").to_numpy()
    groups[alone] = groups.max() + 1 + np.arange(alone.sum())
    # Repeats of a text may tie groups together: take the lowest number along both until it settles.
    units = pd.Series(groups)
    while True:
        lowest = units.groupby(texts).transform("min").groupby(groups).transform("min")
        if lowest.equals(units):
            return pd.factorize(units)[0]
        units = lowest


def find_rare(frame: pd.DataFrame, least: int, *, tied: bool) -> dict[str, int]:
    """Return the labels in fewer than `least` units, and in how many they are.

    Args:
        frame: The rows, see `Ledger.frame`.
        least: Units of a label that is not rare.
        tied: Whether units that hold a rare label do not count for the others.
    """
    codes, labels = pd.factorize(frame["label"])
    # A pair of a unit and a label as one number: as a table they would take ten times the memory.
    pairs = pd.unique(number_units(frame) * len(labels) + codes)
    units, codes = pairs // len(labels), pairs % len(labels)
    sizes = np.bincount(codes, minlength=len(labels))
    rare = np.zeros(len(labels), dtype=bool)
    while True:
        free = ~np.isin(units, units[rare[codes]]) if tied else np.full(len(units), True)
        found = np.bincount(codes[free], minlength=len(labels)) < least
        if (found == rare).all():
            return dict(sorted((str(labels[at]), int(sizes[at])) for at in np.flatnonzero(rare)))
        rare = found


def among(column: Any, names: Collection[str]) -> np.ndarray:
    """Return which rows have one of the names, (N,); `isin` walks all rows of text in Python."""
    places, different = pd.factorize(column)
    return np.array([each in names for each in different], dtype=bool)[places]


def first_rows(numbers: np.ndarray) -> np.ndarray:
    """Return the first row of each number, (U,), which are 0 to U - 1, (N,)."""
    first = np.zeros(numbers.max(initial=-1) + 1, dtype=np.int64)
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]  # the first is written last
    return first
