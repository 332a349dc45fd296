"""A source is a file, a folder or a glob, wherever it lies and whatever its name."""

from __future__ import annotations

import gzip
import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from account_tax.errors import Refused
from account_tax.ledger.reading import DataError, read_ledger
from account_tax.ledger.sources import digest_files, find_files

LINES = [(f"line {i}", "ab"[i % 2]) for i in range(12)]


def write(path, rows=LINES):
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows, columns=["text", "label"])
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    return path


def texts(parameters, source):
    ledger = read_ledger(parameters(source))
    return sorted(ledger.texts.of(ledger.frame))


@pytest.mark.parametrize("kind", [".csv", ".snappy.parquet"])
def test_a_folder_of_parts_is_one_ledger(parameters, tmp_path, kind):
    folder = tmp_path / f"ledger{kind}"
    for part in range(3):
        write(folder / f"part-{part:05d}{kind}", LINES[part * 4 : part * 4 + 4])
    write(folder / f"part-00003{kind}", [])
    for name in ("_SUCCESS", ".part-00000.crc"):
        (folder / name).write_bytes(b"x")
    ledger = read_ledger(parameters(folder))
    assert ledger.texts.of(ledger.frame) == [text for text, _ in LINES]
    assert ledger.frame["row_id"].tolist() == list(range(12))
    assert texts(parameters, f"{folder}/part-*[0-1]{kind}") == [
        *map("line {}".format, [0, 1, *range(2, 8)])
    ]


@pytest.mark.parametrize("name", ["validation", "val", "valid", "dev", "Val"])
def test_a_split_folder_may_name_validation_as_others_do(parameters, tmp_path, name):
    write(tmp_path / "data/train.csv", LINES[:8])
    write(tmp_path / f"data/{name}.csv", LINES[8:10])
    path = write(tmp_path / "data/test.csv", LINES[10:])
    (tmp_path / "data/README.md").write_text("x")
    frame = read_ledger(parameters(path.parent)).frame
    assert frame["split"].value_counts().to_dict() == {"train": 8, "validation": 2, "test": 2}


def test_two_files_for_one_split_are_refused(tmp_path):
    for name in ("train", "test", "val", "dev"):
        write(tmp_path / f"{name}.csv")
    with pytest.raises(Refused, match=r"two files for one split, found \['dev.csv', .*'val.csv'\]"):
        find_files(str(tmp_path), tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "book.pdf").write_bytes(b"x")
    with pytest.raises(Refused, match="a folder without a file of a ledger"):
        find_files(str(tmp_path), tmp_path)


def test_what_others_leave_beside_the_parts_stops_nothing(parameters, tmp_path):
    path = write(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"")  # a part without rows
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / "~$a.csv").write_bytes(b"x")
    ledger = read_ledger(parameters(tmp_path))
    assert sorted(ledger.texts.of(ledger.frame)) == sorted(text for text, _ in LINES)
    assert ledger.found[1] == {"file": "b.csv", "format": "empty"}
    assert texts(parameters, f"{tmp_path}/*.csv") == texts(parameters, path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_refused_before_it_is_read(parameters, tmp_path, kind):
    write(tmp_path / "a.csv")
    make = {"folder": Path.mkdir, "pipe": os.mkfifo, "link": lambda at: at.symlink_to("nowhere")}
    make[kind](tmp_path / "b.csv")
    with pytest.raises(DataError, match=r"b\.csv is no file, but a folder, a pipe"):
        read_ledger(parameters(tmp_path))


def test_a_saved_dataset_is_read(parameters, tmp_path):
    dataset = Dataset.from_dict({"text": [t for t, _ in LINES], "label": [n for _, n in LINES]})
    dataset.save_to_disk(tmp_path / "one")
    assert texts(parameters, tmp_path / "one") == sorted(text for text, _ in LINES)
    parts = {"train": range(8), "validation": range(8, 10), "test": range(10, 12)}
    DatasetDict({name: dataset.select(rows) for name, rows in parts.items()}).save_to_disk(
        tmp_path / "three"
    )
    frame = read_ledger(parameters(tmp_path / "three")).frame
    assert frame["split"].value_counts().to_dict() == {"train": 8, "validation": 2, "test": 2}


def test_class_labels_of_a_saved_dataset_are_their_names(parameters, tmp_path):
    names = ["travel", "rent"]
    dataset = Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]})
    dataset.cast_column("label", ClassLabel(names=names)).save_to_disk(tmp_path / "one")
    assert read_ledger(parameters(tmp_path / "one")).frame["label"].tolist() == [
        "travel", "rent", "travel"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a::b.csv", "장부 2024.csv", "a#b?.csv", "x.CSV", "a[1].csv"])
def test_a_local_file_may_have_any_name(parameters, tmp_path, name):
    assert len(texts(parameters, write(tmp_path / name))) == 12


def test_a_name_in_nfd_is_found_as_it_is_typed(parameters, tmp_path):
    nfd = unicodedata.normalize("NFD", "장부/거래.csv")
    write(tmp_path / nfd)
    assert len(texts(parameters, tmp_path / "장부" / "거래.csv")) == 12


def test_the_home_folder_may_be_written_short(parameters, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "ledger.csv")
    assert len(texts(parameters, "~/ledger.csv")) == 12


def test_a_uri_may_be_packed_or_a_folder(parameters):
    import fsspec

    raw = "text,label\n" + "".join(f"{text},{label}\n" for text, label in LINES)
    for path, part in {
        "x.csv.gz": raw,
        "parts/a.csv.gz": raw,
        "parts/b.csv.gz": "text,label\nq,a",
    }.items():
        with fsspec.open(f"memory://books/{path}", "wb") as file:
            file.write(gzip.compress(part.encode()))
    assert len(texts(parameters, "memory://books/x.csv.gz")) == 12
    assert len(texts(parameters, "memory://books/parts")) == 13
    assert len(texts(parameters, "memory://books/parts/*.gz")) == 13


def test_a_folders_digest_knows_each_part(tmp_path):
    write(tmp_path / "data/a.csv")
    write(tmp_path / "data/b.csv")
    before = digest_files(find_files(str(tmp_path / "data"), tmp_path))
    (tmp_path / "data/b.csv").rename(tmp_path / "data/c.csv")
    assert digest_files(find_files(str(tmp_path / "data"), tmp_path)) != before
