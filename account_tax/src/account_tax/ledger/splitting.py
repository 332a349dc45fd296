"""Drawing which split each row goes to.

Rows that share a text or a group move together, as one unit; no unit is in two splits.
N rows, U units; a stratum is a label, or all rows together where `stratified` is false.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from account_tax.confidential import public_source, without_quotes
from account_tax.faults import shorten, with_rows
from account_tax.storage.names import SPLITS

from .dates import describe_days
from .reading import DataError, Ledger
from .units import among, first_rows, number_units

ROW_COLUMNS = ["place", "label", "row_id", "seen", "group", "day", "unseen", "amount"]
TRAIN, VALIDATION, TEST = range(len(SPLITS))


@without_quotes
def split_ledger(ledger: Ledger, data: dict[str, Any]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return the rows of train, validation and test in the source's order, and the sorted labels.

    No text and no group is in two splits. A folder's own splits stay as they are; otherwise rows
    are drawn by `data.split`, which decides them for good: the same rows and seed, the same splits.

    Args:
        ledger: The rows; with a supplier, rows get the column unseen.
        data: The parameters of data.yml; used are source, split, group_column and rare.

    Raises:
        DataError: If an account is rare and that is refused, a split stays empty, a group is in two
            files of a folder, or train lacks a label that validation or test has.
    """
    frame = ledger.frame
    labels = sorted(frame["label"].unique())
    if ledger.rare and data.get("rare", "refuse") == "refuse":
        raise DataError([_rare_fault(ledger.rare, data)])
    if "split" not in frame:
        drawn = draw_splits(frame, data["split"], ledger.rare)
        frame = frame.assign(split=np.array(SPLITS)[drawn])
    if "supplier" in frame:
        frame = frame.assign(unseen=_is_unseen(frame))
    splits = {
        name: frame.loc[frame["split"] == name].filter(ROW_COLUMNS).reset_index(drop=True)
        for name in SPLITS
    }
    if faults := _split_faults(frame, splits, data):
        raise DataError(faults)
    return splits, labels


def splits_in_words(splits: Mapping[str, pd.DataFrame]) -> str:
    """Return each split's rows, accounts, days and rows of new suppliers, as a line."""
    days = describe_days(splits)
    listed = []
    for name, rows in splits.items():
        facts = [f"{rows['label'].nunique()} accounts"]
        facts += [" to ".join(days[name])] if days else []
        if "unseen" in rows and name != "train":
            facts.append(f"{rows['unseen'].sum():,} rows of suppliers new to train")
        listed.append(f"{name} {len(rows):,} ({', '.join(facts)})")
    return ", ".join(listed)


def _is_unseen(frame: pd.DataFrame) -> Any:
    """Return whether a row has a supplier of whom train has no row, (N,)."""
    known = frame.loc[frame["split"] == "train", "supplier"]
    return (frame["supplier"] != 0) & ~frame["supplier"].isin(known)


def _split_faults(
    frame: pd.DataFrame, splits: Mapping[str, pd.DataFrame], data: dict[str, Any]
) -> list[str]:
    faults = []
    if empty := [name for name, rows in splits.items() if rows.empty]:
        name = public_source(data["source"])
        fault = f"data.source = {name}: no rows are left for {', '.join(empty)}. Add rows"
        least = data.get("min_rows", len(SPLITS))
        faults.append(f"{fault}{f', or lower data.min_rows ({least})' * (least > len(SPLITS))}.")
    known = set(splits["train"]["label"].unique())
    for name in SPLITS[1:]:
        if unknown := sorted(set(splits[name]["label"].unique()) - known):
            faults.append(
                f"data.label_column = {data['label_column']}: {name} has labels that train has "
                f"not: {shorten(unknown)}. Add rows of them to train, or leave them out."
            )
    if "group" in frame:
        pairs = frame.loc[frame["group"] != "", ["group", "split"]].drop_duplicates()
        if shared := pairs.loc[pairs.duplicated("group"), "group"].nunique():
            faults.append(
                f"data.group_column = {data['group_column']}: {shared} groups are in more than one "
                "split. Move each to one file, or set data.group_column to null."
            )
    return faults


def _rare_fault(rare: Mapping[str, int], data: dict[str, Any]) -> str:
    of = "groups" if data["group_column"] else "different texts"
    few = f"fewer than {data.get('min_rows', len(SPLITS))} {of}"
    few += ", or none in train," * bool(data.get("time_column"))
    return (
        f"data.rare = refuse: {few} of {shorten(with_rows(rare))}. Set data.rare to train_only, "
        "which keeps such accounts out of validation and test, or to drop; or add rows, or join "
        "accounts by data.label_map."
    )


