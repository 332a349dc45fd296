"""Reading a ledger: from the bytes of its source to clean rows, with what was kept out counted.

Messages and logs carry column names, labels, row and line numbers and counts, never ledger text.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.util import hash_pandas_object

from account_tax.confidential import public_source, without_quotes
from account_tax.errors import Failed, Refused
from account_tax.faults import shorten, tell, with_rows
from account_tax.model.classifier import as_text, join_texts
from account_tax.storage.names import SPLITS

from .amounts import mind_texts, read_amounts
from .dates import cut_by_days, read_days
from .formats import files_in_words
from .joined import JoinedFiles
from .labels import DoubtfulLabels, find_doubtful, read_label_map
from .sources import digest_files, find_files
from .texts import Texts, Tokenize
from .units import among, find_rare, first_rows
from .windows import Wanted, Window

logger = logging.getLogger(__name__)

WINDOW_ROWS = 8192
HOPELESS = 100_000  # so many rejects beyond the share that may be, and the rest is not read
# A column of more values, with fewer rows each, holds texts, which no message may show.
FEW_LABELS, LEAST_ROWS = 5, 3
OTHERS = ("group", "time", "supplier", "amount")  # columns that may be named beside text and label
SHOWN_REASONS, SHOWN_ROWS = 20, 3  # of rows that can't be read; all are counted


class DataError(ValueError):
    """The ledger can't be used; `faults` says why, one sentence or two for each."""

    def __init__(self, faults: Sequence[str]):
        super().__init__(list(faults))
        self.faults = list(faults)

    def __str__(self) -> str:
        """Return all faults, one a line, below their count."""
        return tell(self.faults, "in the data")


