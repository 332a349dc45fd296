"""Which rows are one: repeats of a text and rows of one group, which no two splits share."""

from __future__ import annotations

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
    every = pd.DataFrame({"unit": number_units(frame), "label": frame["label"].to_numpy()})
    pairs = every.drop_duplicates()
    sizes = pairs["label"].value_counts().to_dict()
    rare: set[str] = set()
    while True:
        taken = pairs.loc[pairs["label"].isin(list(rare)), "unit"] if tied else []
        free = pairs.loc[~pairs["unit"].isin(taken), "label"].value_counts()
        found = {label for label in sizes if free.get(label, 0) < least}
        if found == rare:
            return {label: sizes[label] for label in sorted(rare)}
        rare = found
