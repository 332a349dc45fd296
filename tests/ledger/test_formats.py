"""One ledger in every form it comes in gives the same rows."""

from __future__ import annotations

import gzip
import json
import tarfile
import zipfile
from datetime import date, datetime
from decimal import Decimal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from account_tax.errors import Refused
from account_tax.ledger.formats import open_file
from account_tax.ledger.packed import unpack
from account_tax.ledger.windows import Wanted

WORDS = ["택시 이용", "점심, 식대", 'a "b"', "", "사무실 임차"]
ROWS = [(f"2024-01-0{i + 1}", word, f"거래처{i}") for i, word in enumerate(WORDS)]
NAMES = ("일자", "적요", "거래처")


def read(path, columns=("적요", "거래처"), scratch=None, **how):
    """Return the texts of columns, the rejects and what was found of a file."""
    source = open_file(
        unpack(path, scratch or path.parent), Wanted(dict.fromkeys(columns, ""), **how)
    )
    windows = list(source.windows(2))
    rows = [row for window in windows for row in window.rows.frame(columns).to_numpy().tolist()]
    rejects = [(each.number, each.reason) for window in windows for each in window.rejects]
    return rows, rejects, source.found


def as_csv(mark=",", end="\n", quote=False, names=NAMES, rows=ROWS):
    def cell(text):
        special = quote or any(each in text for each in (mark, '"'))
        return '"' + text.replace('"', '""') + '"' if special else text

    return "".join(mark.join(map(cell, row)) + end for row in (names, *rows))


