from __future__ import annotations

import hashlib
import json
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from account_tax.ledger.reading import DataError, read_columns, read_ledger, source_digest

SECRET = "Jane Doe 4411"  # stands for ledger text that no message may repeat


def faults_of(data) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_ledger(data)
    return caught.value.faults


def counted(ledger) -> dict[str, int]:
    return {reason: count for reason, count in ledger.dropped.items() if count}


# --- how files are read ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "idle"),
    [
        ("x.csv", {"sheet": "2024"}, ["sheet = 2024"]),
        ("x.jsonl", {"header_row": 1, "sheet": "2024"}, ["header_row = 1", "sheet = 2024"]),
        ("x.parquet", {"encoding": "cp949"}, ["encoding = cp949"]),
        ("x.xlsx", {"encoding": "cp949"}, ["encoding = cp949"]),
    ],
)
def test_what_says_nothing_of_a_file_is_refused(
    parameters, tmp_path, two_classes, name, said, idle
):
    table, path = pd.DataFrame(two_classes, columns=["text", "label"]), tmp_path / name
    write = {
        "csv": lambda: table.to_csv(path, index=False),
        "jsonl": lambda: table.to_json(path, orient="records", lines=True),
        "parquet": lambda: table.to_parquet(path),
        "xlsx": lambda: table.to_excel(path, index=False),
    }
    write[name.partition(".")[2]]()
    read_ledger(parameters(path))
    (fault,) = faults_of(parameters(path, **said))
    for words in idle:
        key = words.partition(" ")[0]
        assert f"{words} says nothing of it. Set data.{key} to null." in fault


# --- what is kept out ---------------------------------------------------------------------------


def test_clean_rows_are_all_kept(parameters, ledger_csv):
    path = ledger_csv(("taxi", "travel"), ("office", "rent"))
    ledger = read_ledger(parameters(path))
    assert ledger.texts.of(ledger.frame) == ["taxi", "office"]
    assert ledger.frame["label"].tolist() == ["travel", "rent"]
    assert ledger.frame["row_id"].tolist() == [0, 1]
    assert (ledger.rows_read, counted(ledger)) == (2, {})


def test_rows_without_text_or_label_are_counted_and_left_out(parameters, ledger_csv):
    path = ledger_csv(
        ("taxi", "travel"), ("  ", "travel"), ("", " "), ("bus", " "), ("office", "rent")
    )
    ledger = read_ledger(parameters(path))
    assert ledger.frame["row_id"].tolist() == [0, 4]
    assert counted(ledger) == {"no_text": 2, "no_label": 1}


def test_where_no_row_is_left_it_is_told_why(parameters, tmp_path):
    (tmp_path / "x.csv").write_text("text,label\n" + "taxi,travel,more\n" * 50)
    (fault,) = faults_of(parameters(tmp_path / "x.csv", max_rejected=1))
    assert "none of the 50 rows is left; left out: 50 unreadable" in fault


def test_the_first_of_equal_texts_stays(parameters, ledger_csv):
    path = ledger_csv(
        ("taxi", "travel"), (" taxi ", "travel"), ("taxi", "rent"), ("office", "rent")
    )
    ledger = read_ledger(parameters(path))
    assert ledger.frame["row_id"].tolist() == [0, 3]
    assert counted(ledger) == {"duplicate": 1, "duplicate_conflicting_label": 1}


def test_keep_keeps_repeats(parameters, ledger_csv):
    path = ledger_csv(("taxi", "travel"), ("taxi", "travel"), ("taxi", "rent"))
    ledger = read_ledger(parameters(path, duplicates="keep"))
    assert (len(ledger.frame), counted(ledger)) == (3, {})


