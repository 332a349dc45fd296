"""From splits of text to splits of token ids, and the digests of both."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
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
from transformers import PreTrainedTokenizerBase  # Kedro reads the nodes' hints

from .reading import DataError, Ledger, read_ledger
from .texts import RowFile
from .words import offsets_of, words_of

if TYPE_CHECKING:
    from account_tax.model.classifier import BaseReference
from account_tax.confidential import without_quotes
from account_tax.storage.files import canonical_sha256
from account_tax.storage.prepared import split_digest

MANY = 1000  # texts from which on their words are worth it
LOOKED_AT = 20  # of them are tokenized whole too
TOKENIZE_ROWS = 10_000  # rows a tokenizer call; bounds the memory that Python's lists take


class LengthError(DataError):
    """A ledger can't be read as a base would: all cut off, all lines are the same to it."""


@without_quotes
def read_seen_ledger(data: dict[str, Any], model: dict[str, Any]) -> Ledger:
    """Return the ledger with its repeats found among what the base reads of the texts.

    Args:
        data: The parameters of data.yml, see `read_ledger`.
        model: train.model; used are name, revision, sha256 and prefix.

    Raises:
        DataError: As `read_ledger`; LengthError, one of them, if the base can't take max_length.
        BaseModelError: If the base can't be had.
    """

    def read(texts: pa.StringArray) -> pa.ListArray:
        _, tokenizer = load_base(model)
        if faults := check_length(data["max_length"], tokenizer, model["name"]):
            raise LengthError(faults)
        return read_tokens(texts, tokenizer, data["max_length"])

    return read_ledger(data, read)


