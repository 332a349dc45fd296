"""Finding data that was prepared before from the same bytes and parameters."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .files import read_json, sha256_of
from .names import DATASET_METADATA_FILE, NGRAMS_FILE, SPLITS


def find_prepared(folder: Path, key: str) -> str | None:
    """Return the newest whole version under data/04_feature made from these inputs, if any.

    Args:
        folder: Holds tokenized_datasets, tokenizer and so on, versioned by Kedro.
        key: See `inputs_sha256`.
    """
    for version in sorted((folder / DATASET_METADATA_FILE).glob("*"), reverse=True):
        metadata = read_json(version / DATASET_METADATA_FILE)  # empty where it was not finished
        if metadata.get("inputs_sha256") == key and _is_whole(folder, metadata, version.name):
            return version.name
    return None


def publish_prepared(scratch: Path, folder: Path, version: str) -> None:
    """Move a whole version from one folder to another of the same disk, its metadata last."""
    for dataset in ("tokenized_datasets", "tokenizer", NGRAMS_FILE, DATASET_METADATA_FILE):
        (folder / dataset).mkdir(parents=True, exist_ok=True)
        (scratch / dataset / version).rename(folder / dataset / version)


def _is_whole(folder: Path, metadata: Mapping[str, Any], version: str) -> bool:
    datasets = folder / "tokenized_datasets" / version / "tokenized_datasets"
    tokenizer = folder / "tokenizer" / version / "tokenizer"
    ngrams = folder / NGRAMS_FILE / version / NGRAMS_FILE
    needed = [tokenizer / "tokenizer_config.json", datasets / "dataset_dict.json"]
    return (
        all(path.is_file() for path in needed)
        and is_intact(ngrams)
        and all(_has_its_rows(datasets / name, metadata, name) for name in SPLITS)
    )


def _has_its_rows(folder: Path, metadata: Mapping[str, Any], name: str) -> bool:
    """Return whether a split still is what its metadata says, so also what a version will say."""
    try:
        info, state = (read_json(folder / file) for file in ("dataset_info.json", "state.json"))
        files = [folder / each["filename"] for each in state["_data_files"]]
        tables = [pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files]
        names = info["features"]["labels"]["names"]
        digest, split = split_digest(pa.concat_tables(tables)), metadata["splits"][name]
        return names == list(split["classes"]) and digest == split["sha256"]
    except (OSError, KeyError, pa.ArrowException):
        return False


def split_digest(table: Any) -> str:
    """Return the sha256 of a split's content: the same for the same rows on any machine.

    Hashed are, as little-endian integers, the number of rows (int64), then all lengths (int32),
    all token ids (int32), all label ids (int64) and all row ids (int64).

    Args:
        table: An Arrow table, or what datasets has for one.
    """
    digest = hashlib.sha256(np.int64(table.num_rows).astype("<i8").tobytes())
    columns = {"length": "<i4", "input_ids": "<i4", "labels": "<i8", "row_id": "<i8"}
    for column, kind in columns.items():
        for chunk in table.column(column).chunks:
            values = chunk.flatten() if isinstance(chunk, pa.ListArray) else chunk
            digest.update(values.to_numpy(zero_copy_only=False).astype(kind).tobytes())
    return digest.hexdigest()


def digest_file(file: Path) -> Path:
    """Return where the sha256 of a file stands, beside it."""
    return file.with_name(f"{file.name}.sha256")


def is_intact(file: Path) -> bool:
    """Return whether a file is there, and as it was written."""
    expected = digest_file(file)
    return (
        file.is_file()
        and expected.is_file()
        and expected.read_text(encoding="ascii") == sha256_of(file)
    )
