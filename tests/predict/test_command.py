"""A ledger in, the same ledger with accounts out: whole, in order, or not at all."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import unicodedata
from codecs import BOM_UTF8
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from account_tax.model.classifier import has_bf16, needs_review
from account_tax.review.allowed import Proposal
from account_tax.review.decision import decide
from account_tax.storage.names import BF16_TAG
from tests.commands import as_words, call

from .conftest import (
    LABELS,
    NOT_GIVEN,
    Shop,
    make_rows,
    read_ledger,
    register_random,
    write_ledger,
)

ROOT = Path(__file__).resolve().parents[2]
FORMATS = ("csv", "jsonl", "parquet")
ADDED = ["label", "score", "needs_review"]


def newest_run(shop):
    return MlflowClient(shop.store).search_runs(["0", "1"], max_results=1)[0]


def test_the_end_tells_rows_by_account(file_with, ledger, output, capfd):
    assert file_with(input=ledger, output=output, batch_rows=16) == 0
    found = read_ledger(output)
    said = capfd.readouterr().out
    for label, rows in found.groupby("label"):
        review = (rows["needs_review"] == "true").sum()
        assert f"{label:<24} {len(rows):,} ({review:,} for review)" in said


@pytest.mark.parametrize(("last", "value", "digits"), [("0,25", 0.25, 2), ("25", 25, 0)])
def test_the_end_tells_sums_by_account(file_with, tmp_path, capfd, last, value, digits):
    """Whether 1.500 is one and a half or many, the column's last row says."""
    amounts = ["1.500", "-2.000", "(3)", "soon", "", "4", "2.000-", last]
    lines = [f"coffee {i % 2};taxi;{amount}" for i, amount in enumerate(amounts)]
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("\n".join(["memo;merchant;sum", *lines]) + "\n")
    assert file_with(input=source, output=output, batch_rows=3, amount_column="sum") == 0
    said = capfd.readouterr().out
    values = np.array([1500, -2000, -3, 0, 0, 4, -2000, value])
    labels = [line.split(";")[3] for line in output.read_text().splitlines()[1:]]
    for label in set(labels):
        total = values[[each == label for each in labels]].sum()
        assert re.search(rf"^{label} .* for review\), amount {total:,.{digits}f}$", said, re.M)
    assert re.search(r"^amounts +2 rows have none that can be read$", said, re.M)
    missing = tmp_path / "other.csv"
    assert file_with(input=source, output=missing, amount_column="total") == 2
    said = capfd.readouterr().err
    assert "expected the columns ['memo', 'merchant', 'total']" in said
    assert "Rename the column or set --amount_column." in said


def test_cells_that_a_spreadsheet_runs_are_said_and_stay(file_with, tmp_path, capfd):
    notes = [
        "=1+1",
        "+A1",
        "@SUM(A1)",
        "-5",
        "-1.234,50",
        "-",
        "'=1",
        "a=b",
        "-A1",
        '"=""x"""',
        "+82",
    ]
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    lines = [f"{note};coffee;taxi" for note in notes]
    source.write_text("\n".join(["note;memo;merchant", *lines]) + "\n")
    assert file_with(input=source, output=output, batch_rows=3) == 0
    said = capfd.readouterr().out
    assert "in 5 of the rows: =, +, - or @ begins a cell, which a spreadsheet runs" in said
    assert [line.rsplit(";", 3)[0] for line in output.read_text().splitlines()[1:]] == lines
    assert file_with(input=source, output=tmp_path / "out.jsonl") == 0
    assert "formulas" not in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_ledger_comes_in_and_goes_out_by_streams(
    file_with, tmp_path, monkeypatch, capfdbinary, kind
):
    source, output = write_ledger(tmp_path / f"in.{kind}", make_rows(30)), tmp_path / "out.jsonl"
    output = output.with_suffix(".jsonl" if kind == "jsonl" else ".csv")
    assert file_with(input=source, output=output) == 0
    capfdbinary.readouterr()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
    assert file_with(input="-", output="-") == 0
    said = capfdbinary.readouterr()
    assert said.out == output.read_bytes()
    assert b"rows written" in said.err
    assert sorted(tmp_path.iterdir()) == sorted([source, output])