@pytest.mark.parametrize("duplicates", ["drop", "keep"])
def test_a_test_text_stays_in_no_other_file_of_a_folder(parameters, ledger_csv, duplicates):
    ledger_csv(("taxi", "travel"), ("office", "rent"), name="folder/test.csv")
    ledger_csv(("taxi", "travel"), ("bus", "travel"), name="folder/validation.csv")
    folder = ledger_csv(
        *(("taxi", "rent"), ("bus", "travel"), ("tram", "travel"), ("flat", "rent")),
        name="folder/train.csv",
    ).parent
    ledger = read_ledger(parameters(folder, duplicates=duplicates))
    texts = ledger.frame.assign(text=ledger.texts.of(ledger.frame))
    kept = texts.groupby("split")["text"].apply(list).to_dict()
    assert kept == {"test": ["taxi", "office"], "train": ["tram", "flat"], "validation": ["bus"]}
    assert counted(ledger) == {"in_test": 2, "in_validation": 1}


def test_every_row_read_is_kept_or_counted_once(parameters, ledger_csv):
    rows = [("", "a"), ("x", ""), ("x", "a"), ("x", "a"), ("x", "b"), ("y", "b")]
    ledger = read_ledger(parameters(ledger_csv(*rows, ("", ""))))  # which is blank
    assert ledger.rows_read == len(ledger.frame) + sum(ledger.dropped.values()) == len(rows)


# --- values -------------------------------------------------------------------------------------


def test_numbers_dates_and_na_stay_text_in_every_format(parameters, tmp_path):
    texts = ["0012", "1.50", "2026-01-02", "NA", "true", "1e5"]
    frame = pd.DataFrame({"text": texts, "label": ["NA", "b"] * 3})
    frame.to_csv(tmp_path / "x.csv", index=False)
    frame.to_parquet(tmp_path / "x.parquet")
    frame.to_json(tmp_path / "x.jsonl", orient="records", lines=True)
    for path in tmp_path.glob("x.*"):
        ledger = read_ledger(parameters(path, labels="as_is"))
        assert ledger.texts.of(ledger.frame) == texts, path.suffix
        assert ledger.frame["label"].tolist() == ["NA", "b"] * 3


def test_a_column_can_not_be_text_twice_nor_be_the_account_too(parameters, ledger_csv):
    path = ledger_csv(("taxi", "travel"), ("office", "rent"))
    with pytest.raises(DataError) as caught:
        read_ledger(parameters(path, text_columns=["text", "text", "label"]))
    assert [fault.partition(": ")[2] for fault in caught.value.faults] == [
        "holds data.label_column, so the model would read the answer. Take it out.",
        "a column stands there twice. Take one out.",
    ]


def test_typed_values_keep_their_digits(parameters, tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"text": 0.50, "label": 12}\n\n{"text": "b", "label": 7}\n{"text": null, "label": 7}\n'
    )
    read = read_ledger(parameters(tmp_path / "x.jsonl"))
    assert read.texts.of(read.frame) == ["0.50", "b"]
    assert read.frame["label"].tolist() == ["12", "7"]
    # By itself pandas reads a whole number beside a null as 12.0.
    table = pa.table({"text": ["a", "b", "c"], "label": [12, None, 7]})
    pq.write_table(table, tmp_path / "x.parquet")
    assert read_ledger(parameters(tmp_path / "x.parquet")).frame["label"].tolist() == ["12", "7"]


def test_text_columns_are_joined_as_the_classifier_joins_them(parameters, ledger_csv):
    from account_tax.model.classifier import join_texts

    rows = [("KIM BAP", "lunch ", "a"), ("", "taxi", "b"), ("HOTEL", " ", "b"), ("", "", "a")]
    path = ledger_csv(*rows, columns="merchant memo label")
    data = parameters(path, text_columns=["merchant", "memo"])
    ledger = read_ledger(data)
    texts = ledger.texts.of(ledger.frame)
    assert texts == ["KIM BAP | lunch", "taxi", "HOTEL"]
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert join_texts(raw, ["merchant", "memo"], " | ").tolist() == [*texts, ""]


def test_words_that_unicode_holds_for_one_are_one(parameters, tmp_path):
    rows = [("cafe\u0301  bar", "Miete"), ("caf\u00e9 bar", "Miete\u200b"), ("\ufefftaxi", "Taxi")]
    rows.append(("\u1100\u1161", "\u1100\u1161"))
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(tmp_path / "x.csv", index=False)
    ledger = read_ledger(parameters(tmp_path / "x.csv"))
    assert ledger.texts.of(ledger.frame) == ["caf\u00e9 bar", "taxi", "\uac00"]
    assert ledger.frame["label"].tolist() == ["Miete", "Taxi", "\uac00"]
    assert counted(ledger) == {"duplicate": 1}


