"""From the rows of a ledger to tokenized splits and the record of how they came to be."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    DatasetInfo,
    Features,
    List,
    NamedSplit,
    Value,
)
from datasets.table import InMemoryTable

from account_tax.pipelines.prepare.ledger import (
    SPLITS,
    DataError,
    Ledger,
    public_source,
    read_ledger,
    source_digest,
)
from account_tax.pipelines.prepare.splitting import draw_splits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DataError",
    "DataPlan",
    "Ledger",
    "check_labels",
    "check_length",
    "describe_dataset",
    "inputs_sha256",
    "load_base_tokenizer",
    "plan_data",
    "read_ledger",
    "source_digest",
    "split_ledger",
    "tokenize_splits",
]

# Part of `inputs_sha256`: raise it when the same inputs give another dataset.
PREPARE_VERSION = 1

TOKENIZE_ROWS = 10_000  # rows a tokenizer call; bounds the memory that Python's lists take


# --- plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataPlan:
    """What the data would give, found without tokenizing; with faults the rest may be empty."""

    faults: list[str]
    labels: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # by split
    dropped: dict[str, int] = field(default_factory=dict)  # by reason
    source_sha256: str | None = None


def plan_data(data: dict[str, Any], model: dict[str, Any]) -> DataPlan:
    """Return what prepare would make of the parameters, or every fault it would stop at."""
    try:
        ledger = read_ledger(data)
    except DataError as err:
        return DataPlan(err.faults)
    try:
        splits, labels = split_ledger(ledger, data)
    except DataError as err:
        labels = sorted(ledger.frame["label"].unique())
        return DataPlan(err.faults + check_labels(model["num_labels"], labels), labels)
    return DataPlan(
        check_labels(model["num_labels"], labels),
        labels,
        {name: len(rows) for name, rows in splits.items()},
        ledger.dropped,
        ledger.source_sha256,
    )


def check_labels(num_labels: int | None, labels: list[str]) -> list[str]:
    """Return the fault if `train.model.num_labels` contradicts the data; None takes the data's."""
    if num_labels is None or num_labels == len(labels):
        return []
    return [
        f"train.model.num_labels = {num_labels}: the data has {len(labels)} labels. "
        f"Set it to {len(labels)}, or to null, which takes the data's number."
    ]


def inputs_sha256(data: dict[str, Any], model: dict[str, Any], source_sha256: str) -> str:
    """Return the digest of everything that decides what prepare makes.

    Args:
        data: The parameters of data.yml.
        model: name, revision and sha256 of the base, as in train.model. A hub model's tokenizer is
            known by its commit: give the resolved revision where there is one.
        source_sha256: See `source_digest`.
    """
    return _canonical_sha256(
        {
            "prepare_version": PREPARE_VERSION,
            "source_sha256": source_sha256,
            "data": {**data, "source": public_source(data["source"])},
            "model": {key: model.get(key) for key in ("name", "revision", "sha256")},
            "tokenizer_files": _local_tokenizer_files(Path(model["name"])),
        }
    )