def test_rejects_go_where_they_are_asked_for(file_with, ledger, output, tmp_path, capfdbinary):
    with ledger.open("a") as file:
        file.write("1,2,3,4,5\n")
    assert file_with(input=ledger, output=output, errors=tmp_path / "errors.jsonl") == 3
    rejects = (tmp_path / "errors.jsonl").read_bytes()
    assert b"5 fields where the header has 4" in rejects
    assert not output.with_name("filed.csv.rejects.jsonl").exists()
    capfdbinary.readouterr()
    assert file_with(input=ledger, output="-") == 3
    said = capfdbinary.readouterr()
    assert said.out == output.read_bytes()
    assert rejects in said.err
    assert b"standard error has their line numbers and reasons. All others are in" in said.err
    assert file_with(input=ledger, output=output, overwrite="true", errors="no/e.jsonl") == 2
    assert b"errors = no/e.jsonl (--errors): " in capfdbinary.readouterr().err


@pytest.mark.parametrize("where", ["closed", "full"])
def test_a_standard_output_that_takes_no_more_is_said(file_with, ledger, monkeypatch, capfd, where):
    """As `| head` closes it; the second is a device that is full however little is written."""
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "w") if where == "full" else os.fdopen(writing, "w") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        assert file_with(input=ledger, output="-") == 1
    said = capfd.readouterr().err
    why = "No space left on device" if where == "full" else "Broken pipe"
    assert f"standard output did not take all rows ({why}). Name a file: --output." in said
    assert "Traceback" not in said


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("origin", FORMATS)
def test_every_format_goes_to_every_other(file_with, shop, tmp_path, origin, target):
    rows = make_rows(60)
    source = write_ledger(tmp_path / f"in.{origin}", rows)
    output = tmp_path / f"out.{target}"
    assert file_with(input=source, output=output, batch_rows=16) == 0
    found = read_ledger(output)
    assert list(found.columns) == ["id", "memo", "merchant", "note", *ADDED]
    assert found[["id", "memo", "merchant", "note"]].to_dict("records") == rows
    expected = shop.model().predict(pd.DataFrame(rows))
    assert found["label"].tolist() == expected["label"].tolist()
    assert found["score"].astype(float).tolist() == pytest.approx(expected["score"], abs=1e-5)
    flags = found["needs_review"].astype(str).str.lower() == "true"
    assert (
        flags.tolist()
        == needs_review(found["label"], found["score"].astype(float), {"threshold": 0.8}).tolist()
    )
    assert 0 < flags.sum() < 60  # else it says nothing
    assert found["label"].nunique() > 1
    assert [file.name for file in sorted(tmp_path.iterdir())] == sorted([source.name, output.name])


def test_a_csv_files_own_bytes_stay(file_with, tmp_path):
    head = '\ufeffid;"memo";merchant;empty;empty\r\n'
    records = ['0012;"coffee ; ""lunch""\r\nrent";;;x', '" 7";taxi;"hotel";"";', "8;' tax';;1,5;"]
    source = tmp_path / "in.csv"
    source.write_bytes((head + "\r\n\r\n".join(records)).encode())  # with blank lines, without end
    output = tmp_path / "out.csv"
    assert file_with(input=source, output=output) == 0
    lines = output.read_bytes().decode()
    assert lines.startswith("\ufeffid;memo;merchant;empty;empty;label;score;needs_review\r\n")
    for record in records:
        assert f"\r\n{record};" in lines
    assert lines.endswith("\r\n")
    assert lines.count(";true\r\n") + lines.count(";false\r\n") == 3