def test_a_byte_order_mark_is_no_part_of_the_first_column(parameters, tmp_path):
    for suffix, body in (
        (".csv", "text,label\na,x\nb,y\n"),
        (".jsonl", '{"text":"a","label":"x"}'),
    ):
        path = tmp_path / f"bom{suffix}"
        more = '\n{"text":"b","label":"y"}' if suffix == ".jsonl" else ""
        path.write_bytes(b"\xef\xbb\xbf" + (body + more).encode())
        ledger = read_ledger(parameters(path))
        assert ledger.texts.of(ledger.frame) == ["a", "b"]


def test_the_sample_is_read_like_a_file(parameters):
    data = parameters("sample", group_column="voucher")
    ledger = read_ledger(data)
    assert ledger.frame["label"].nunique() == 10
    assert (ledger.frame["group"] != "").all()
    assert ledger.source_sha256 == source_digest(data)


def test_a_uri_is_read_through_fsspec(parameters, ledger_csv, two_classes):
    import fsspec

    path = ledger_csv(*two_classes)
    with fsspec.open("memory://books/ledger.csv", "wb") as file:
        file.write(path.read_bytes())
    ledger = read_ledger(parameters("memory://books/ledger.csv"))
    assert len(ledger.frame) == 40
    assert ledger.source_sha256 == read_ledger(parameters(path)).source_sha256


# --- digests ------------------------------------------------------------------------------------


def test_a_files_digest_is_its_sha256(parameters, ledger_csv, two_classes):
    path = ledger_csv(*two_classes)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert source_digest(parameters(path)) == expected
    assert read_ledger(parameters(path)).source_sha256 == expected


def test_a_folders_digest_is_that_of_its_checksum_lines(parameters, ledger_csv):
    for name in ("train", "validation", "test"):
        path = ledger_csv((f"{name} a", "a"), (f"{name} b", "b"), name=f"folder/{name}.csv")
    names = ["test.csv", "train.csv", "validation.csv"]
    lines = [hashlib.sha256((path.parent / n).read_bytes()).hexdigest() + f"  {n}\n" for n in names]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert source_digest(parameters(path.parent)) == expected


# --- bad input ----------------------------------------------------------------------------------

BAD_BYTES = {
    "late.jsonl": ('{"text": "가"}\n'.encode() + b'{"text": "ab\xff"}\n', "expected the columns"),
    "bom.csv": (
        b"\xef\xbb\xbftext,label\na,\xff\n",
        "bytes that are not UTF-8: 1 (bom.csv line 2)",
    ),
    "other.csv": ("text,label\nОписание,Такси\n".encode("cp1251"), "Set data.encoding"),
    "empty.csv": (b"", "the file is empty"),
    "blank.csv": (b"\n\n", "the file is empty"),
    "header.csv": (b"text,label\n", "the file has no rows"),
    "blank.jsonl": (b"\n", "it has no line with a JSON object (empty)"),
    "broken.jsonl": (
        b'{"text": "a", "label": "b"}\n\n{"text": Jane Doe 4411}\n',
        "1 of 2 rows can't be read. no JSON object: 1 (broken.jsonl line 3). Mend them",
    ),
    "list.jsonl": (b'["Jane Doe 4411", "b"]\n', "no line with a JSON object (line 1: no JSON"),
    "half.jsonl": (b'{"text": "Jane Doe 4411 \\ud800", "label": "b"}\n', "surrogate"),
    "fake.parquet": (b"Jane Doe 4411", "not a Parquet file"),
    "cut.parquet": (b"PAR1Jane Doe 4411", "not a Parquet or Arrow file"),
    "ragged.csv": (
        b"text,label\na,b\nJane Doe 4411,c,d\n",
        "1 of 2 rows can't be read. 3 fields where the header has 2: 1 (ragged.csv line 3).",
    ),
    "quote.csv": (
        b'text,label\n"Jane Doe 4411,b\nc,d\n',
        "a quote that is not closed: 1 (quote.csv line 2)",
    ),
    "table.xlsx": (b"PK", "not a spreadsheet file that can be read. Save or export it anew as .xl"),
    "page.xlsx": (b"<table>", "an HTML or XML page, not a table. Open it in Excel, save it as .xl"),
    "erp.XLS": (b"<table>", ".gz or .zip. Open it in Excel, save it as .xlsx."),
    "cut.zip": (b"PK\x03\x04Jane", "can't be unpacked (BadZipFile)"),
    "old.xls.csv": (b"\xd0\xcf\x11\xe0Jane", "an old Excel file, or one with a password"),
    "page.csv": (b"<html><td>Jane Doe 4411", "an HTML or XML page"),
    "book.pdf": (b"%PDF", "unknown file type .pdf. Expected .csv,"),
    "noname": (b"text,label\n", "without a type"),
    "one.csv": (b"text,label\na,x\nb,x\n", "one class in the 2 rows that are left of"),
    "nothing.csv": (
        b"text,label\n,x\nJane Doe 4411,\n",
        "none of the 2 rows is left; left out: 1 no text, 1 no label",
    ),
    "twice.csv": (b"text,label,label\na,x,y\n", "['label'] stand there more than once"),
}


