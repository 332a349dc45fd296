"""Reading a ledger: from the bytes of its source to clean rows, with what was kept out counted.

Messages and logs carry column names, labels, row and line numbers and counts, never ledger text.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from account_tax.confidential import public_source
from account_tax.faults import tell
from account_tax.model.classifier import as_text, join_texts
from account_tax.storage.names import SPLITS

logger = logging.getLogger(__name__)

SAMPLE = "sample"


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
        frame: Columns text, label (both never empty) and row_id (0-based number of the row in its
            file); group, where a group column is set; split, where the source is a folder.
        source_sha256: Digest of the source's bytes, see `source_digest`.
        rows_read: Rows in the source.
        dropped: Rows kept out, by reason; a row counts once, under the first reason that applies.
    """

    frame: pd.DataFrame
    source_sha256: str
    rows_read: int
    dropped: dict[str, int]


@dataclass(frozen=True)
class SourceFile:
    """One file of a source: the name shown to people, its split (of a folder) and its bytes."""

    name: str
    split: str | None
    raw: bytes


class _UnreadableError(Exception):
    """What is wrong with one file's bytes, in words that follow `data.source = NAME: `."""


def read_ledger(data: dict[str, Any]) -> Ledger:
    """Return the rows of the source that can be trained on.

    Args:
        data: The parameters of data.yml; used are source, text_columns, label_column,
            group_column, separator and duplicates.

    Raises:
        DataError: If the source is missing, unreadable or empty, lacks a column, or has one class.
    """
    files = _read_files(data["source"])
    tables, faults = [], _column_setting_faults(data)
    for file in files:
        try:
            tables.append(_select_columns(_parse_file(file), file, data))
        except _UnreadableError as err:
            faults.append(f"data.source = {file.name}: {err}")
    if faults:
        raise DataError(faults)
    frame = pd.concat(tables, ignore_index=True)
    kept, dropped = _keep_out(frame, data["duplicates"])
    if faults := _class_faults(kept, len(frame), data):
        raise DataError(faults)
    name = public_source(data["source"])
    logger.info("%s: %d rows read, %d kept, dropped %s", name, len(frame), len(kept), dropped)
    return Ledger(kept, _digest_files(files), len(frame), dropped)


def read_columns(source: str, columns: Sequence[str]) -> pd.DataFrame:
    """Return columns of every row of the source as stripped text.

    The index is (split, row_id): the split is "" where the source is one file, and row_id is as in
    `Ledger.frame`.

    Raises:
        DataError: If the source can't be read or lacks a column; the message shows those found.
    """
    tables = []
    for file in _read_files(source):
        try:
            table = _parse_file(file)
        except _UnreadableError as err:
            raise DataError([f"data.source = {file.name}: {err}"]) from err
        found = [str(column) for column in table.columns]
        if missing := [column for column in columns if column not in found]:
            reason = f"missing the columns {missing}, found {sorted(found)}."
            raise DataError([f"data.source = {file.name}: {reason}"])
        kept = {column: as_text(table.loc[:, column]) for column in columns}
        index = pd.MultiIndex.from_product([[file.split or ""], range(len(table))])
        tables.append(pd.DataFrame(kept).set_axis(index))
    return pd.concat(tables)


def source_digest(data: dict[str, Any]) -> str:
    """Return the sha256 of the source's bytes.

    That of a folder is the sha256 of the lines `sha256sum test.EXT train.EXT validation.EXT`
    prints in it.
    """
    return _digest_files(_read_files(data["source"]))


# --- files --------------------------------------------------------------------------------------