def test_a_korean_excel_file_comes_back_as_utf_8_that_excel_knows(file_with, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes("장부\r\n\r\nid;memo;merchant\r\n1;택시;\r\n".encode("cp949"))
    assert file_with(input=source, output=output) == 0
    lines = output.read_bytes().decode("utf-8").split("\r\n")
    assert lines[0] == "\ufeffid;memo;merchant;label;score;needs_review"
    assert lines[1].startswith("1;택시;;")


def test_a_json_files_own_bytes_stay(file_with, tmp_path):
    objects = ['{"memo": "coffee", "sum": 0.50, "big": 12345678901234567890}',
               '{ "merchant":"taxi" , "tags": [1, {"a": null}], "ok": true }']  # fmt: skip
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n\n".join(objects), encoding="utf-8")
    assert file_with(input=source, output=output) == 0
    for line, item in zip(output.read_text("utf-8").splitlines(), objects, strict=True):
        assert line.startswith(item[:-1].rstrip() + ', "label": ')
        assert json.loads(line).keys() == {*json.loads(item), *ADDED}


def test_json_values_as_text_are_as_they_were_written(file_with, tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    source.write_text(
        '{"memo": "coffee", "merchant": "", "sum": 0.50, "no": null}\n'
        '{"memo": "rent", "tags": [1, "x"], "ok": true}\n'
    )
    assert file_with(input=source, output=output) == 0
    found = read_ledger(output)
    assert found["sum"].tolist() == ["0.50", ""]
    assert found["tags"].tolist() == ["", '[1, "x"]']
    assert found["ok"].tolist() == ["", "true"]
    assert found["no"].tolist() == ["", ""]


def test_a_parquet_files_types_stay(file_with, tmp_path):
    table = pa.table(
        {
            "memo": pa.array(["coffee", "taxi", "rent"]).dictionary_encode(),
            "merchant": pa.array([12, None, 7], pa.int64()),
            "sum": pa.array([1, 2, None], pa.decimal128(9, 2)),
            "day": pa.array([0, 1, 2], pa.date32()),
            "nested": pa.array([[1], [], None], pa.list_(pa.int8())),
        }
    )
    source, output = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, source)
    assert file_with(input=source, output=output, batch_rows=2) == 0
    found = pq.read_table(output)
    assert found.select(table.column_names).equals(table)
    added = {"label": pa.string(), "score": pa.float64(), "needs_review": pa.bool_()}
    assert {name: found.schema.field(name).type for name in ADDED} == added


def test_top_k_adds_the_next_labels_by_falling_score(file_with, ledger, output):
    assert file_with(input=ledger, output=output, top_k=3) == 0
    found = read_ledger(output)
    assert list(found.columns)[4:] == [
        *("label", "score", "label_2", "score_2", "label_3", "score_3", "needs_review")
    ]
    scores = found[["score", "score_2", "score_3"]].astype(float).to_numpy()
    assert (np.diff(scores, axis=1) <= 0).all()
    assert scores.sum(axis=1) == pytest.approx(np.ones(60), abs=3e-6)
    labels = found[["label", "label_2", "label_3"]].to_numpy()
    assert all(set(row) == set(LABELS) for row in labels)


def test_a_threshold_of_ones_own_decides_who_looks(file_with, ledger, output):
    assert file_with(input=ledger, output=output, threshold=1) == 0
    assert set(read_ledger(output)["needs_review"]) == {"true"}
    assert file_with(input=ledger, output=output, threshold=0, overwrite="true") == 0
    assert set(read_ledger(output)["needs_review"]) == {"false"}


def test_the_size_of_a_batch_changes_no_label_and_no_order(file_with, ledger, tmp_path):
    found = []
    for size in (1, 7, 1000):
        output = tmp_path / f"{size}.csv"
        assert file_with(input=ledger, output=output, batch_rows=size) == 0
        found.append(read_ledger(output))
    for other in found[1:]:
        assert other.drop(columns="score").equals(found[0].drop(columns="score"))


@pytest.mark.parametrize(
    ("share", "words", "expected", "why"),
    [
        (None, {}, "fp32", "it was not compared with bf16 when it was registered"),
        ("0.002", {}, "fp32", "0.20% of its validation rows get another label in bf16"),
        ("0.001", {}, "bf16", "0.10% of its validation rows get another label in bf16"),
        ("0", {"precision": "fp32"}, "fp32", "as asked"),
        ("few", {}, "fp32", "its tag bf16_other_labels is no number"),
    ],
)
def test_bf16_is_used_where_labels_stay(
    file_with, shop, ledger, tmp_path, capfd, share, words, expected, why
):
    if not words and not has_bf16("cuda" if torch.cuda.is_available() else "cpu"):
        pytest.skip("this machine has no bf16")
    client, plain, output = MlflowClient(shop.store), tmp_path / "fp32.csv", tmp_path / "out.csv"
    assert file_with(input=ledger, output=plain, precision="fp32") == 0
    capfd.readouterr()
    if share:
        client.set_model_version_tag("account-tax", "1", BF16_TAG, share)
    try:
        assert file_with(input=ledger, output=output, **words) == 0
    finally:
        client.delete_model_version_tag("account-tax", "1", BF16_TAG) if share else None
    assert f"in {expected} ({why})" in capfd.readouterr().out
    assert newest_run(shop).data.tags["account_tax.precision"] == expected
    assert (output.read_bytes() == plain.read_bytes()) == (expected == "fp32")


@pytest.mark.parametrize("target", FORMATS)
def test_a_ledger_without_rows_gives_one_without_rows(file_with, tmp_path, target):
    source, output = tmp_path / "in.csv", tmp_path / f"out.{target}"
    source.write_text("memo,merchant\n")
    assert file_with(input=source, output=output) == 0
    if target == "jsonl":
        assert output.read_bytes() == b""
    else:
        assert list(read_ledger(output).columns) == ["memo", "merchant", *ADDED]


# --- rows that can't be filed ---------------------------------------------------------------------


def test_bad_csv_rows_are_listed_and_the_rest_is_filed(file_with, tmp_path, capfd):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    secret = "Confidential4711"
    lines = [
        b"id,memo,merchant",
        b"2,coffee,taxi",
        b"3,too few " + secret.encode(),
        b"4,too,many,fields " + secret.encode(),
        "5,한글 ".encode()[:-2] + secret.encode() + b",x",
        b"6,,",
        b'7,"never closed ' + secret.encode() + b",x",
        "8,점심,".encode(),
        b'9,"two\nlines",fee',
        b'11,"a"b,x',
        b"12,rent,",
    ]
    source.write_bytes(b"\n".join(lines))
    assert file_with(input=source, output=output) == 3
    assert read_ledger(output)["id"].tolist() == ["2", "8", "9", "12"]
    listed = (tmp_path / "out.csv.rejects.jsonl").read_text()
    rejects = {row["line"]: row["reason"] for row in map(json.loads, listed.splitlines())}
    assert rejects == {
        3: "2 fields where the header has 3",
        4: "4 fields where the header has 3",
        5: "bytes that are not UTF-8",
        6: "no text in memo, merchant",
        7: "a quote that is not closed",
        11: "text after a closing quote",
    }
    said = capfd.readouterr()
    assert "6 rows can't be filed" in said.err
    assert secret not in said.out + said.err + listed


def test_a_total_is_for_review_and_said_to_be_in_the_sums(file_with, tmp_path, capfd):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    texts = ["taxi", "합 계", "2024년 5월 합계", "Grand Total", "TOTAL 0412", "합계표 용지"]
    lines = ["memo,merchant,amount", *(f"{text},,10" for text in texts)]
    source.write_text("\n".join(lines))
    assert file_with(input=source, output=output, amount_column="amount", threshold=0.0) == 0
    review = read_ledger(output)["needs_review"].str.lower().tolist()
    assert review == ["false", "true", "true", "true", "true", "false"]
    assert "4 rows read as such: for review, and in the sums below" in capfd.readouterr().out


def test_part_files_are_filed_as_one_and_a_reject_names_its_file(file_with, tmp_path):
    rows, folder, output = make_rows(60), tmp_path / "parts", tmp_path / "out.jsonl"
    folder.mkdir()
    for part in range(3):
        write_ledger(folder / f"part-{part}.csv", rows[part * 20 : part * 20 + 20])
    with (folder / "part-1.csv").open("a") as file:
        file.write("a,b\n")
    assert file_with(input=folder, output=output, batch_rows=16, on_error="skip") == 0
    assert [row["id"] for row in read_ledger(output).to_dict("records")] == [
        row["id"] for row in rows
    ]
    (listed,) = (tmp_path / "out.jsonl.rejects.jsonl").read_text().splitlines()
    reason = "2 fields where the header has 4"
    lines = (folder / "part-1.csv").read_text().count("\n")
    assert json.loads(listed) == {"file": "part-1.csv", "line": lines, "reason": reason}


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".jsonl"])
def test_part_files_may_have_their_columns_in_another_order(file_with, tmp_path, ending):
    rows, folder, output = make_rows(40), tmp_path / "parts", tmp_path / f"out{ending}"
    folder.mkdir()
    write_ledger(folder / f"0{ending}", rows[:20])
    write_ledger(folder / f"1{ending}", [dict(reversed(row.items())) for row in rows[20:]])
    assert file_with(input=folder, output=output) == 0
    read = read_ledger(output)
    assert list(read)[: len(rows[0])] == list(rows[0])
    assert read[list(rows[0])].to_dict("records") == rows