@dataclass(frozen=True)
class Ledger:
    """The rows to train on, and what became of the others.

    Attributes:
        frame: Columns place (of the text in `texts`, which is never empty), seen (one number for
            rows that are repeats), label (never empty) and row_id (0-based number of the row in its
            file, those that can't be read included); group, day and amount (NaN: none that can be
            read), where their columns are set; supplier (a number for each, 0: none named), where
            its column is set or the first of several text columns repeats itself; split, where the
            source is split already or by time.
        texts: Of the rows, on disk, with their token ids where a model was given.
        source_sha256: Digest of the source's bytes, see `source_digest`.
        rows_read: Rows in the source.
        dropped: Rows kept out, by reason; a row counts once, under the first reason that applies.
        found: What was found out about each file: its format, encoding and so on.
        rejects: Of the rows that can't be read, by reason: `rows`, and where the `first` stand.
        doubtful: Labels that were merged, left out or kept as they are, see `data.labels`.
        renamed: Rows that have another label by `data.label_map`.
        rare: Labels with fewer texts (or groups) than `data.min_rows`, or, where splits follow each
            other in time, with none in train; and how many texts.
        typed: What was found of columns that are no text, in words by name.
    """

    frame: pd.DataFrame
    texts: Texts
    source_sha256: str
    rows_read: int
    dropped: dict[str, int]
    found: list[dict[str, Any]]
    rejects: dict[str, dict[str, Any]]
    doubtful: DoubtfulLabels
    renamed: int
    rare: dict[str, int]
    typed: dict[str, str] = field(default_factory=dict)

    def with_texts(self, splits: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
        """Return rows of `frame` with the column text."""
        return {name: rows.assign(text=self.texts.of(rows)) for name, rows in splits.items()}

    def facts(self) -> dict[str, str]:
        """Return what reading found, in a person's words, by name."""
        facts = {
            "ledger": files_in_words(self.found),
            "rows read": f"{self.rows_read:,}, left out: {_left_out(self.dropped)}",
        }
        where = "left out after train" if "day" in self.frame else "in train only"
        where = "left out" if not among(self.frame["label"], self.rare).any() else where
        more = {
            "unreadable rows": _in_words(self.rejects),
            "doubtful accounts": self.doubtful.in_words(),
            "rare accounts": f"{shorten(with_rows(self.rare))}, {where}" * bool(self.rare),
            **self.typed,
        }
        return facts | {name: words for name, words in more.items() if words}


@without_quotes
def read_ledger(data: dict[str, Any], tokenize: Tokenize | None = None) -> Ledger:
    """Return the rows of the source that can be trained on.

    Args:
        data: The parameters of data.yml; used are source and how it is read, text_columns,
            label_column, the columns that are no text, separator, duplicates and split.
        tokenize: Gives what a model reads of texts: rows with the same token ids are repeats.
            Without it those with one text are.

    Raises:
        DataError: If the source is missing, unreadable or empty, lacks a column, or has one class.
    """
    with tempfile.TemporaryDirectory() as scratch:
        faults = _column_setting_faults(data)
        label_map = _label_map_of(data, faults)
        files = _open_files(data, _set_by(data), Path(scratch), faults)
        tables = _Tables(data, files)
        frame, texts = _read_windows(tables, data, tokenize)
        digest = files.digest()
    faults = faults + tables.faults + tables.reject_faults()
    if faults := faults or _blank_columns(frame, data):
        raise DataError(faults)
    typed = {"mind this": words} if (words := mind_texts(tables.first)) else {}
    _settle_suppliers(frame, data, typed)
    if data.get("group_column"):
        typed["groups"] = _groups_in_words(frame["group"], data["group_column"])
    if data.get("amount_column"):
        frame["amount"], typed["amounts"] = read_amounts(frame["amount"])
    if data.get("time_column"):
        frame, typed["dates"] = _read_dates(frame, data, tables)
    typed |= _say_how_map_fits(label_map, frame["label"])
    renamed = _rename_labels(frame, label_map)
    doubtful = _find_doubtful_labels(frame, data)
    if data.get("labels") == "merge":
        _rename_labels(frame, doubtful.first_spellings)
    kept, dropped = _keep_out(frame, data, doubtful)
    if "day" in kept:
        kept = _split_by_time(kept, data)
    kept, rare = _settle_rare(kept, data)
    dropped = {"unreadable": tables.rejected, **dropped}
    dropped["rare_label"] = len(frame) - sum(dropped.values()) + tables.rejected - len(kept)
    rows_read = len(frame) + tables.rejected
    if faults := _class_faults(kept, rows_read, dropped, data, files.read_as):
        raise DataError(faults)
    name = public_source(data["source"])
    logger.info("%s: read as %s", name, files.read_as)
    logger.info("%s: %d rows read, %d kept, dropped %s", name, rows_read, len(kept), dropped)
    rejects, found = tables.most_rejects(), files.found
    return Ledger(
        kept, texts, digest, rows_read, dropped, found, rejects, doubtful, renamed, rare, typed
    )  # fmt: skip


@without_quotes
def read_columns(data: dict[str, Any], columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of every row of the source that can be read, as stripped text.

    The index is (split, row_id): the split is "" where the source is not split, and row_id is as in
    `Ledger.frame`.

    Raises:
        DataError: If the source can't be read or lacks a column; the message shows those found.
    """

    def pick(window: Window, ids: np.ndarray) -> pd.DataFrame:
        index = pd.MultiIndex.from_product([[window.split or ""], ids])
        texts = {name: as_text(column) for name, column in window.rows.frame(columns).items()}
        return pd.DataFrame(texts).set_axis(index)

    with tempfile.TemporaryDirectory() as scratch:
        wanted = {**_set_by(data), **dict.fromkeys(columns, "")}  # those of data find the header
        tables = _Tables(data, _open_files(data, wanted, Path(scratch)))
        frames = [pick(window, ids) for window, ids in tables.windows()]
    if tables.faults:
        raise DataError(tables.faults)
    return pd.concat(frames)


def source_digest(data: dict[str, Any]) -> str:
    """Return the sha256 of the source's bytes.

    That of a folder is the sha256 of the lines `sha256sum test.EXT train.EXT validation.EXT`
    prints in it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            return digest_files(find_files(data["source"], Path(scratch)))
        except Refused as err:
            raise DataError([_source_fault(data, err)]) from None  # as find_files wants it


# --- files --------------------------------------------------------------------------------------


def _open_files(
    data: dict[str, Any], columns: Mapping[str, str], scratch: Path, faults: Sequence[str] = ()
) -> JoinedFiles:
    # A version that was recorded before these could be set was read without them.
    how = {key: data.get(key) for key in ("encoding", "header_row", "sheet")}
    try:
        return JoinedFiles(data["source"], Wanted(columns, **how), scratch)
    except Refused as err:
        raise DataError([*faults, _source_fault(data, err)]) from None  # as find_files wants it


def _source_fault(data: dict[str, Any], fault: object) -> str:
    return f"data.source = {public_source(data['source'])}: {fault}"


def _read_windows(
    tables: _Tables, data: dict[str, Any], tokenize: Tokenize | None
) -> tuple[pd.DataFrame, Texts]:
    """Return the rows of all windows, and their texts; no column where nothing can be read."""
    try:
        texts = Texts(tokenize)
        frames = [_pick_rows(window, ids, data, texts) for window, ids in tables.windows()]
    except Refused as err:  # where the texts are kept
        raise DataError([str(err)]) from None
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), texts


def _pick_rows(window: Window, ids: np.ndarray, data: dict[str, Any], texts: Texts) -> pd.DataFrame:
    """Return the columns of `Ledger.frame`, and whether a row is empty: has no text.

    The others' values are stripped strings; "" is missing.
    """
    table = window.rows.frame(list(_set_by(data)))
    read = dict(table.items())
    joined = join_texts(table, data["text_columns"], data["separator"])
    columns = {
        "empty": joined == "",
        "label": as_text(read[data["label_column"]]),
        "row_id": ids,
    }
    columns |= {kind: as_text(read[name]) for kind, name in _other_columns(data).items()}
    if "supplier" in columns:
        names = columns["supplier"]  # never needed again, and a number is smaller
        hash_all: Any = hash_pandas_object  # pandas gives it no type
        columns["supplier"] = np.where(names == "", 0, hash_all(names, index=False))
    if "time" in columns:
        columns |= {"line": window.rows.numbers, "where": f"{window.file} {window.unit}"}
    frame = texts.add(joined).assign(**columns)
    return frame if window.split is None else frame.assign(split=window.split)


class _Tables:
    """The rows of a source's files, and every fault of them."""

    def __init__(self, data: dict[str, Any], files: JoinedFiles):
        self._data, self._files = data, files
        self._read: Counter[str | None] = Counter()  # rows by split, those that can't be read too
        self._rejects: dict[str, dict[str, Any]] = {}
        self.rejected = 0
        self.first = pd.DataFrame()  # the texts of the first rows
        self.faults = [f"data.source = {file.name}: {text}" for file, text in files.faults]

    def windows(self) -> Iterator[tuple[Window, np.ndarray]]:
        """Yield the rows, and the ids of those that can be read, (N,)."""
        try:
            for window in self._files.windows(WINDOW_ROWS):
                numbers = np.array(window.rows.numbers, dtype=np.int64)
                aside = [reject.number for reject in window.rejects]
                before = self._read[window.split] + np.searchsorted(aside, numbers)
                if self.first.empty:
                    self.first = window.rows.frame(self._data["text_columns"])
                yield window, before + np.arange(len(numbers))
                self._count(window)
                if self.rejected > HOPELESS and self.reject_faults():
                    break
        except Failed as err:
            self.faults.append(_source_fault(self._data, err))

    def _count(self, window: Window) -> None:
        self._read[window.split] += window.read
        for reject in window.rejects:
            self.set_aside(reject.reason, f"{window.file} {window.unit} {reject.number}")

    def set_aside(self, reason: str, place: str) -> None:
        """Count a row that can't be used for what it holds."""
        self.rejected += 1
        counted = self._rejects.setdefault(reason, {"rows": 0, "first": []})
        counted["rows"] += 1
        if counted["rows"] <= SHOWN_ROWS:
            counted["first"].append(place)

    def most_rejects(self) -> dict[str, dict[str, Any]]:
        """Return `Ledger.rejects`, the most frequent reasons first."""
        counted = sorted(self._rejects.items(), key=lambda item: -item[1]["rows"])
        return dict(counted[:SHOWN_REASONS])

    def reject_faults(self) -> list[str]:
        """Return why rows that can't be read are more than may be set aside."""
        read = self._read.total()
        if not read and not self.faults:
            return [_source_fault(self._data, "the file has no rows.")]
        fail = self._data.get("on_error") == "fail"
        most = 0 if fail else self._data.get("max_rejected", 0)
        if self.rejected <= most * read:
            return []
        rows = f"{self.rejected:,} of {read:,} rows can't be read"
        how = (
            "set data.on_error to skip, which sets them aside"
            if fail
            else f"raise data.max_rejected = {most:g}"
        )
        listed = _in_words(self.most_rejects())
        return [_source_fault(self._data, f"{rows}. {listed}. Mend them, or {how}.")]


def _left_out(dropped: Mapping[str, int]) -> str:
    counts = [f"{count:,} {reason}" for reason, count in dropped.items() if count]
    return ", ".join(counts).replace("_", " ") or "none"


def _in_words(rejects: Mapping[str, Mapping[str, Any]]) -> str:
    """Return `Ledger.rejects` as a line."""
    listed = []
    for reason, counted in rejects.items():
        more = ["..."] if counted["rows"] > len(counted["first"]) else []
        listed.append(f"{reason}: {counted['rows']:,} ({', '.join([*counted['first'], *more])})")
    return "; ".join(listed)


def _set_by(data: dict[str, Any]) -> dict[str, str]:
    """Return the columns that are read, and the parameter that names each."""
    columns = dict.fromkeys(data["text_columns"], "data.text_columns")
    columns[data["label_column"]] = "data.label_column"
    return columns | {name: f"data.{kind}_column" for kind, name in _named_columns(data).items()}


def _other_columns(data: dict[str, Any]) -> dict[str, str]:
    """Return the columns that are read beside text and label, by what they hold.

    The first of several text columns most likely names the supplier, where no other does; whether
    it can is seen by its values (`_settle_suppliers`).
    """
    first = {"supplier": data["text_columns"][0]} if len(data["text_columns"]) > 1 else {}
    return first | _named_columns(data)


def _named_columns(data: dict[str, Any]) -> dict[str, str]:
    """Return the columns beside text and label that a person named, by what they hold."""
    # A version that was recorded before one of them could be set was made without it.
    return {kind: name for kind in OTHERS if (name := data.get(f"{kind}_column"))}


# --- rows ---------------------------------------------------------------------------------------


def _blank_columns(frame: pd.DataFrame, data: dict[str, Any]) -> list[str]:
    """Return the faults of columns beside text and label that were named and hold nothing."""
    return [
        f"data.{kind}_column = {name}: no row has a value there. Name another column, or set "
        f"data.{kind}_column to null."
        for kind, name in _named_columns(data).items()
        if not frame[kind].to_numpy().astype(bool).any()
    ]


def _groups_in_words(groups: Any, column: str) -> str:
    none = int((groups == "").sum())
    without = f"; {none:,} rows without one, each a group of its own" * bool(none)
    return f"{groups[groups != ''].nunique():,} in the column {column}{without}"


def _settle_suppliers(frame: pd.DataFrame, data: dict[str, Any], typed: dict[str, str]) -> None:
    """Note in `typed` how many suppliers there are; take the column away if it holds free text.

    It does where nobody has named it for suppliers and it mostly has another value.
    """
    if "supplier" not in frame:
        return
    named = frame["supplier"].to_numpy()
    named = named[named != 0]
    count = np.unique(named).size
    if not data.get("supplier_column") and 2 * count > len(named):
        del frame["supplier"]
    else:
        typed["suppliers"] = f"{count:,} in the column {_other_columns(data)['supplier']}"


def _keep_out(
    frame: pd.DataFrame, data: dict[str, Any], doubtful: DoubtfulLabels
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows to train on and the number of the others by reason.

    Of repeats the first stays, whatever the labels of the others. One that is in two files of a
    folder stays in test rather than validation, and in validation rather than train,
    also where repeats are kept.
    """
    repeats, merges = data["duplicates"] == "drop", data.get("labels") == "merge"
    rules: dict[str, Callable[[pd.DataFrame], Any]] = {
        "no_text": lambda rows: rows["empty"],
        "no_label": lambda rows: rows["label"] == "",
        "null_label": lambda rows: among(rows["label"], doubtful.nulls) & merges,
        "total_label": lambda rows: among(rows["label"], doubtful.totals) & merges,
        "in_test": lambda rows: _is_also_in("test", rows, ["train", "validation"]),
        "in_validation": lambda rows: _is_also_in("validation", rows, ["train"]),
        "duplicate_conflicting_label": lambda rows: _contradicts_first(rows) & repeats,
        "duplicate": lambda rows: (_first_rows(rows) != np.arange(len(rows))) & repeats,
    }
    dropped = {}
    for reason, applies in rules.items():
        out = applies(frame)
        dropped[reason] = int(out.sum())
        frame = frame.loc[~out] if dropped[reason] else frame
    return frame.drop(columns="empty").reset_index(drop=True), dropped


def _is_also_in(split: str, rows: pd.DataFrame, others: list[str]) -> Any:
    if "split" not in rows:
        return pd.Series(False, index=rows.index)
    seen: Any = rows["seen"]
    return rows["split"].isin(others) & seen.isin(seen[rows["split"] == split])


def _contradicts_first(rows: pd.DataFrame) -> Any:
    labels = pd.factorize(rows["label"])[0]
    return labels != labels[_first_rows(rows)]


def _first_rows(rows: pd.DataFrame) -> np.ndarray:
    """Return the position of the first row that each row repeats, its own if it is the first."""
    numbers = pd.factorize(rows["seen"])[0]
    return first_rows(numbers)[numbers]


def _column_setting_faults(data: dict[str, Any]) -> list[str]:
    key, faults = f"data.text_columns = {data['text_columns']}", []
    if data["label_column"] in data["text_columns"]:
        faults.append(
            f"{key}: holds data.label_column, so the model would read the answer. Take it out."
        )
    if len(set(data["text_columns"])) < len(data["text_columns"]):
        faults.append(f"{key}: a column stands there twice. Take one out.")
    return faults


def _label_map_of(data: dict[str, Any], faults: list[str]) -> dict[str, str]:
    """Return the new label by the old one; add the fault of a file that can't be read."""
    if not (path := data.get("label_map")):
        return {}
    try:
        return read_label_map(Path(path))
    except Refused as err:
        faults.append(f"data.label_map = {path}: {err}")
        return {}


def _say_how_map_fits(label_map: Mapping[str, str], labels: Any) -> dict[str, str]:
    """Return in words, by its fact's name, what of a label map the ledger has; {} without one."""
    if not label_map:
        return {}
    words = f"{among(labels, label_map).sum():,} rows have a new account"
    if strange := len(label_map.keys() - set(labels.unique())):
        words += f"; {strange:,} of its {len(label_map):,} old ones are not in the ledger"
    return {"label map": words}


def _rename_labels(frame: pd.DataFrame, names: Mapping[str, str]) -> int:
    """Give rows the new label by their old one; return how many have one."""
    renamed = among(frame["label"], names)
    frame.loc[renamed, "label"] = frame.loc[renamed, "label"].map(names)
    return int(np.count_nonzero(renamed))


def _find_doubtful_labels(frame: pd.DataFrame, data: dict[str, Any]) -> DoubtfulLabels:
    """Return the labels that a person ought to look at; with `data.labels` strict refuse them."""
    labels = frame.loc[~frame["empty"] & (frame["label"] != ""), "label"]
    rows = Counter(labels.value_counts(sort=False).to_dict())
    key = f"data.label_column = {data['label_column']}"
    if len(rows) > FEW_LABELS and len(rows) * LEAST_ROWS > len(labels):
        counts = f"{len(rows):,} different values in {len(labels):,} rows"
        raise DataError([f"{key}: {counts}: is it the account?"])
    doubtful = find_doubtful(rows)
    if data.get("labels") == "strict" and (words := doubtful.in_words()):
        raise DataError(
            [
                f"{key}: {words}. Set data.labels to merge, which joins one account's "
                "spellings and leaves out what is none, or to as_is, which keeps all; or write the "
                "right ones into a file, data.label_map."
            ]
        )
    return doubtful


def _read_dates(
    frame: pd.DataFrame, data: dict[str, Any], tables: _Tables
) -> tuple[pd.DataFrame, str]:
    """Return the rows by day, those without one set aside, and the dates in words.

    Rows that lack a text or label are left out for that, whatever their date.
    """
    column = data["time_column"]
    key = f"data.time_column = {column}"
    if "split" in frame:
        raise DataError([f"{key}: the source is split already. Set it to null."])
    try:
        frame["day"], order = read_days(pd.Series(frame["time"]), data["date_order"])
    except Refused as err:
        raise DataError([f"{key}: {err}"]) from None
    undated = frame["day"].isna()
    out = undated & ~frame["empty"] & (frame["label"] != "")
    for text, where, line in frame.loc[out, ["time", "where", "line"]].itertuples(index=False):
        tables.set_aside(f"no {'readable ' * bool(text)}date in {column}", f"{where} {line}")
    if faults := tables.reject_faults():
        raise DataError(faults)
    span = " to ".join(f"{day:%Y-%m-%d}" for day in (frame["day"].min(), frame["day"].max()))
    rows = frame.loc[~out].drop(columns=["time", "where", "line"])
    return rows.sort_values("day", kind="stable"), span + (f", read as {order}" if order else "")


def _split_by_time(kept: pd.DataFrame, data: dict[str, Any]) -> pd.DataFrame:
    """Return the rows in the source's order, with the split of each."""
    try:
        drawn = cut_by_days(kept["day"].to_numpy(), data["split"])
    except Refused as err:
        raise DataError([f"data.time_column = {data['time_column']}: {err}"]) from None
    return kept.assign(split=np.array(SPLITS)[drawn]).sort_values("row_id", ignore_index=True)


def _settle_rare(kept: pd.DataFrame, data: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows that stay, and the rare labels with their number of texts or groups.

    A folder's own splits stay as they are. By time, what comes after train can't go there: rows of
    rare labels and of new ones are left out.
    """
    how, by_time = data.get("rare", "refuse"), "day" in kept
    if how == "train_only" and "split" in kept and not by_time:
        return kept, {}
    rare = find_rare(kept, data.get("min_rows", len(SPLITS)), tied=how == "train_only")
    in_train = (kept["split"] == "train").to_numpy() if by_time else np.full(len(kept), True)
    new = kept.loc[~among(kept["label"], kept.loc[in_train, "label"].unique()), "label"]
    rare = dict(sorted({**new.value_counts().to_dict(), **rare}.items()))
    if how == "refuse":
        return kept, rare
    out = among(kept["label"], rare) & (~in_train | (how == "drop"))
    return kept.loc[~out], rare


def describe_rare(dataset: Mapping[str, Any]) -> str:
    """Return the rare accounts of dataset_metadata as a sentence, "" for none."""
    if not (rare := dataset.get("rare_accounts")):
        return ""
    listed = ", ".join(with_rows(rare))
    few, where = f"fewer than {dataset['min_rows']} different texts", "in train only"
    if dataset.get("time_column"):
        few, where = f"{few}, or none in train", "left out after train"
    where = where if dataset["rare"] == "train_only" else "left out"
    return f"With {few}, so {where}: {listed}."


def _class_faults(
    kept: pd.DataFrame,
    rows_read: int,
    dropped: Mapping[str, int],
    data: dict[str, Any],
    read_as: str,
) -> list[str]:
    if kept.empty:
        none = f"none of the {rows_read:,} rows is left; left out: {_left_out(dropped)}"
        return [_source_fault(data, f"{none}. It was read as {read_as}.")]
    labels: Any = kept["label"]
    if labels.nunique() > 1:
        return []
    name = public_source(data["source"])
    return [
        f"data.label_column = {data['label_column']}: one class in the {len(kept):,} rows that are "
        f"left of {name}, of {rows_read:,}; left out: {_left_out(dropped)}. Expected at least two."
    ]
