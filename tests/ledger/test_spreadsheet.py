"""A sheet is read as it is shown, and as the same ledger in CSV."""

from __future__ import annotations

import io
import zipfile
from datetime import date, datetime

import pytest
from openpyxl import Workbook, load_workbook
from openpyxl.chart import BarChart, Reference

from account_tax.errors import Refused
from account_tax.ledger.formats import files_in_words
from account_tax.ledger.spreadsheet import SheetSource
from account_tax.ledger.windows import Wanted

from .test_formats import EXPECTED, NAMES, ROWS, as_csv, read


def save(path, sheets, hidden=()):
    """Write sheets, each a list of rows, and return the path."""
    book = Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        sheet.sheet_state = "hidden" if name in hidden else "visible"
    book.save(path)
    return path


@pytest.mark.parametrize("name", ["x.xlsx", "x.xlsm", "x.csv"])
def test_a_sheet_gives_the_rows_of_its_csv_file(tmp_path, name):
    path = save(tmp_path / name, {"장부": [["거래내역"], [], NAMES, *ROWS[:2], [], *ROWS[2:]]})
    rows, rejects, found = read(path)
    assert (rows, rejects) == (EXPECTED, [])
    assert found == {"format": "xlsx", "sheet": "장부", "header_row": 3}
    (tmp_path / "same.csv").write_text(as_csv())
    assert read(tmp_path / "same.csv")[0] == rows


@pytest.mark.parametrize(
    ("value", "number_format", "shown"),
    [
        (811, "0000", "0811"),
        (811.0, "General", "811"),
        (10.5, "0.00", "10.50"),
        (0.1 + 0.2, "General", "0.3"),
        ("0811", "@", "0811"),
        (date(2024, 1, 2), "yyyy-mm-dd", "2024-01-02"),
        (datetime(2024, 1, 2, 3, 4, 5), "yyyy-mm-dd hh:mm:ss", "2024-01-02 03:04:05"),
        (True, "General", "TRUE"),
        (81123, "000-00", "811-23"),
        (811, "0000;-0000;0;@", "0811"),
        (811, "[$-412]0000", "0811"),
        (811, "0000_);[Red]\\(0000\\)", "0811"),
        (811, "#0000", "0811"),
        (811, "#,##0_ ;-#,##0\\ ", "811"),
        (811, "[<=999]0000;0", "811"),
        (42, '"A;["000', "A;[042"),
        ("one_x000D_\ntwo_x005F_x000D_", "@", "one\r\ntwo_x000D_"),
        (1181123, "000-00", "11811-23"),
        (42, '"A-"0000', "A-0042"),
        (42, "\\K000", "K042"),
        (-5, "0000", "-5"),
        (0.05, "0%", "5%"),
        (0.125, "0.0%", "12.5%"),
        ("#N/A", "General", "#N/A"),
    ],
)
def test_a_cell_is_read_as_it_is_shown(tmp_path, value, number_format, shown):
    book = Workbook()
    book.active.append(["a"])
    book.active.append([value])
    book.active["A2"].number_format = number_format
    book.save(tmp_path / "x.xlsx")
    assert read(tmp_path / "x.xlsx", ["a"])[0] == [[shown]]


def test_the_sheet_with_the_columns_is_taken_and_never_one_of_several(tmp_path):
    table = [NAMES, *ROWS]
    path = save(tmp_path / "x.xlsx", {"표지": [["회사"]], "1월": table, "숨김": table}, ["숨김"])
    assert read(path)[2]["sheet"] == "1월"
    path = save(tmp_path / "x.xlsx", {"1월": table, "2월": table[:3]})
    with pytest.raises(Refused, match=r"the sheets \['1월', '2월'\] all have such columns"):
        read(path)
    assert read(path, sheet="2월")[0] == EXPECTED[:2]
    with pytest.raises(Refused, match=r"no sheet 3월, found \['1월', '2월'\]"):
        read(path, sheet="3월")