def test_part_files_with_other_columns_are_refused(file_with, tmp_path, capfd):
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, names in enumerate(["memo,merchant", "merchant,memo,id", "memo"]):
        (folder / f"{number}.csv").write_text(f"{names}\n{names}\n")
    said = refused(file_with, capfd, tmp_path, input=folder, output=tmp_path / "out.csv")
    assert "1.csv: it has other columns than the first file. 2.csv: expected the col" in said
    said = refused(file_with, capfd, tmp_path, input=folder, output=folder / "out.csv")
    assert "it lies in the folder that is read" in said


def test_how_the_input_was_read_is_said_and_kept_with_the_run(file_with, shop, tmp_path, capfd):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes("장부\nid;memo;merchant\n1;택시;\n".encode("cp949"))
    assert file_with(input=source, output=output) == 0
    words = "in.csv: csv, cp949, semicolon, header in row 2"
    assert f"predict: reads {words}\n" in capfd.readouterr().out
    assert newest_run(shop).data.tags["account_tax.input_read_as"] == words


def test_an_input_is_read_as_it_is_asked_for(file_with, tmp_path, capfd):
    text = "memo,merchant\nzu,lesen\nmemo,merchant\nОписание,Такси\nТакси,Обед\n"
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes(text.encode("cp1251"))
    said = refused(file_with, capfd, tmp_path, input=source, output=output)
    assert "Set --encoding to what it is" in said
    assert file_with(input=source, output=output, encoding="cp1251", header_row=3) == 0
    assert read_ledger(output)["merchant"].tolist() == ["Такси", "Обед"]


