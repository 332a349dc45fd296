"""From the rows of a ledger to tokenized splits and the record of how they came to be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase  # Kedro reads the nodes' hints

from account_tax.confidential import public_source, without_quotes
from account_tax.faults import shorten, with_rows
from account_tax.ledger.dates import describe_days
from account_tax.ledger.reading import DataError, Ledger, read_ledger, source_digest
from account_tax.ledger.splitting import split_ledger, splits_in_words
from account_tax.ledger.tokens import (
    LengthError,
    check_labels,
    load_base,
    read_seen_ledger,
    token_ids,
    tokenizer_digest,
)
from account_tax.storage.files import canonical_sha256, read_json, sha256_of
from account_tax.storage.names import DATASET_METADATA_FILE, PREPARED_FOLDER, SPLITS
from account_tax.storage.prepared import find_prepared, split_digest

# Part of `inputs_sha256`: raise it when the same inputs give another dataset.
PREPARE_VERSION = 7
LOOKED_ROWS = 1000  # in which some n-gram mostly comes again


# --- plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataPlan:
    """What the data would give; with faults the rest may be empty."""

    faults: list[str]
    labels: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # by split
    facts: dict[str, str] = field(default_factory=dict)  # see `Ledger.facts`
    source_sha256: str | None = None
    # By label, those in train only left out.
    test_rows: dict[str, int] = field(default_factory=dict)


def plan_data(
    data: dict[str, Any], model: dict[str, Any], ngrams: Mapping[str, Any] | None = None
) -> DataPlan:
    """Return what prepare would make of the parameters, or every fault it would stop at."""
    try:
        ledger = _read(data, model)
    except DataError as err:
        return DataPlan(err.faults)
    try:
        splits, labels = split_ledger(ledger, data)
    except DataError as err:
        labels = sorted(ledger.frame["label"].unique())
        return DataPlan(err.faults + check_labels(model["num_labels"], labels), labels)
    test_rows = splits["test"]["label"].value_counts().to_dict()
    faults = _ngram_faults(ledger, splits["train"], len(labels), ngrams or {})
    return DataPlan(
        check_labels(model["num_labels"], labels) + faults,
        labels,
        {name: len(rows) for name, rows in splits.items()},
        _facts(ledger, splits),
        ledger.source_sha256,
        _measured(dict.fromkeys(labels, 0) | test_rows, ledger.rare),
    )


def _ngram_faults(
    ledger: Ledger, train: pd.DataFrame, classes: int, ngrams: Mapping[str, Any]
) -> list[str]:
    """Return why train.ngrams has nothing to fit; a few rows mostly say that it has."""
    from account_tax.model.ngrams import NgramsError, choose_ngrams, sample_rows

    faults, rows = [], sample_rows(len(train))
    for some in (rows[:LOOKED_ROWS], rows) if ngrams.get("enable") else ():
        try:
            choose_ngrams(ledger.texts.of(train.iloc[some]), len(rows), classes, ngrams)
            return []
        except NgramsError as err:
            faults = [str(err)]
    return faults


def plan_prepared(data: dict[str, Any], train: dict[str, Any]) -> DataPlan | None:
    """Return the plan of data that was prepared before from the same bytes and parameters, if any.

    Reading and tokenizing a ledger to find the same takes as long as preparing it.
    """
    folder = Path(PREPARED_FOLDER)
    files = (folder / DATASET_METADATA_FILE).glob(f"*/{DATASET_METADATA_FILE}")
    source = public_source(data["source"])
    if not any(read_json(file).get("source") == source for file in files):
        return None  # its bytes need not be fetched for their digest
    try:
        base, _ = load_base(train["model"])
        pinned = {**train["model"], "revision": base.revision, "sha256": base.sha256}
        key = inputs_sha256(data, {**train, "model": pinned}, source_digest(data))
    except Exception:  # reading, or the check of the base, says what is wrong
        return None
    if (version := find_prepared(folder, key)) is None:
        return None
    known = read_json(folder / DATASET_METADATA_FILE / version / DATASET_METADATA_FILE)
    if "facts" not in known:  # prepared by a version of before
        return None
    splits, labels = known["splits"], list(known["splits"]["train"]["classes"])
    return DataPlan(
        check_labels(train["model"].get("num_labels"), labels),
        labels,
        {name: split["rows"] for name, split in splits.items()},
        known["facts"],
        known["source_sha256"],
        _measured(splits["test"]["classes"], known["rare_accounts"]),
    )


def _facts(ledger: Ledger, splits: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    facts = ledger.facts() | {"rows": splits_in_words(splits)}
    in_train = splits["train"]["label"].value_counts()
    missing = {
        name: in_train.drop([*ledger.rare, *splits[name]["label"]], errors="ignore").to_dict()
        for name in SPLITS[1:]
    }
    said = [f"{name} {shorten(with_rows(rows))}" for name, rows in missing.items() if rows]
    return facts | ({"rows of train alone": "; ".join(said)} if said else {})


def _measured(test_rows: Mapping[str, int], rare: Mapping[str, int]) -> dict[str, int]:
    return {label: int(rows) for label, rows in test_rows.items() if rows or label not in rare}


def _read(data: dict[str, Any], model: dict[str, Any]) -> Ledger:
    """Return the ledger, its repeats by its texts where there is no base to read them."""
    try:
        return read_seen_ledger(data, model)
    except Exception as err:
        if isinstance(err, DataError) and not isinstance(err, LengthError):
            raise
        return read_ledger(data)  # the check of the base says what is wrong with it


def inputs_sha256(data: dict[str, Any], train: dict[str, Any], source_sha256: str) -> str:
    """Return the digest of everything that decides what prepare makes.

    Args:
        data: The parameters of data.yml.
        train: Used are train.model's name, revision, sha256 and prefix, and train.ngrams. A hub
            model's tokenizer is known by its commit: give the resolved revision where there is one.
        source_sha256: See `source_digest`.
    """
    model, ngrams = train["model"], train.get("ngrams") or {}
    return canonical_sha256(
        {
            "prepare_version": PREPARE_VERSION,
            "source_sha256": source_sha256,
            "data": {**data, "source": public_source(data["source"])},
            "model": {key: model.get(key) for key in ("name", "revision", "sha256", "prefix")},
            "tokenizer_files": _local_tokenizer_files(Path(model["name"])),
            "label_map": _label_map_sha256(data),
            "ngrams": ngrams if ngrams.get("enable") else None,
        }
    )


def _local_tokenizer_files(folder: Path) -> dict[str, str]:
    """Return name and sha256 of a local base's small files; its name alone says little."""
    files = chain.from_iterable(folder.glob(kind) for kind in ("*.json", "*.txt", "*.model"))
    return {file.name: sha256_of(file) for file in sorted(files)}


