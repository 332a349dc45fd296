"""Which rows are one: repeats of a text and rows of one group, which no two splits share."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd


def seen_texts(rows: pd.DataFrame) -> Any:
    """Return what decides whether rows are repeats, (N,)."""
    return rows["seen" if "seen" in rows else "text"]


def number_units(frame: pd.DataFrame) -> np.ndarray:
    """Return a unit number for each row, (N,): repeats and rows of one group share it.

    A row without a group is a group of its own, and its text's.
    """
    texts = pd.factorize(seen_texts(frame))[0]
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
    pairs = {*zip(number_units(frame).tolist(), frame["label"], strict=True)}
    sizes = Counter(label for _, label in pairs)
    rare: set[str] = set()
    while True:
        taken = {unit for unit, label in pairs if tied and label in rare}
        free = Counter(label for unit, label in pairs if unit not in taken)
        found = {label for label in sizes if free[label] < least}
        if found == rare:
            return {label: sizes[label] for label in sorted(rare)}
        rare = found