def test_a_ledger_of_which_no_row_is_filed_is_a_failure(file_with, tmp_path, capfd):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("memo,merchant\n택시,\n점심,\n", encoding="utf-8")
    asked = {"input": source, "output": output, "on_error": "skip", "encoding": "cp949"}
    assert file_with(**asked) == 3
    told = capfd.readouterr()
    assert "none of the 2 rows can be filed; " in told.err
    assert "Is the file written in cp949 (--encoding)?" in told.err
    assert "needs review" not in told.out
    said = refused(file_with, capfd, tmp_path, **asked | {"header_row": 3, "overwrite": True})
    assert "because --encoding says cp949 and --header_row says 3" in said


def test_a_sheet_can_be_named(file_with, tmp_path, capfd):
    book, output = tmp_path / "in.xlsx", tmp_path / "out.csv"
    with pd.ExcelWriter(book) as writer:
        for name in ("January", "February"):
            pd.DataFrame({"memo": [name], "merchant": ["x"]}).to_excel(
                writer, sheet_name=name, index=False
            )
    said = refused(file_with, capfd, tmp_path, input=book, output=output)
    assert "Set --sheet to one of them" in said
    assert file_with(input=book, output=output, sheet="February") == 0
    assert read_ledger(output)["memo"].tolist() == ["February"]
    assert output.read_bytes().startswith(BOM_UTF8)  # by which Excel knows it is UTF-8


def test_rows_that_can_be_skipped_are_no_failure(file_with, tmp_path, capsys):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(
        b'{"memo": "coffee", "merchant": 7}\n{"memo": \n[1]\n{"memo": "\\ud800"}\n'
        b'{"memo": "\xff"}\n{"x": 1}\n'
    )
    assert file_with(input=source, output=output, on_error="skip") == 0
    assert len(output.read_text().splitlines()) == 1
    listed = (tmp_path / "out.jsonl.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in listed] == [2, 3, 4, 5, 6]
    assert "rows rejected            5 (out.jsonl.rejects.jsonl)" in capsys.readouterr().out


def test_rejects_of_an_earlier_time_do_not_stay(file_with, tmp_path):
    source, output = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("memo,merchant\nx\n")
    assert file_with(input=source, output=output) == 3
    source.write_text("memo,merchant\ncoffee,\n")
    assert file_with(input=source, output=output, overwrite="true") == 0
    assert not (tmp_path / "out.csv.rejects.jsonl").exists()


# --- refused before anything is written -----------------------------------------------------------


def refused(file_with, capfd, folder, **words):
    before = sorted(folder.iterdir())
    assert file_with(**words) == 2
    assert sorted(folder.iterdir()) == before
    said = capfd.readouterr().err
    assert "Traceback" not in said
    return said


def test_all_words_that_can_not_be_read_are_told_at_once(file_with, shop, tmp_path, capfd):
    before = newest_run(shop).info.run_id
    said = refused(
        file_with, capfd, tmp_path,
        model="none", input="x", output="y", top_k="two", threshold="1.5", on_error="ignore",
    )  # fmt: skip
    assert said.startswith("4 problems in the options")
    for part in (
        "top_k = two (--top_k): expected a whole number of at least 1.",
        "threshold = 1.5 (--threshold)",
        "on_error = ignore (--on_error): expected one of fail, skip.",
        "model: missing; expected a name.",
    ):
        assert part in said
    assert newest_run(shop).info.run_id == before


def test_all_faults_of_files_and_model_are_told_at_once(file_with, tmp_path, capfd):
    said = refused(
        file_with, capfd, tmp_path,
        model="models:/account-tax@champion", input=tmp_path / "none.csv",
        output=tmp_path / "missing/out.xlsx",
    )  # fmt: skip
    assert said.startswith("4 problems with the prediction; nothing was written")
    for part in (
        "account-tax champion", "challenger is 1",
        "none.csv (--input): no such file or folder.",
        "out.xlsx (--output): expected a file name that ends in .csv, .parquet or .jsonl.",
        "its folder does not exist",
    ):  # fmt: skip
        assert part in said


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty"),
        (
            b"memo,shop\nx,y\n",
            "expected the columns ['memo', 'merchant'], found ['memo', 'shop']. Rename the column.",
        ),
        (b"memo,merchant,label\nx,y,z\n", "it has the columns ['label'], which are added here"),
        (b"memo,memo,merchant\nx,y,z\n", "the columns ['memo'] stand there more than once"),
        ("memo".encode("utf-16"), "expected the columns ['memo', 'merchant'], found ['memo']."),
    ],
)
def test_a_ledger_that_can_not_be_read_is_refused(file_with, tmp_path, capfd, content, told):
    source = tmp_path / "in.csv"
    source.write_bytes(content)
    assert told in refused(file_with, capfd, tmp_path, input=source, output=tmp_path / "out.csv")


