"""What a clone in another folder is told about the files of this one."""

from __future__ import annotations

import io
import shutil

import pytest

from account_tax.errors import Refused
from account_tax.registry.record import Record
from account_tax.reproduce.ladder import localise, may_run, require_base
from tests.pipelines.register.conftest import LABELS, save_classifier


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


def test_without_its_base_nothing_is_said_of_a_version(tmp_path, tiny_base):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    save_classifier(tmp_path / "version", str(base), LABELS)
    require_base(tmp_path / "version")
    with (base / "config.json").open("a") as file:
        file.write("\n")
    require_base(tmp_path / "version")  # another base is for the rungs to tell
    base.rename(tmp_path / "moved")
    with pytest.raises(Refused, match=r"without the base\. train\.model\.name = .*no such folder"):
        require_base(tmp_path / "version")


TAGS = {"commit": "9" * 40, "patch_sha256": "8" * 64}
RECORD = Record(TAGS, patch=b"--- a/x\n+++ b/x\n+print('foreign')\n")


def ask(monkeypatch, answer, terminal=True):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{answer}\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: terminal, raising=False)
    return may_run(RECORD, "ask")


def test_what_will_be_run_is_said_and_asked_about(monkeypatch, capsys):
    assert ask(monkeypatch, "y")
    said = capsys.readouterr().out
    assert "as you: commit 999999999999 and code.patch 888888888888, a patch of 3 lines" in said
    assert not ask(monkeypatch, "")
    assert may_run(RECORD, "yes")
    assert not may_run(RECORD, "no")


def test_without_a_terminal_nothing_is_run_unasked(monkeypatch):
    with pytest.raises(Refused, match=r"run_code = ask \(-P run_code\): .*-P run_code=yes"):
        ask(monkeypatch, "y", terminal=False)