def _digest_files(files: Sequence[SourceFile]) -> str:
    digests = {PurePosixPath(file.name).name: hashlib.sha256(file.raw) for file in files}
    if len(digests) == 1:
        return next(iter(digests.values())).hexdigest()
    lines = "".join(f"{digests[name].hexdigest()}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_files(source: str) -> list[SourceFile]:
    if source == SAMPLE:
        from .sample import sample_csv_bytes

        return [SourceFile("sample.csv", None, sample_csv_bytes())]
    name = public_source(source)
    try:
        filesystem, path = fsspec.core.url_to_fs(source)
        found = _find_files(filesystem, path, name)
        return [SourceFile(name, split, filesystem.cat_file(at)) for at, name, split in found]
    except DataError:
        raise
    except Exception as err:  # Every storage driver has errors of its own.
        reason = f"{type(err).__name__}: {err}".replace(source, name)
        # From None: a driver's error may show the URI with its secrets in a traceback.
        raise DataError([f"data.source = {name}: can't be read ({reason})."]) from None


def _find_files(filesystem: Any, path: str, name: str) -> list[tuple[str, str, str | None]]:
    """Return (path, shown name, split) of the source's one file, or of a folder's three."""
    suffix = _suffix(name)
    # The name decides first: asking a web server whether a file is a folder would download it.
    if suffix not in PARSERS and filesystem.isdir(path):
        return _find_split_files(filesystem, path, name)
    if not filesystem.exists(path):
        raise DataError(
            [
                f"data.source = {name}: no such file or folder. Give a path or URI to a file "
                f"({_either(PARSERS)}), a folder with train, validation and test, or {SAMPLE}."
            ]
        )
    if suffix not in PARSERS:
        shown = f"unknown file type {suffix}" if suffix else "a file name without a type"
        raise DataError([f"data.source = {name}: {shown}. Expected {_either(PARSERS)}."])
    return [(path, name, None)]


def _find_split_files(filesystem: Any, folder: str, name: str) -> list[tuple[str, str, str | None]]:
    listed = [PurePosixPath(path) for path in filesystem.ls(folder, detail=False)]
    found = sorted(path.name for path in listed if path.stem in SPLITS and path.suffix in PARSERS)
    suffixes = {_suffix(file) for file in found}
    if len(suffixes) > 1:
        raise DataError([f"data.source = {name}: expected files of one type, found {found}."])
    expected = [f"{split}{next(iter(suffixes), '.csv')}" for split in SPLITS]
    if missing := [file for file in expected if file not in found]:
        raise DataError(
            [
                f"data.source = {name}: expected the files {expected}, missing {missing}. "
                f"Add them ({_either(PARSERS)}), or give one file, which is then split."
            ]
        )
    return [
        (f"{folder.rstrip('/')}/{file}", f"{name.rstrip('/')}/{file}", split)
        for file, split in zip(expected, SPLITS, strict=True)
    ]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _either(names: Iterable[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}"


# --- tables -------------------------------------------------------------------------------------


def _parse_file(file: SourceFile) -> pd.DataFrame:
    if not file.raw:
        raise _UnreadableError("the file is empty.")
    table = PARSERS[_suffix(file.name)](file.raw)
    if table.empty:
        raise _UnreadableError("the file has no rows.")
    return table


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as err:
        raise _UnreadableError(
            f"not UTF-8 at byte offset {err.start}. Save the file as UTF-8 "
            "(in Excel: CSV UTF-8) and try again."
        ) from err


def _parse_csv(raw: bytes) -> pd.DataFrame:
    text = _decode(raw)
    try:
        # Everything stays text: 0012 keeps its zeros, and NA may be an account's name.
        table = pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False)
    except pd.errors.EmptyDataError as err:
        raise _UnreadableError("the file is empty.") from err
    except pd.errors.ParserError as err:  # Its message has line numbers, no content.
        reason = str(err).strip().removeprefix("Error tokenizing data. C error: ")
        raise _UnreadableError(f"not a CSV table ({reason}). Quote fields with commas.") from err
    # pandas takes surplus leading fields for an index, which would shift every column.
    if not isinstance(table.index, pd.RangeIndex):
        raise _UnreadableError("rows have more fields than the header. Quote fields with commas.")
    return table


def _parse_jsonl(raw: bytes) -> pd.DataFrame:
    rows = []
    for number, line in enumerate(_decode(raw).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            # Numbers stay as written: 0.50 must not become 0.5.
            row = json.loads(line, parse_int=str, parse_float=str)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise _UnreadableError(
                f"line {number} is not a JSON object. Expected one on each line."
            )
        rows.append(row)
    try:
        return pd.DataFrame(rows)
    except UnicodeEncodeError as err:
        raise _UnreadableError("half of a surrogate pair (\\ud800 or so) is not text.") from err


def _parse_parquet(raw: bytes) -> pd.DataFrame:
    try:
        # Arrow's own types: a whole number beside a null would become 12.0 otherwise.
        return pd.read_parquet(io.BytesIO(raw), dtype_backend="pyarrow").reset_index(drop=True)
    except (OSError, ValueError) as err:  # pyarrow's errors are kinds of these
        raise _UnreadableError("not a Parquet file that can be read.") from err


PARSERS: dict[str, Callable[[bytes], pd.DataFrame]] = {
    ".csv": _parse_csv,
    ".parquet": _parse_parquet,
    ".jsonl": _parse_jsonl,
}


def _select_columns(table: pd.DataFrame, file: SourceFile, data: dict[str, Any]) -> pd.DataFrame:
    """Return the columns of `Ledger.frame`, every value a stripped string; "" is missing."""
    _require_columns(table, data)
    columns = {
        "text": join_texts(table, data["text_columns"], data["separator"]),
        "label": as_text(table.loc[:, data["label_column"]]),
        "row_id": np.arange(len(table), dtype=np.int64),
    }
    if data["group_column"]:
        columns["group"] = as_text(table.loc[:, data["group_column"]])
    frame = pd.DataFrame(columns)
    return frame if file.split is None else frame.assign(split=file.split)


def _require_columns(table: pd.DataFrame, data: dict[str, Any]) -> None:
    set_by = {column: "data.text_columns" for column in data["text_columns"]}
    set_by[data["label_column"]] = "data.label_column"
    if data["group_column"]:
        set_by[data["group_column"]] = "data.group_column"
    found = [str(column) for column in table.columns]
    missing = [column for column in set_by if column not in found]
    if not missing:
        return
    # Without any expected name the first line may be a ledger line, so only plain words are shown.
    is_header = len(missing) < len(set_by)
    shown = sorted(name if is_header or name.isidentifier() else "…" for name in found)
    keys = ", ".join(dict.fromkeys(set_by[column] for column in missing))
    raise _UnreadableError(
        f"expected the columns {sorted(set_by)}, found {shown}. Rename the column or set {keys}."
    )


# --- rows ---------------------------------------------------------------------------------------


def _keep_out(frame: pd.DataFrame, duplicates: str) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return the rows to train on and the number of the others by reason.

    Of rows with one text the first stays, whatever the labels of the others. A text that is in two
    files of a folder stays in test rather than validation, and in validation rather than train,
    also where repeats are kept.
    """
    repeats = duplicates == "drop"
    rules: dict[str, Callable[[pd.DataFrame], Any]] = {
        "no_text": lambda rows: rows["text"] == "",
        "no_label": lambda rows: rows["label"] == "",
        "in_test": lambda rows: _is_also_in("test", rows, ["train", "validation"]),
        "in_validation": lambda rows: _is_also_in("validation", rows, ["train"]),
        "duplicate_conflicting_label": lambda rows: _contradicts_first(rows) & repeats,
        "duplicate": lambda rows: rows.duplicated("text") & repeats,
    }
    dropped = {}
    for reason, applies in rules.items():
        out = applies(frame)
        dropped[reason] = int(out.sum())
        frame = frame.loc[~out]
    return frame.reset_index(drop=True), dropped


def _is_also_in(split: str, rows: pd.DataFrame, others: list[str]) -> Any:
    if "split" not in rows:
        return pd.Series(False, index=rows.index)
    texts = rows.loc[rows["split"] == split, "text"]
    return rows["split"].isin(others) & rows["text"].isin(texts)


def _contradicts_first(rows: pd.DataFrame) -> Any:
    return rows["label"] != rows.groupby("text", sort=False)["label"].transform("first")


def _column_setting_faults(data: dict[str, Any]) -> list[str]:
    if data["label_column"] not in data["text_columns"]:
        return []
    return [
        f"data.text_columns = {data['text_columns']}: holds data.label_column, so the model would "
        "read the answer. Take it out."
    ]


def _class_faults(kept: pd.DataFrame, rows_read: int, data: dict[str, Any]) -> list[str]:
    name = public_source(data["source"])
    if kept.empty:
        return [f"data.source = {name}: none of the {rows_read} rows has both a text and a label."]
    labels = kept["label"].unique().tolist()
    if len(labels) > 1:
        return []
    return [
        f"data.label_column = {data['label_column']}: one class, {labels}, in all {len(kept)} rows "
        f"of {name}. Expected at least two."
    ]