def test_a_first_line_of_ledger_text_is_not_shown(file_with, tmp_path, capfd):
    source = tmp_path / "in.csv"
    source.write_text("Confidential4711 taxi,3.50\n")
    said = refused(file_with, capfd, tmp_path, input=source, output=tmp_path / "out.csv")
    assert "Confidential" not in said
    assert "found none of them in the first 100 lines; a row has 2 fields" in said


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl"])
def test_a_file_that_is_not_what_its_name_says_is_refused(file_with, tmp_path, capfd, name):
    source = tmp_path / name
    source.write_text("coffee\n")
    said = refused(file_with, capfd, tmp_path, input=source, output=tmp_path / "out.csv")
    assert f"{name} (--input): " in said


def test_more_labels_than_there_are_is_refused(file_with, ledger, output, tmp_path, capfd):
    said = refused(file_with, capfd, tmp_path, input=ledger, output=output, top_k=4)
    assert "top_k = 4 (--top_k): account-tax version 1 knows 3 labels." in said


def test_an_output_that_is_there_is_not_replaced_unasked(
    file_with, ledger, output, tmp_path, capfd
):
    output.write_text("precious")
    said = refused(file_with, capfd, tmp_path, input=ledger, output=output)
    assert "filed.csv exists. Give --overwrite=true" in said
    assert output.read_text() == "precious"
    said = refused(file_with, capfd, tmp_path, input=ledger, output=ledger, overwrite="true")
    assert "it is the input" in said


@pytest.mark.parametrize("beside", ["errors", "default"])
def test_the_list_of_what_can_not_be_filed_replaces_no_ledger(
    file_with, ledger, tmp_path, capfd, beside
):
    output = tmp_path / "out.csv"
    source = tmp_path / "out.csv.rejects.jsonl"  # where the list would be
    lines = [json.dumps({"memo": memo, "merchant": "taxi"}) for memo in ("coffee", "lunch")]
    source.write_text("\n".join(lines) + "\n")
    before, given = source.read_bytes(), {"errors": source} if beside == "errors" else {}
    said = refused(
        file_with, capfd, tmp_path, input=source, output=output, overwrite="true", **given
    )
    assert f"errors = {source} (--errors): it is the input" in said
    assert source.read_bytes() == before


def test_the_list_of_what_can_not_be_filed_is_not_the_output(
    file_with, ledger, output, tmp_path, capfd
):
    given = {"input": ledger, "output": output, "errors": output, "overwrite": "true"}
    said = refused(file_with, capfd, tmp_path, **given)
    assert f"errors = {output} (--errors): it is the output." in said


def test_the_list_of_what_can_not_be_filed_is_no_stream(file_with, ledger, output, tmp_path, capfd):
    said = refused(file_with, capfd, tmp_path, input=ledger, output=output, errors="-")
    assert "errors = - (--errors): expected the name of a file." in said


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("~/l.csv", "l.csv"),
        ("**/*.csv", "a/b/l.csv"),
        ("장부.csv", "장부.csv"),
        (".", "train/l.csv"),
    ],
)
def test_an_input_however_it_is_named_is_not_replaced(
    file_with, ledger, tmp_path, capfd, monkeypatch, asked, name
):
    monkeypatch.setenv("HOME", str(tmp_path / "in"))
    there = tmp_path / "in" / unicodedata.normalize("NFD", name)  # as macOS writes it
    there.parent.mkdir(parents=True)
    there.write_bytes(ledger.read_bytes())
    if asked == ".":
        for split in ("validation", "test"):
            (tmp_path / "in" / split).mkdir()
            (tmp_path / "in" / split / "l.csv").write_bytes(ledger.read_bytes())
    given = asked if asked.startswith("~") else tmp_path / "in" / asked
    said = refused(file_with, capfd, tmp_path, input=given, output=there, overwrite="true")
    assert "it is the input, or a part of it" in said
    assert there.read_bytes() == ledger.read_bytes()


