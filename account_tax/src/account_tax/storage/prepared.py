"""Finding data that was prepared before from the same bytes and parameters."""

from __future__ import annotations

import json
from pathlib import Path

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
        if metadata.get("inputs_sha256") == key and _is_whole(folder, version.name):
            return version.name
    return None


def publish_prepared(scratch: Path, folder: Path, version: str) -> None:
    """Move a whole version from one folder to another of the same disk, its metadata last."""
    for dataset in ("tokenized_datasets", "tokenizer", NGRAMS_FILE, DATASET_METADATA_FILE):
        (folder / dataset).mkdir(parents=True, exist_ok=True)
        (scratch / dataset / version).rename(folder / dataset / version)


def _is_whole(folder: Path, version: str) -> bool:
    datasets = folder / "tokenized_datasets" / version / "tokenized_datasets"
    tokenizer = folder / "tokenizer" / version / "tokenizer"
    ngrams = folder / NGRAMS_FILE / version / NGRAMS_FILE
    needed = [tokenizer / "tokenizer_config.json", datasets / "dataset_dict.json"]
    for split in SPLITS:
        state = datasets / split / "state.json"
        if not state.is_file():
            return False
        files = json.loads(state.read_text("utf-8"))["_data_files"]
        needed += [datasets / split / file["filename"] for file in files]
    return all(path.is_file() for path in needed) and is_intact(ngrams)


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