def test_a_sheet_without_the_columns_shows_no_cell(tmp_path):
    path = save(tmp_path / "x.xlsx", {"a": [["Jane Doe 4411", "rent"]]})
    with pytest.raises(Refused, match="found none of them") as caught:
        read(path)
    assert "Jane" not in str(caught.value)


def test_merged_cells_have_the_value_that_is_shown_for_all_of_them(tmp_path):
    rows = [("a", "x"), ("b", None), ("c", "y"), (None, None), ("d", None), ("e", "z")]
    path = save(tmp_path / "x.xlsx", {"s": [["title"], ["memo", "account"], *rows]})
    book = load_workbook(path)
    for area in ("A1:B1", "B3:B4", "B5:B7"):
        book.active.merge_cells(area)
    book.save(path)
    read_rows, _, found = read(path, ["memo", "account"])
    assert read_rows == [["a", "x"], ["b", "x"], ["c", "y"], ["d", "y"], ["e", "z"]]
    assert found["merged"] == 2


def test_a_chart_beside_the_sheets_is_passed_over(tmp_path):
    book = Workbook()
    for row in (["a"], ["x"]):
        book.active.append(row)
    chart = BarChart()
    chart.add_data(Reference(book.active, min_col=1, min_row=1))
    book.create_chartsheet("chart", 0).add_chart(chart)
    book.save(tmp_path / "x.xlsx")
    assert read(tmp_path / "x.xlsx", ["a"])[0] == [["x"]]


def test_a_sheet_of_many_empty_columns_is_read(tmp_path):
    path = save(tmp_path / "x.xlsx", {"a": [["a", *[None] * 16_382, "b"], ["x"], ["y"]]})
    assert read(path, ["a", "b"])[0] == [["x", ""], ["y", ""]]


def test_what_is_no_ordinary_workbook_is_refused_with_what_to_do(tmp_path):
    path = save(tmp_path / "x.xlsx", {"a": [NAMES], "b": [NAMES]}, ["b"])
    raw = path.read_bytes()
    kinds = {
        "no sheet that is shown": ("xl/workbook.xml", b'state="visible"', b'state="hidden"'),
        "Strict": ("xl/workbook.xml", b"schemas.openxmlformats.org/", b"purl.oclc.org/ooxml/"),
        "Save it as .xlsx": ("xl/workbook.xml", b"", b""),
    }
    for words, (changed, old, new) in kinds.items():
        with zipfile.ZipFile(io.BytesIO(raw)) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                text = source.read(name)
                kept = name.replace(".xml", ".bin") if name == changed and not old else name
                target.writestr(kept, text.replace(old, new) if name == changed and old else text)
        with pytest.raises(Refused, match=words):
            read(path)


def test_a_broken_or_inflated_workbook_is_refused(tmp_path):
    raw = save(tmp_path / "x.xlsx", {"a": [NAMES]}).read_bytes()
    (tmp_path / "x.xlsx").write_bytes(raw[:-200])
    with pytest.raises(Refused, match="can't be unpacked"):
        read(tmp_path / "x.xlsx")
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(
        tmp_path / "x.xlsx", "w", zipfile.ZIP_DEFLATED
    ) as new:  # fmt: skip
        for name in old.namelist():
            new.writestr(name, old.read(name) + b" " * (80 << 20) * name.endswith("sheet1.xml"))
    with pytest.raises(Refused, match="as a zip bomb does"):
        read(tmp_path / "x.xlsx")


def test_formulas_that_nothing_has_calculated_are_said(tmp_path):
    book = Workbook()
    for row in (["memo", "merchant"], ["=B2", "x"], ["=B3", "y"]):
        book.active.append(row)
    book.save(tmp_path / "in.xlsx")
    found = SheetSource(tmp_path / "in.xlsx", Wanted({"memo": "", "merchant": ""})).found
    assert found["uncalculated"] == 2
    assert "2 formulas without a value" in files_in_words([{"file": "in.xlsx", **found}])