def test_a_pipe_is_not_replaced(file_with, ledger, output, tmp_path, capfd):
    os.mkfifo(tmp_path / "pipe")
    given = {"input": ledger, "output": output, "errors": tmp_path / "pipe", "overwrite": "true"}
    assert "it is a device or a pipe" in refused(file_with, capfd, tmp_path, **given)


@pytest.mark.parametrize(
    ("name", "why"), [("a.csv", "it is the input, or a part"), ("c.csv", "it would be a part")]
)
def test_an_output_among_the_part_files_of_a_glob_is_refused(
    file_with, ledger, tmp_path, capfd, name, why
):
    parts = tmp_path / "parts"
    parts.mkdir()
    for part in ("a.csv", "b.csv"):
        (parts / part).write_bytes(ledger.read_bytes())
    given = {"input": parts / "*.csv", "output": parts / name, "overwrite": "true"}
    assert why in refused(file_with, capfd, tmp_path, **given)
    assert (parts / "a.csv").read_bytes() == ledger.read_bytes()


def test_a_folder_that_takes_no_file_is_refused(file_with, ledger, tmp_path, capfd):
    said = refused(file_with, capfd, tmp_path, input=ledger, output="/proc/out.csv")
    assert "output = /proc/out.csv (--output)" in said


def test_a_changed_file_of_the_version_is_refused(file_with, shop, ledger, output, tmp_path, capfd):
    (adapter,) = shop.folder.glob("mlruns/**/adapter_model.safetensors")
    content = adapter.read_bytes()
    try:
        adapter.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        said = refused(file_with, capfd, tmp_path, input=ledger, output=output)
    finally:
        adapter.write_bytes(content)
    assert "adapter_model.safetensors: sha256" in said


def test_a_base_that_is_missing_is_refused(file_with, tiny_base, ledger, output, tmp_path, capfd):
    elsewhere = tiny_base.with_name("moved")
    tiny_base.rename(elsewhere)
    try:
        said = refused(file_with, capfd, tmp_path, input=ledger, output=output)
    finally:
        elsewhere.rename(tiny_base)
    assert f"train.model.name = {tiny_base}" in said


# --- the MLflow run -------------------------------------------------------------------------------


def test_the_run_has_counts_and_digests_but_no_text(file_with, shop, ledger, output):
    assert file_with(input=ledger, output=output) == 0
    run = newest_run(shop)
    assert run.info.status == "FINISHED"
    metrics = run.data.metrics
    assert (metrics["predict/rows_read"], metrics["predict/rows_written"]) == (60, 60)
    assert 0 < metrics["predict/needs_review_share"] < 1
    tags = run.data.tags
    assert tags["account_tax.input"] == "ledger.csv"
    assert tags["account_tax.model"] == "models:/account-tax/1"
    assert not MlflowClient(shop.store).list_artifacts(run.info.run_id)


# --- interrupted ----------------------------------------------------------------------------------

KILLED_AFTER = """
import os, signal, sys
sys.path[:0] = [{src!r}, {root!r}]
from codecs import BOM_UTF8
from datetime import UTC, datetime
from pathlib import Path
from account_tax.predict import parts
commit = parts.Journal.commit
def commit_and_die(self, *args):
    if len(self.notes) == {parts}:
        os.kill(os.getpid(), signal.SIGKILL)  # the part's rows are written, its note is not
    commit(self, *args)
parts.Journal.commit = commit_and_die
from tests.commands import call
sys.exit(call(Path({folder!r}), "predict", *{words!r}))
"""