@pytest.mark.parametrize("name", BAD_BYTES)
def test_a_bad_file_gets_one_clear_message(parameters, tmp_path, name):
    raw, message = BAD_BYTES[name]
    (tmp_path / name).write_bytes(raw)
    (fault,) = faults_of(parameters(tmp_path / name))
    assert message in fault
    assert name in fault
    assert fault.startswith("data.")
    assert SECRET not in fault


def test_missing_columns_are_named_with_those_found(parameters, ledger_csv):
    path = ledger_csv(("a", "b"), columns="memo label")
    (fault,) = faults_of(parameters(path))
    assert fault.endswith(
        "ledger.csv: expected the columns ['label', 'text'], found ['label', 'memo']. "
        "Rename the column or set data.text_columns."
    )
    (fault,) = faults_of(parameters(path, text_columns=["memo"], group_column="voucher"))
    assert "expected the columns ['label', 'memo', 'voucher']" in fault
    assert fault.endswith("set data.group_column.")


def test_a_column_in_another_case_is_named(parameters, ledger_csv):
    (fault,) = faults_of(parameters(ledger_csv(("a", "b"), columns="Text LABEL")))
    assert "spelt in another case: ['Text', 'LABEL']. Rename the column or set data.text" in fault


def test_rows_that_can_not_be_read_are_set_aside_and_counted(parameters, tmp_path, caplog):
    rows = [f"line {i},{'ab'[i % 2]}" for i in range(20)]
    rows[3] = f"{SECRET},b,c"
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
    with caplog.at_level("INFO"):
        ledger = read_ledger(parameters(tmp_path / "x.csv"))
    assert ledger.frame["row_id"].tolist() == [0, 1, 2, *range(4, 20)]
    assert (ledger.rows_read, counted(ledger)) == (20, {"unreadable": 1})
    reason = "3 fields where the header has 2"
    assert ledger.rejects == {reason: {"rows": 1, "first": ["x.csv line 5"]}}
    assert SECRET not in caplog.text
    table = read_columns(parameters(tmp_path / "x.csv"), ["text"])
    assert table.loc[("", 19), "text"] == "line 19"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"on_error": "fail"},
            r"1 of 20 rows can't be read\. .* \(x\.csv line 5\)\. .*on_error to skip",
        ),
        ({"max_rejected": 0.04}, r"1 of 20 rows .* or raise data\.max_rejected = 0\.04"),
    ],
)
def test_more_of_them_than_may_be_are_a_fault(parameters, tmp_path, how, message):
    rows = [f"line {i},{'ab'[i % 2]}" for i in range(20)]
    rows[3] = f"{SECRET},b,c"
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
    with pytest.raises(DataError, match=message) as caught:
        read_ledger(parameters(tmp_path / "x.csv", **how))
    assert SECRET not in str(caught.value)