EXPECTED = [list(row[1:]) for row in ROWS]
TITLES = '거래내역조회\n예금주: "홍길동,,\n\n'
FORMS = {
    "comma.csv": as_csv().encode(),
    "semicolon.csv": as_csv(";", "\r\n").encode(),
    "tab.tsv": as_csv("\t", "\r").encode(),
    "bar.txt": as_csv("|").encode(),
    "quoted.csv": as_csv(";", "\r\n", quote=True).encode(),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(quote=True).encode(),
    "two_boms.csv": b"\xef\xbb\xbf" * 2 + as_csv(quote=True).encode(),
    "sep.csv": b"sep=;\r\n" + as_csv(";", "\r\n").encode(),
    "titles.csv": TITLES.encode() + as_csv().encode(),
    "cp949.csv": as_csv(end="\r\n").encode("cp949"),
    "euc_kr.csv": as_csv().encode("euc_kr"),
    "utf16.csv": as_csv("\t", "\r\n").encode("utf-16"),
    "utf16be.txt": as_csv("\t").encode("utf-16-be"),
    "utf16le.txt": as_csv("\t").encode("utf-16-le"),
    "utf32.csv": as_csv().encode("utf-32"),
    "spaced.csv": as_csv(quote=True).replace(',"', ', "').encode(),
    "spark.csv": as_csv(quote=True).replace('a ""b""', r"a \"b\"").encode(),
    "spaced_rows.csv": as_csv(quote=True)
    .replace('"일자","적요","거래처"', "일자, 적요, 거래처")
    .replace(',"', ', "')
    .encode(),
    "empty_rows.csv": (as_csv(";") + ";;\n;;\n").encode(),
    "delimiter_ends_rows.csv": "\n".join(
        line + ";" * bool(at) for at, line in enumerate(as_csv(";").splitlines())
    ).encode(),
    "spaces.csv": as_csv(names=("일자", " 적요 ", "거래처\u200b")).encode(),
    "packed.csv.gz": gzip.compress(as_csv().encode("cp949")),
    "packed_under_another.csv": gzip.compress(as_csv().encode()),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_csv_file_is_read_whatever_its_dialect(tmp_path, name):
    (tmp_path / name).write_bytes(FORMS[name])
    rows, rejects, _ = read(tmp_path / name)
    assert (rows, rejects) == (EXPECTED, [])


def test_what_was_found_is_told(tmp_path):
    (tmp_path / "x.csv").write_bytes((TITLES + as_csv(";")).encode("cp949"))
    found = {"format": "csv", "encoding": "cp949", "delimiter": ";", "header_row": 4}
    assert read(tmp_path / "x.csv")[2] == found


def test_names_in_another_normal_form_are_the_same_names(tmp_path):
    import unicodedata

    (tmp_path / "x.csv").write_text(unicodedata.normalize("NFD", as_csv()))
    table = pd.DataFrame(ROWS, columns=NAMES)
    table.columns = [unicodedata.normalize("NFD", name) for name in NAMES]
    table.to_parquet(tmp_path / "x.parquet")
    table.to_json(tmp_path / "x.jsonl", orient="records", lines=True, force_ascii=False)
    assert len(read(tmp_path / "x.csv")[0]) == len(ROWS)
    for name in ("x.parquet", "x.jsonl"):
        assert read(tmp_path / name)[0] == EXPECTED


def test_the_encoding_and_the_header_can_be_given(tmp_path):
    text = "memo,merchant\nпоездка,такси\nmemo,merchant\nобед,кафе\n"
    (tmp_path / "x.csv").write_bytes(text.encode("cp1251"))
    columns = ("memo", "merchant")
    with pytest.raises(Refused, match=r"neither UTF-8, UTF-16, CP949 nor CP1252\. Set data\.enc"):
        read(tmp_path / "x.csv", columns)
    rows, _, found = read(tmp_path / "x.csv", columns, encoding="cp1251", header_row=3)
    assert rows == [["обед", "кафе"]]
    assert (found["encoding"], found["header_row"]) == ("cp1251", 3)
    with pytest.raises(Refused, match=r"in row 2, which has 2 fields"):
        read(tmp_path / "x.csv", columns, encoding="cp1251", header_row=2)
    because = "because data.encoding says cp1251 and data.header_row says 9: with null it is found"
    with pytest.raises(Refused, match=rf"no row begins in line 9.*{because}"):
        read(tmp_path / "x.csv", columns, encoding="cp1251", header_row=9)


def test_a_delimiter_that_is_not_known_is_told(tmp_path):
    (tmp_path / "x.csv").write_text("memo^merchant\na^b\n")
    with pytest.raises(Refused, match=r"has 1 field\. .*parted by none of comma, semicolon"):
        read(tmp_path / "x.csv", ("memo", "merchant"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.ndjson", "x.json", "x.jsonl.gz"])
def test_json_lines_are_read(tmp_path, name):
    lines = "\n".join(json.dumps(dict(zip(NAMES, row, strict=True))) for row in ROWS)
    raw = b"\xef\xbb\xbf" + lines.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert read(tmp_path / name)[0] == EXPECTED


def test_a_value_that_is_none_costs_its_row(tmp_path):
    (tmp_path / "x.jsonl").write_text(
        '{"a": "x", "b": [1]}\n{"a": ["x"]}\n{"a": {"x": 1}}\n{"a": null}\n{"a": true}\n'
        + '{"a": NaN}\n'
        + '{"a": ' + "[" * 100_000 + "\n"
    )  # fmt: skip
    rows, rejects, _ = read(tmp_path / "x.jsonl", ["a"])
    assert rows == [["x"], [""], ["True"], [""]]
    assert rejects == [
        (2, "a list in a, which is not a single value"),
        (3, "a mapping in a, which is not a single value"),
        (7, "no JSON object"),
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (pa.array(["x", None], pa.string_view()), ["x", ""]),
        (pa.array(["x", None], pa.large_string()), ["x", ""]),
        (pa.array(["x", None]).dictionary_encode(), ["x", ""]),
        (pa.array([811.0, 811.5, float("nan"), None]), ["811", "811.5", "", ""]),
        (pa.array([2.024e10, 1e16, 1e-7]), ["20240000000", "10000000000000000", "0.0000001"]),
        (pa.array([12, None], pa.int32()), ["12", ""]),
        (pa.array([Decimal("1.50"), Decimal("811.00")]), ["1.50", "811.00"]),
        (pa.array([date(2024, 1, 2)]), ["2024-01-02"]),
        (pa.array([datetime(2024, 1, 2)]), ["2024-01-02"]),
        (pa.array([datetime(2024, 1, 2, 3)]), ["2024-01-02 03:00:00"]),
        (pa.array([True, None]), ["True", ""]),
        (pa.nulls(1), [""]),
    ],
)  # fmt: skip
def test_typed_values_are_text_as_a_table_shows_them(tmp_path, values, shown):
    pq.write_table(pa.table({"a": values}), tmp_path / "x.parquet")
    rows, _, found = read(tmp_path / "x.parquet", ["a"])
    assert (rows, found) == ([[text] for text in shown], {"format": "parquet"})


@pytest.mark.parametrize("kind", ["list<element: int64>", "struct<b: int64>", "binary"])
def test_a_column_of_no_single_values_is_refused_by_its_type(tmp_path, kind):
    value = {"list": [1], "stru": {"b": 1}, "bina": b"x"}[kind[:4]]
    pq.write_table(pa.table({"a": [value]}), tmp_path / "x.parquet")
    with pytest.raises(Refused, match=f"the column a has the type {kind}, not single values"):
        read(tmp_path / "x.parquet", ["a"])


def test_arrow_files_are_read(tmp_path):
    table = pa.table({"a": ["x", "y", "z"]})
    for name, make in {"file": pa.ipc.new_file, "stream": pa.ipc.new_stream}.items():
        with make(str(tmp_path / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table, 2)
        assert read(tmp_path / f"{name}.arrow", ["a"])[0] == [["x"], ["y"], ["z"]]


def test_a_zip_with_one_file_is_read_and_others_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("sub/적요.csv", as_csv().encode("cp949"))
        packed.writestr("__MACOSX/._적요.csv", b"x")
    assert read(tmp_path / "x.zip")[0] == EXPECTED
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as packed:
        packed.writestr("more.csv", b"x")
    with pytest.raises(Refused, match="a zip of 2 files"):
        read(tmp_path / "x.zip")


def test_what_holds_more_than_a_table_is_named(tmp_path):
    (tmp_path / "a.csv").write_text(as_csv())
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "a.csv", "a.csv")
    with pytest.raises(Refused, match="a tar archive"):
        read(tmp_path / "x.tar.gz")
    with zipfile.ZipFile(tmp_path / "x.xlsx", "w") as packed:
        packed.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        packed.writestr("content.xml", "<a/>")
    with pytest.raises(Refused, match=r"another kind than \.xlsx"):
        read(tmp_path / "x.xlsx")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        packed.writestr("a.csv", as_csv())
    raw = (tmp_path / "x.zip").read_bytes()
    central = raw.index(b"PK\x01\x02") + 8  # the flags: encrypted
    (tmp_path / "x.zip").write_bytes(raw[:central] + b"\1" + raw[central + 1 :])
    with pytest.raises(Refused, match="a zip with a password"):
        read(tmp_path / "x.zip")


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path):
    bomb = gzip.compress(b"\0" * (80 << 20))
    (tmp_path / "x.csv.gz").write_bytes(bomb)
    with pytest.raises(Refused, match="unpacks to more than 200 times its size, as a zip bomb"):
        read(tmp_path / "x.csv.gz")
    (tmp_path / "y.csv.gz").write_bytes(
        gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"a\n"))))
    )
    with pytest.raises(Refused, match="packed more than 3 times over"):
        read(tmp_path / "y.csv.gz")