def _local_tokenizer_files(folder: Path) -> dict[str, str]:
    """Return name and sha256 of a local base's small files; its name alone says little."""
    files = chain.from_iterable(folder.glob(kind) for kind in ("*.json", "*.txt", "*.model"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(files)}


def _canonical_sha256(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# --- split --------------------------------------------------------------------------------------


def split_ledger(ledger: Ledger, data: dict[str, Any]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return the rows of train, validation and test in the source's order, and the sorted labels.

    No text and no group is in two splits. A folder's own splits stay as they are; otherwise rows
    are drawn by `data.split`, which decides them for good: the same rows and seed, the same splits.

    Args:
        ledger: The rows.
        data: The parameters of data.yml; used are source, split and group_column.

    Raises:
        DataError: If a class is too small to split, a split stays empty, a group is in two files
            of a folder, or train lacks a label that validation or test has.
    """
    frame = ledger.frame
    labels = sorted(frame["label"].unique())
    if "split" not in frame:
        frame = frame.assign(split=np.array(SPLITS)[draw_splits(frame, data["split"])])
    splits = {
        name: frame.loc[frame["split"] == name].drop(columns="split").reset_index(drop=True)
        for name in SPLITS
    }
    if faults := _split_faults(frame, splits, data):
        raise DataError(faults)
    return splits, labels


def _split_faults(
    frame: pd.DataFrame, splits: Mapping[str, pd.DataFrame], data: dict[str, Any]
) -> list[str]:
    faults = []
    if empty := [name for name, rows in splits.items() if rows.empty]:
        name = public_source(data["source"])
        faults.append(f"data.source = {name}: no rows are left for {', '.join(empty)}. Add rows.")
    known = set(splits["train"]["label"])
    for name in SPLITS[1:]:
        if unknown := sorted(set(splits[name]["label"]) - known):
            faults.append(
                f"data.label_column = {data['label_column']}: {name} has labels that train has "
                f"not: {unknown}. Add rows of them to train, or leave them out."
            )
    if "group" in frame:
        pairs = frame.loc[frame["group"] != "", ["group", "split"]].drop_duplicates()
        if shared := pairs.loc[pairs.duplicated("group"), "group"].nunique():
            faults.append(
                f"data.group_column = {data['group_column']}: {shared} groups are in more than one "
                "split. Move each to one file, or set data.group_column to null."
            )
    return faults


# --- tokenize -----------------------------------------------------------------------------------


def load_base_tokenizer(
    model: dict[str, Any], labels: list[str], max_length: int
) -> PreTrainedTokenizerBase:
    """Return the base model's tokenizer, after checking that data and model fit each other.

    Args:
        model: train.model; used are name, revision, sha256 and num_labels.
        labels: The label names of the data.
        max_length: data.max_length, in tokens.

    Raises:
        DataError: If num_labels contradicts the data, or max_length is more than the model takes.
        BaseModelError: If the base can't be had.
    """
    # Imported here: it brings torch, which planning does without.
    from account_tax.classifier import load_tokenizer, resolve_base

    faults = check_labels(model["num_labels"], labels)
    base = resolve_base(model["name"], model.get("revision"), model.get("sha256"))
    tokenizer = load_tokenizer(base)
    faults += check_length(max_length, tokenizer, model["name"])
    if faults:
        raise DataError(faults)
    return tokenizer


def check_length(max_length: int, tokenizer: PreTrainedTokenizerBase, name: str) -> list[str]:
    """Return the fault if `data.max_length` is more tokens than the model takes."""
    if max_length <= tokenizer.model_max_length:
        return []
    return [
        f"data.max_length = {max_length}: {name} takes at most {tokenizer.model_max_length} "
        "tokens. Set it to that or less."
    ]


def tokenize_splits(
    splits: Mapping[str, pd.DataFrame],
    labels: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> DatasetDict:
    """Return the splits as token ids, unpadded, without their text.

    Args:
        splits: Columns text, label and row_id.
        labels: Label names; a row's label id is its label's position.
        tokenizer: The base model's.
        max_length: Tokens a row keeps at most, special tokens included.

    Returns:
        Of each split input_ids (list of int32), attention_mask (list of int8, all 1), labels
        (ClassLabel), row_id (int64) and length (int32, the tokens of the row).
    """
    features = Features(
        {
            "input_ids": List(Value("int32")),
            "attention_mask": List(Value("int8")),
            "labels": ClassLabel(names=labels),
            "row_id": Value("int64"),
            "length": Value("int32"),
        }
    )
    tokenized = {}
    for name, rows in splits.items():
        batches = [
            _tokenize_rows(rows.iloc[start : start + TOKENIZE_ROWS], labels, tokenizer, max_length)
            for start in range(0, len(rows), TOKENIZE_ROWS)
        ]
        table = InMemoryTable(pa.concat_tables(batches).cast(features.arrow_schema))
        info = DatasetInfo(features=features)
        tokenized[name] = Dataset(table, info=info, split=NamedSplit(name))
    return DatasetDict(tokenized)


def _tokenize_rows(
    rows: pd.DataFrame, labels: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> pa.Table:
    texts = rows["text"].tolist()
    ids = _token_ids(texts, tokenizer, truncation=True, max_length=max_length)
    lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=offsets[-1])
    # Arrays, not lists of lists: a million rows would take gigabytes as Python objects.
    return pa.table(
        {
            "input_ids": pa.ListArray.from_arrays(offsets, flat),
            "attention_mask": pa.ListArray.from_arrays(offsets, np.ones(len(flat), np.int8)),
            "labels": pd.Categorical(rows["label"], categories=labels).codes.astype(np.int64),
            "row_id": rows["row_id"].to_numpy(),
            "length": lengths,
        }
    )


def _token_ids(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> list[list[int]]:
    encoded = tokenizer(
        texts,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )
    return encoded["input_ids"]


# --- describe -----------------------------------------------------------------------------------


def describe_dataset(
    ledger: Ledger,
    splits: Mapping[str, pd.DataFrame],
    tokenized: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    data: dict[str, Any],
    model: dict[str, Any],
) -> dict[str, Any]:
    """Return where the dataset came from and what is in it: counts, lengths and digests, no text.

    The same inputs give the same dict on any machine. Token lengths are those before truncation.
    """
    settings = ("text_columns", "label_column", "group_column", "separator")
    return {
        "inputs_sha256": inputs_sha256(data, model, ledger.source_sha256),
        "prepare_version": PREPARE_VERSION,
        "source": public_source(data["source"]),
        "source_sha256": ledger.source_sha256,
        **{key: data[key] for key in (*settings, "max_length", "duplicates", "split")},
        "rows": {"read": ledger.rows_read, "kept": len(ledger.frame), "dropped": ledger.dropped},
        "labels": tokenized["train"].features["labels"].names,
        "splits": {name: _describe_split(dataset) for name, dataset in tokenized.items()},
        "token_length": _describe_lengths(splits, tokenized, tokenizer, data["max_length"]),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }


def _describe_split(dataset: Dataset) -> dict[str, Any]:
    names = dataset.features["labels"].names
    counts = np.bincount(np.asarray(dataset.data["labels"]), minlength=len(names))
    return {
        "rows": len(dataset),
        "sha256": split_digest(dataset),
        "classes": dict(zip(names, counts.tolist(), strict=True)),
    }


def _describe_lengths(
    splits: Mapping[str, pd.DataFrame],
    tokenized: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> dict[str, Any]:
    lengths = []
    for name, dataset in tokenized.items():
        kept = dataset.data["length"].to_numpy().copy()  # Arrow's memory is read-only
        # Only rows that fill max_length can have been cut; these alone are tokenized again, whole.
        full = np.flatnonzero(kept == max_length)
        texts = splits[str(name)]["text"].iloc[full].tolist()
        whole = _token_ids(texts, tokenizer) if texts else []
        kept[full] = [len(ids) for ids in whole]
        lengths.append(kept)
    every = np.concatenate(lengths)
    ranks = np.percentile(every, [50, 90, 95, 99, 100], method="inverted_cdf").astype(int).tolist()
    described = dict(zip(("p50", "p90", "p95", "p99", "max"), ranks, strict=True))
    return {**described, "truncated_share": float(np.mean(every > max_length))}


def split_digest(dataset: Dataset) -> str:
    """Return the sha256 of a split's content: the same for the same rows on any machine.

    Hashed are, as little-endian integers, the number of rows (int64), then all lengths (int32),
    all token ids (int32), all label ids (int64) and all row ids (int64).
    """
    digest = hashlib.sha256(np.int64(len(dataset)).astype("<i8").tobytes())
    columns = {"length": "<i4", "input_ids": "<i4", "labels": "<i8", "row_id": "<i8"}
    for column, kind in columns.items():
        for chunk in dataset.data.column(column).chunks:
            values = chunk.flatten() if isinstance(chunk, pa.ListArray) else chunk
            digest.update(values.to_numpy(zero_copy_only=False).astype(kind).tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of what decides a tokenizer's ids: its rules and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python has no rules to write out
        return _canonical_sha256([type(tokenizer).__name__, tokenizer.get_vocab()])
    # The last call's truncation and padding stay in the backend; they are not the tokenizer's own.
    return _canonical_sha256({**json.loads(backend.to_str()), "truncation": None, "padding": None})