def test_a_label_column_of_texts_is_asked_about_and_not_shown(parameters, tmp_path):
    rows = [f"line {i},{SECRET} {i // 2}" for i in range(60)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
    (fault,) = faults_of(parameters(tmp_path / "x.csv"))
    assert fault == "data.label_column = label: 30 different values in 60 rows: is it the account?"
    rows = [f"line {i},{SECRET} {'Aa'[i % 2]} {i // 2}" for i in range(12)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
    (fault,) = faults_of(parameters(tmp_path / "x.csv"))
    assert fault == "data.label_column = label: 12 different values in 12 rows: is it the account?"
    rows = [f"line {i},account {i % 20}" for i in range(60)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows]))
    assert read_ledger(parameters(tmp_path / "x.csv")).frame["label"].nunique() == 20


def test_what_reading_found_is_said_in_words(parameters, tmp_path):
    rows = [f"{SECRET} {i};{'ab'[i % 2]}" for i in range(40)]
    rows[3:7] = ["x;a;b", "", *["x;a;b;c"] * 4]
    rows[20:22] = [";a", rows[0]]
    text = "\r\n".join(["Übersicht", "", "text;label", *rows])
    (tmp_path / "x.csv").write_bytes(text.encode("cp1252"))
    assert read_ledger(parameters(tmp_path / "x.csv", max_rejected=0.2)).facts() == {
        "ledger": "x.csv: csv, cp1252, semicolon, header in row 3",
        "rows read": "41, left out: 5 unreadable, 1 no text, 1 duplicate",
        "unreadable rows": "4 fields where the header has 2: 4 (x.csv line 9, x.csv line 10, "
        "x.csv line 11, ...); 3 fields where the header has 2: 1 (x.csv line 7)",
    }


def test_files_that_are_alike_are_said_together(parameters, two_classes, tmp_path):
    for part in range(3):
        frame = pd.DataFrame(two_classes[part::3], columns=["text", "label"])
        frame.to_csv(tmp_path / f"part-{part}.csv", index=False, sep="\t|,"[part])
    facts = read_ledger(parameters(tmp_path)).facts()
    assert facts == {
        "ledger": "part-0.csv: csv, utf-8, tab, header in row 1; "
        "part-1.csv: csv, utf-8, bar, header in row 1; "
        "part-2.csv: csv, utf-8, comma, header in row 1",
        "rows read": "40, left out: none",
    }
    for part in range(3):
        (tmp_path / f"part-{part}.csv").unlink()
        frame = pd.DataFrame(two_classes[part::3], columns=["text", "label"])
        frame.to_parquet(tmp_path / f"part-{part}.parquet")
    assert read_ledger(parameters(tmp_path)).facts()["ledger"] == "3 files: parquet"


def test_a_first_line_that_is_no_header_is_not_repeated(parameters, tmp_path):
    (tmp_path / "x.csv").write_text(f"{SECRET},rent\nmore,travel\n")
    (fault,) = faults_of(parameters(tmp_path / "x.csv"))
    assert "found none of them in the first 100 lines; a row has 2 fields" in fault
    assert SECRET not in fault
    assert "rent" not in fault


def test_a_missing_source_says_what_can_be_given(parameters, tmp_path):
    for name in ("none.csv", "none"):
        (fault,) = faults_of(parameters(tmp_path / name))
        assert "no such file or folder. Give a path or URI to a file (.csv," in fault