def test_a_message_names_some_of_many_columns(tmp_path):
    (tmp_path / "x.csv").write_text(",".join(["적요", *map("c{}".format, range(1000))]) + "\n")
    with pytest.raises(Refused, match=r"'c142'\] and 951 more\. Rename"):
        read(tmp_path / "x.csv")


def test_a_table_of_too_many_columns_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text(",".join(f"c{i}" for i in range(20_000)) + ",a\n")
    with pytest.raises(Refused, match=r"20,001 columns\. Expected at most 16,384\."):
        read(tmp_path / "x.csv", ["a"])
    (tmp_path / "x.jsonl").write_text(json.dumps({f"c{i}": 1 for i in range(20_000)}))
    with pytest.raises(Refused, match=r"more than 16,384 different keys"):
        read(tmp_path / "x.jsonl", ["a"])


def test_a_window_of_a_wide_table_has_fewer_rows(tmp_path):
    (tmp_path / "x.csv").write_text("a" + "," * 9_999 + "\n" + ("x" + "," * 9_999 + "\n") * 300)
    source = open_file(tmp_path / "x.csv", Wanted({"a": ""}))
    assert [window.read for window in source.windows(8192)] == [209, 91]


def test_a_very_long_line_costs_itself_only(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"a": "x"}\n{"a": "' + "y" * 5_000_000 + '"}\n{"a": "z"}\n')
    rows, rejects, _ = read(tmp_path / "x.jsonl", ["a"])
    assert rows == [["x"], ["z"]]
    assert rejects == [(2, "a line of more than 4,194,304 characters")]
    (tmp_path / "x.csv").write_text("a,b\nx,\n" + "y" * 5_000_000 + ",\nz,\n")
    rows, rejects, _ = read(tmp_path / "x.csv", ["a"])
    assert rows == [["x"], ["z"]]
    assert rejects == [(3, "a field of more than 131,072 characters")]


def test_keys_that_may_be_cells_are_not_shown(tmp_path):
    path = tmp_path / "ledger.jsonl"
    lines = [{"memo": f"trip {number}", f"Jane Doe {number}": "x"} for number in range(5)]
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    with pytest.raises(Refused, match=r"found \['memo'\] and 5 more") as refused:
        open_file(path, Wanted({"memo": "", "account": ""}))
    assert "Jane" not in str(refused.value)