def read_tokens(
    texts: pa.StringArray, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> pa.ListArray:
    """Return the ids of each text, cut as a model reads them."""
    if len(texts) < MANY or not (words := words_of(tokenizer)):
        return _read_whole(texts.to_pylist(), tokenizer, max_length)
    plain = words.plain(texts)
    of_words, others = texts.filter(plain), texts.filter(~plain).to_pylist()
    with _all_cores():
        ids = words.read(of_words, max_length)
    looked = of_words.slice(0, LOOKED_AT).to_pylist()
    if not ids.slice(0, LOOKED_AT).equals(_read_whole(looked, tokenizer, max_length)):
        # By a rule that is not known here.
        return _read_whole(texts.to_pylist(), tokenizer, max_length)
    both = pa.concat_arrays([ids, _read_whole(others, tokenizer, max_length)])
    return both.take(np.argsort(np.argsort(~plain, kind="stable")))


def _read_whole(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> pa.ListArray:
    return _as_lists(token_ids(texts, tokenizer, truncation=True, max_length=max_length))


def _as_lists(ids: list[list[int]]) -> pa.ListArray:
    """Return lists as an array: a million of them would take gigabytes as Python objects."""
    lengths = np.fromiter(map(len, ids), dtype=np.int32, count=len(ids))
    offsets = offsets_of(lengths)
    flat = np.fromiter(chain.from_iterable(ids), dtype=np.int32, count=offsets[-1])
    return pa.ListArray.from_arrays(offsets, flat)


def check_labels(num_labels: int | None, labels: list[str]) -> list[str]:
    """Return the fault if `train.model.num_labels` contradicts the data; None takes the data's."""
    if num_labels is None or num_labels == len(labels):
        return []
    return [
        f"train.model.num_labels = {num_labels}: the data has {len(labels)} labels. "
        f"Set it to {len(labels)}, or to null, which takes the data's number."
    ]


def load_base_tokenizer(
    model: dict[str, Any], labels: list[str], max_length: int
) -> PreTrainedTokenizerBase:
    """Return the base model's tokenizer, after checking that data and model fit each other.

    Args:
        model: train.model; used are name, revision, sha256, prefix and num_labels.
        labels: The label names of the data.
        max_length: data.max_length, in tokens.

    Raises:
        DataError: If num_labels contradicts the data, or max_length is more than the model takes.
        BaseModelError: If the base can't be had.
    """
    faults = check_labels(model["num_labels"], labels)
    _, tokenizer = load_base(model)
    faults += check_length(max_length, tokenizer, model["name"])
    if faults:
        raise DataError(faults)
    tokenizer.model_max_length = max_length  # wherever it goes, it cuts where training did
    return tokenizer


def load_base(model: Mapping[str, Any]) -> tuple[BaseReference, PreTrainedTokenizerBase]:
    """Return the base of train.model, its weights checked, and its tokenizer as it came.

    A stage that asks again gets the same ones: a vocabulary of many languages takes 2 s to load.

    Raises:
        BaseModelError: If the base can't be had.
    """
    keys = ("name", "revision", "sha256", "prefix")
    base, tokenizer, limit = _load_base(*(model.get(key) for key in keys))
    tokenizer.model_max_length = limit
    return base, tokenizer


@lru_cache(maxsize=1)
def _load_base(
    name: str, revision: str | None, sha256: str | None, prefix: str | None
) -> tuple[BaseReference, PreTrainedTokenizerBase, int]:
    # Imported here: it brings torch, which planning does without.
    from account_tax.model.classifier import load_tokenizer, resolve_base

    base = resolve_base(name, revision, sha256)
    tokenizer = load_tokenizer(base, prefix)
    return base, tokenizer, tokenizer.model_max_length


def check_length(max_length: int, tokenizer: PreTrainedTokenizerBase, name: str) -> list[str]:
    """Return the fault if `data.max_length` is more tokens than the model takes, or too few."""
    fixed = len(tokenizer("a")["input_ids"]) - 1  # special tokens and train.model.prefix
    if max_length > tokenizer.model_max_length:
        return [
            f"data.max_length = {max_length}: {name} takes at most {tokenizer.model_max_length} "
            "tokens. Set it to that or less."
        ]
    if max_length <= fixed:
        return [
            f"data.max_length = {max_length}: special tokens and train.model.prefix take {fixed} "
            "of them, so that no text is left. Set it higher, or the prefix to null."
        ]
    return []


@without_quotes
def tokenize_splits(
    splits: Mapping[str, pd.DataFrame],
    labels: list[str],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ledger: Ledger | None = None,
) -> DatasetDict:
    """Return the splits as token ids, unpadded, without their text.

    Args:
        splits: Columns text, label and row_id; of a ledger place in lieu of text.
        labels: Label names; a row's label id is its label's position.
        tokenizer: The base model's.
        max_length: Tokens a row keeps at most, special tokens included.
        ledger: That the rows are of, as `read_seen_ledger` gives it: they are tokenized already.

    Returns:
        Of each split input_ids (list of int32), attention_mask (list of int8, all 1), labels
        (ClassLabel), row_id (int64) and length (int32, the tokens of the row); unseen (bool) as
        `split_ledger` gives it.
    """
    features = Features(
        {
            "input_ids": List(Value("int32")),
            "attention_mask": List(Value("int8")),
            "labels": ClassLabel(names=labels),
            "row_id": Value("int64"),
            "length": Value("int32"),
            **(
                {"unseen": Value("bool")}
                if any("unseen" in rows for rows in splits.values())
                else {}
            ),
        }
    )

    tokenized = {}
    for name, rows in splits.items():
        kept = RowFile(features.arrow_schema)
        done = 0
        for ids in _read(rows, tokenizer, max_length, ledger):
            part = rows.iloc[done : (done := done + len(ids))]
            kept.append(_as_batch(part, labels, ids, features.arrow_schema))
        info = DatasetInfo(features=features)
        whole = InMemoryTable(kept.table())
        # Left to find a fingerprint of its own, Dataset pickles all rows.
        digest = split_digest(whole)
        tokenized[name] = Dataset(whole, info, NamedSplit(name), fingerprint=digest[:16])
    return DatasetDict(tokenized)


def _read(
    rows: pd.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    ledger: Ledger | None,
) -> Iterator[pa.ListArray]:
    if ledger:
        yield from ledger.texts.token_ids(rows)
        return
    for start in range(0, len(rows), TOKENIZE_ROWS):
        texts = rows["text"].iloc[start : start + TOKENIZE_ROWS].tolist()
        yield read_tokens(pa.array(texts, pa.string()), tokenizer, max_length)


def _as_batch(
    rows: pd.DataFrame, labels: list[str], ids: pa.ListArray, schema: pa.Schema
) -> pa.RecordBatch:
    lengths = ids.value_lengths()
    mask = np.ones(len(ids.flatten()), np.int8)
    offsets = offsets_of(lengths)
    return pa.record_batch(
        {
            "input_ids": ids,
            "attention_mask": pa.ListArray.from_arrays(offsets, mask),
            "labels": pd.Categorical(rows["label"], categories=labels).codes.astype(np.int64),
            "row_id": rows["row_id"].to_numpy(),
            "length": lengths,
            **{name: rows[name].to_numpy() for name in rows.columns.intersection(["unseen"])},
        }
    ).cast(schema)


def token_ids(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, **options: Any
) -> list[list[int]]:
    """Return the ids of each text, unpadded."""
    whole = {"padding": False, "return_attention_mask": False, "return_token_type_ids": False}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not texts:
        return []
    if backend:
        # One text says how to cut; the others take a third of the time without the rest of a call.
        first = tokenizer(texts[:1], verbose=False, **whole, **options)["input_ids"][0]
        with _all_cores():
            ids = [encoding.ids for encoding in backend.encode_batch_fast(texts)]
        if ids[0] == first:  # else the tokenizer does more than its backend
            return ids
    return tokenizer(texts, verbose=False, **whole, **options)["input_ids"]


@contextmanager
def _all_cores() -> Iterator[None]:
    """Let the tokenizer use them meanwhile; else a process that forks afterwards might hang."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "true"
    try:
        yield
    finally:
        os.environ[name] = before or "false"


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sha256 of what decides a tokenizer's ids: its rules and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python has no rules to write out
        return canonical_sha256([type(tokenizer).__name__, tokenizer.get_vocab()])
    # The last call's truncation and padding stay in the backend; they are not the tokenizer's own.
    return canonical_sha256({**json.loads(backend.to_str()), "truncation": None, "padding": None})