@pytest.fixture
def failing_server():
    """Serve a CSV file that is there when asked for, and gone when it is read."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200 if len(asked) == 1 else 500)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/ledger.csv"
    server.shutdown()
    server.server_close()


def test_a_storage_error_does_not_show_the_uris_secrets(parameters, failing_server):
    data = parameters(failing_server + "?token=hunter2")
    with pytest.raises(DataError) as caught:
        read_ledger(data)
    shown = "".join(traceback.format_exception(caught.value))
    assert f"data.source = {failing_server}: can't be read (ClientResponseError: 500" in shown
    assert "hunter2" not in shown


def test_a_source_no_driver_can_read_says_why(parameters):
    (fault,) = faults_of(parameters("nosuch://user:secret@host/x.csv"))
    assert "data.source = nosuch://host/x.csv: can't be read (ValueError: Protocol not" in fault
    assert "secret" not in fault


def test_a_folder_needs_its_three_files_of_one_type(parameters, ledger_csv):
    folder = ledger_csv(("a", "x"), ("b", "y"), name="folder/train.csv").parent
    (fault,) = faults_of(parameters(folder))
    assert "missing ['validation.csv', 'test.csv']" in fault
    (folder / "test.jsonl").write_text("{}")
    (fault,) = faults_of(parameters(folder))
    assert "expected files of one type, found ['test.jsonl', 'train.csv']" in fault


def test_faults_of_all_files_and_settings_come_together(parameters, ledger_csv):
    ledger_csv(("a", "x"), name="folder/validation.csv", columns="memo label")
    folder = ledger_csv(("a", "x"), ("b", "y"), name="folder/train.csv").parent
    (folder / "test.csv").write_bytes(b"")
    data = parameters(folder, text_columns=["text", "label"])
    with pytest.raises(DataError, match=r"3 problems in the data\n  data\.text_columns") as caught:
        read_ledger(data)
    assert len(caught.value.faults) == 3


def test_the_log_has_counts_and_no_text(parameters, tmp_path, caplog):
    rows = [{"text": f"{SECRET} {i}", "label": "ab"[i % 2]} for i in range(4)]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    with caplog.at_level("INFO"):
        read_ledger(parameters(tmp_path / "x.jsonl"))
    assert "5 rows read, 4 kept" in caplog.text
    assert SECRET not in caplog.text


# --- columns that are no text ---------------------------------------------------------------------


def test_amounts_are_read_and_those_that_can_not_be_are_counted(parameters, ledger_csv):
    rows = [(f"line {i}", "ab"[i % 2], f"{i},5") for i in range(18)]
    path = ledger_csv(*rows, ("x", "a", SECRET), ("y", "b", ""), columns="text label sum")
    ledger = read_ledger(parameters(path, amount_column="sum"))
    assert ledger.frame["amount"].tolist()[:3] == [0.5, 1.5, 2.5]
    assert ledger.frame["amount"].isna().sum() == 2
    assert ledger.facts()["amounts"] == (
        "18 read, 1 not readable, 1 missing; the decimal mark is a comma"
    )
    assert ledger.dropped["unreadable"] == 0


def test_dates_and_amounts_in_the_text_are_warned_of(parameters, ledger_csv):
    days = pd.date_range("2024-01-01", periods=40)
    rows = [(f"line {i}", "ab"[i % 2], f"{day:%d.%m.%Y}", f"{i * 37:,}.00", f"{i % 5}")
            for i, day in enumerate(days)]  # fmt: skip
    path = ledger_csv(*rows, columns="text label day sum centre")
    columns = ["text", "day", "sum", "centre"]
    words = read_ledger(parameters(path, text_columns=columns)).facts()["mind this"]
    assert words == (
        "day holds dates, of which a model learns single days: take it out of data.text_columns, "
        "and name it as data.time_column; sum holds numbers such as amounts, each of which is "
        "another text: take it out, and name it as data.amount_column, or write a column of bands "
        "(under 100, 100 to 1000)"
    )
    assert "mind this" not in read_ledger(parameters(path)).facts()


@pytest.mark.parametrize(
    "first", [["text", "account", SECRET], [SECRET, "label", "12.50"], ["text", SECRET, "-12,50"]]
)
def test_a_row_of_cells_is_never_shown_as_the_header(parameters, tmp_path, first):
    """A ledger without a header, one of whose cells is the name of a column."""
    path = tmp_path / "ledger.csv"
    rows = [first, *([SECRET, "x", "3"] for _ in range(5))]
    path.write_text("\n".join(",".join(row) for row in rows))
    wanted = {"text_columns": ["text", "memo"], "label_column": "label"}
    (fault,) = faults_of({**parameters(path), **wanted})
    assert "found none of them" in fault
    assert SECRET not in fault