def _label_map_sha256(data: dict[str, Any]) -> str | None:
    path = data.get("label_map")
    return (
        sha256_of(Path(path).expanduser()) if path and Path(path).expanduser().is_file() else None
    )


# --- n-grams --------------------------------------------------------------------------------------


@without_quotes
def fit_split_ngrams(
    ledger: Ledger,
    splits: Mapping[str, pd.DataFrame],
    tokenized: DatasetDict,
    ngrams: dict[str, Any],
) -> dict[str, Any]:
    """Return the model on n-grams of the train split, and its logits of the other two, (N, C).

    It is fitted here, because the text is here: later stages have token ids alone.

    Args:
        ledger: With the texts.
        splits: Its rows.
        tokenized: The same rows with their labels' ids.
        ngrams: train.ngrams.

    Raises:
        DataError: If there is nothing to fit.
    """
    if not ngrams["enable"]:
        return {}
    # Imported here: they bring torch and scikit-learn.
    import torch

    from account_tax.model.ngrams import NgramsError, fit_ngrams, sample_rows

    train = tokenized["train"]
    rows, classes = sample_rows(len(train)), train.features["labels"].num_classes
    texts, ids = ledger.texts.of(splits["train"].iloc[rows]), np.asarray(train.data["labels"])[rows]
    try:
        model = fit_ngrams(texts, ids, classes, ngrams)
    except NgramsError as err:
        raise DataError([str(err)]) from err
    answers = {
        name: torch.from_numpy(np.vstack(list(map(model.logits, ledger.texts.parts(splits[name])))))
        for name in ("validation", "test")
    }
    return vars(model) | answers


# --- describe -----------------------------------------------------------------------------------


@without_quotes
def describe_dataset(
    ledger: Ledger,
    splits: Mapping[str, pd.DataFrame],
    tokenized: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    ngrams: dict[str, Any],
    data: dict[str, Any],
    train: dict[str, Any],
) -> dict[str, Any]:
    """Return where the dataset came from and what is in it: counts, lengths and digests, no text.

    The same inputs give the same dict on any machine. Token lengths are those before truncation.
    """
    return {
        "inputs_sha256": inputs_sha256(data, train, ledger.source_sha256),
        "prepare_version": PREPARE_VERSION,
        **data,
        "source": public_source(data["source"]),
        "source_sha256": ledger.source_sha256,
        "files": ledger.found,
        "rows": {"read": ledger.rows_read, "kept": len(ledger.frame), "dropped": ledger.dropped},
        "rejects": ledger.rejects,
        "doubtful_labels": asdict(ledger.doubtful),
        "label_map_sha256": _label_map_sha256(data),
        "renamed_rows": ledger.renamed,
        "rare_accounts": ledger.rare,
        "facts": _facts(ledger, splits),
        "typed_columns": ledger.typed,
        "days": describe_days(splits),
        "splits": {name: _describe_split(dataset) for name, dataset in tokenized.items()},
        "token_length": _describe_lengths(ledger, splits, tokenized, tokenizer, data["max_length"]),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
        "ngrams": len(ngrams["hashes"]) if ngrams else 0,
    }


def _describe_split(dataset: Dataset) -> dict[str, Any]:
    names = dataset.features["labels"].names
    counts = np.bincount(np.asarray(dataset.data["labels"]), minlength=len(names))
    return {
        "rows": len(dataset),
        "sha256": split_digest(dataset.data),
        "classes": dict(zip(names, counts.tolist(), strict=True)),
    }


def _describe_lengths(
    ledger: Ledger,
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
        parts = ledger.texts.parts(splits[str(name)].iloc[full])
        kept[full] = [len(ids) for texts in parts for ids in token_ids(texts, tokenizer)]
        lengths.append(kept)
    every = np.concatenate(lengths)
    ranks = np.percentile(every, [50, 90, 95, 99, 100], method="inverted_cdf").astype(int).tolist()
    described = dict(zip(("p50", "p90", "p95", "p99", "max"), ranks, strict=True))
    return {**described, "truncated_share": float(np.mean(every > max_length))}
