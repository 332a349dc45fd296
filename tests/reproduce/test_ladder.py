"""What a clone in another folder is told about the files of this one."""

from __future__ import annotations

import pytest

from account_tax.reproduce.ladder import localise


@pytest.mark.parametrize(
    ("source", "given", "found"),
    [
        ("books/ledger.csv", None, "{}/books/ledger.csv"),
        ("books/ledger.csv", "moved.csv", "{}/moved.csv"),
        ("sample", None, "sample"),
        ("s3://books/ledger.csv", None, "s3://books/ledger.csv"),
    ],
)
def test_files_are_named_so_that_any_folder_finds_them(tmp_path, source, given, found):
    data = {"source": source, "label_map": "books/map.csv", "max_length": 32}
    parameters = {"data": data, "train": {"model": {"name": "some/base"}}}
    assert localise(parameters, tmp_path, given) == {
        "data": {
            "source": found.format(tmp_path),
            "label_map": f"{tmp_path}/books/map.csv",
            "max_length": 32,
        },
        "train": {"model": {"name": "some/base"}},
    }


def test_a_file_in_the_home_folder_and_no_map_are_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    parameters = {"data": {"source": "~/ledger.csv"}, "train": {"model": {"name": "some/base"}}}
    assert localise(parameters, tmp_path, None)["data"] == {
        "source": str(tmp_path / "home" / "ledger.csv")
    }