def killed(shop, parts, **words):
    """Run the command in a process that is killed once so many parts are done."""
    given = NOT_GIVEN | {name: str(word) for name, word in words.items()}
    code = KILLED_AFTER.format(
        src=str(ROOT / "account_tax/src"), root=str(ROOT), parts=parts,
        folder=str(shop.folder), words=as_words(given),
    )  # fmt: skip
    script = shop.folder / "killed_predict.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False,
        env={**os.environ, "MLFLOW_TRACKING_URI": shop.store, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.integration
@pytest.mark.parametrize(("target", "kills"), [("csv", [2, 4]), ("jsonl", [0]), ("parquet", [5])])
def test_a_killed_run_is_taken_up_to_the_same_bytes(
    file_with, shop, tmp_path, capsys, target, kills
):
    rows = make_rows(60)
    rows[33] |= {"memo": "", "merchant": ""}
    source = write_ledger(tmp_path / "ledger.csv", rows)
    whole, output = tmp_path / f"whole.{target}", tmp_path / f"filed.{target}"
    given = {"input": source, "batch_rows": 10}
    assert file_with(**given, output=whole) == 3
    for parts in kills:
        killed(shop, parts, **given, output=output)
        assert not output.exists()
    capsys.readouterr()
    assert file_with(**given, output=output) == 3
    begun = f"going on after row {kills[-1] * 10}\n" in capsys.readouterr().out
    assert begun == bool(kills[-1])
    assert output.read_bytes() == whole.read_bytes()
    assert (
        output.with_name(f"{output.name}.rejects.jsonl").read_bytes()
        == whole.with_name(f"{whole.name}.rejects.jsonl").read_bytes()
    )
    assert not (tmp_path / f".filed.{target}.parts").exists()


@pytest.mark.integration
def test_parts_of_another_question_are_not_used(file_with, shop, ledger, output, capsys):
    killed(shop, 2, input=ledger, output=output, batch_rows=10)
    assert file_with(input=ledger, output=output, batch_rows=10, threshold=0.7) == 0
    said = capsys.readouterr().out
    assert "removed the parts of another input, model or set of options" in said
    assert "going on" not in said
    killed(shop, 2, input=ledger, output=output, batch_rows=10, overwrite="true")
    write_ledger(ledger, make_rows(59))
    assert file_with(input=ledger, output=output, batch_rows=10, overwrite="true") == 0
    assert "removed the parts" in capsys.readouterr().out
    assert len(read_ledger(output)) == 59


@pytest.mark.integration
def test_a_part_that_was_damaged_is_made_again(file_with, shop, ledger, output, tmp_path):
    whole = tmp_path / "whole.csv"
    assert file_with(input=ledger, output=whole, batch_rows=10) == 0
    killed(shop, 3, input=ledger, output=output, batch_rows=10)
    part = tmp_path / ".filed.csv.parts" / "part-000001.csv"
    assert part.stat().st_mode & 0o777 == 0o600
    part.write_bytes(part.read_bytes()[:-7])
    assert file_with(input=ledger, output=output, batch_rows=10) == 0
    assert output.read_bytes() == whole.read_bytes()


def test_two_at_once_do_not_write_one_output(file_with, ledger, output, capfd):
    import fcntl

    folder = output.with_name(".filed.csv.parts")
    folder.mkdir()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert file_with(input=ledger, output=output) == 2
    assert "another process is writing it" in capfd.readouterr().err
    assert file_with(input=ledger, output=output) == 0


@pytest.mark.integration
def test_a_stopped_run_says_how_to_go_on(shop, tmp_path, monkeypatch):
    ledger = write_ledger(tmp_path / "ledger.csv", make_rows(20_000))
    output = tmp_path / "filed.csv"
    given = NOT_GIVEN | {"input": str(ledger), "output": str(output), "batch_rows": "10"}
    process = subprocess.Popen(
        [sys.executable, "-m", "kedro", "predict", *as_words(given)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "MLFLOW_TRACKING_URI": shop.store, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    first = tmp_path / ".filed.csv.parts" / "part-000002.json"
    deadline = time.monotonic() + 120
    while not first.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "rows are kept beside filed.csv: the same command goes on" in said
    assert "Traceback" not in said
    assert newest_run(shop).info.status == "KILLED"


def test_a_version_that_was_rejected_files_nothing_unless_it_is_told_to(
    tiny_base, tmp_path, monkeypatch, ledger, capfd
):
    shop = Shop(tmp_path, LABELS)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.store)
    monkeypatch.chdir(tmp_path)
    register_random(tmp_path, tiny_base)
    client, name = MlflowClient(), "account-tax"
    decide(client, name, Proposal("reject", "Kim", "meals", datetime.now(UTC), "run"), "1")
    client.set_registered_model_alias(name, "champion", "1")
    given = {"model": f"models:/{name}@champion", "input": ledger, "output": tmp_path / "o.csv"}
    given = NOT_GIVEN | {key: str(word) for key, word in given.items()}
    assert call(tmp_path, "predict", *as_words(given)) == 2
    assert "champion is not set by the review history" in capfd.readouterr().err
    assert not (tmp_path / "o.csv").exists()
    assert call(tmp_path, "predict", *as_words(given | {"allow_unapproved": "true"})) == 0
    run = client.search_runs(["0"], order_by=["start_time DESC"], max_results=1)[0]
    assert "is not set by" in run.data.tags["account_tax.unapproved"]
    assert call(ROOT, "review", "--history", "--registered_model_name", name) == 0
    said = capfd.readouterr().out
    assert "mind this: alias champion is version 1, but the history says not set." in said