def draw_splits(
    frame: pd.DataFrame, settings: dict[str, Any], rare: Collection[str] = ()
) -> np.ndarray:
    """Return the position in SPLITS of each row, (N,).

    Args:
        frame: Columns seen and label; where there is a column group, no group is in two splits.
        settings: data.split: the fractions, seed and stratified.
        rare: Labels whose rows go to train, with all that must stay with them.

    Raises:
        DataError: If the fractions are not fractions.
    """
    fractions = np.array([settings[name] for name in SPLITS], dtype=np.float64)
    if fractions.min() <= 0 or abs(fractions.sum() - 1) > 1e-6:
        given = {name: settings[name] for name in SPLITS}
        raise DataError([f"data.split = {given}: expected fractions above 0 that sum to 1."])
    units = number_units(frame)
    free = ~np.isin(units, units[among(frame["label"], rare)])
    drawn = np.full(len(frame), TRAIN)
    if free.any():
        units = pd.factorize(units[free])[0]
        labels = frame["label"][free] if settings["stratified"] else np.zeros(free.sum())
        strata = pd.factorize(labels, sort=True)[0]
        # RandomState, not Generator: its stream is frozen, so a seed draws the same with any numpy.
        random = np.random.RandomState(settings["seed"])
        draw = _draw_groups if "group" in frame else _draw_texts
        drawn[free] = draw(units, strata, fractions, random)[units]
    return drawn


def _draw_texts(
    units: np.ndarray, strata: np.ndarray, fractions: np.ndarray, random: np.random.RandomState
) -> np.ndarray:
    """Return the split of each unit, (U,): each stratum in the fractions, at least one in each."""
    stratum = strata[first_rows(units)]  # a unit's rows have one label, or the first row's counts
    sizes = np.bincount(stratum)
    shuffled = random.permutation(len(stratum))
    ordered = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    rank = np.arange(len(ordered)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    test = np.clip(_share_out(sizes, fractions[TEST]), 1, np.maximum(sizes - 2, 1))
    held = np.clip(_share_out(sizes, fractions[VALIDATION]), 1, np.maximum(sizes - test - 1, 1))
    in_test, in_held = np.repeat(test, sizes), np.repeat(test + held, sizes)
    drawn = np.empty(len(ordered), dtype=np.int64)
    drawn[ordered] = np.where(rank < in_test, TEST, np.where(rank < in_held, VALIDATION, TRAIN))
    return drawn


def _share_out(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Return whole numbers near fraction x sizes, whose sum is as near to fraction x the sum."""
    return np.diff(np.rint(fraction * np.cumsum(sizes)), prepend=0).astype(np.int64)


def _draw_groups(
    units: np.ndarray, strata: np.ndarray, fractions: np.ndarray, random: np.random.RandomState
) -> np.ndarray:
    """Return the split of each unit, (U,), greedily.

    First each stratum, the rarest ahead, gets its smallest groups into every split; then the
    others, the largest ahead, go where their strata are furthest below their fractions.
    """
    sizes = np.bincount(units)
    shuffled = random.permutation(len(sizes))
    by_size = shuffled[np.argsort(sizes[shuffled], kind="stable")]
    members = np.split(strata[np.argsort(units, kind="stable")], np.cumsum(sizes)[:-1])
    rows = np.bincount(strata)
    filled = np.zeros((len(SPLITS), len(rows)))  # rows placed, by split and stratum
    drawn = np.full(len(sizes), -1)

    def place(unit: int, split: int) -> None:
        drawn[unit] = split
        np.add.at(filled[split], members[unit], 1)

    for stratum, holders in _holders_by_rarity(units, strata, by_size):
        for split in (TEST, VALIDATION, TRAIN):
            unit = next((unit for unit in holders if drawn[unit] < 0), None)
            if filled[split, stratum] == 0 and unit is not None:
                place(unit, split)
    for unit in by_size[::-1]:
        if drawn[unit] < 0:
            after = (filled[:, members[unit]] + sizes[unit]) / rows[members[unit]]
            place(unit, int(np.argmin(after.sum(axis=1) / fractions)))
    return drawn


def _holders_by_rarity(
    units: np.ndarray, strata: np.ndarray, by_size: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each stratum with the units that hold rows of it, smallest first."""
    position = np.argsort(by_size)  # of a unit in by_size
    for stratum in np.argsort(np.bincount(strata), kind="stable"):
        yield int(stratum), by_size[np.unique(position[units[strata == stratum]])]
