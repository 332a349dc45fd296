"""Ledgers are read a window at a time, and what can't be read costs no other row."""

import random
import tracemalloc
from dataclasses import replace

import pytest

from account_tax.ledger import delimited
from account_tax.ledger.delimited import FIELD_LIMIT
from account_tax.ledger.formats import open_file
from account_tax.ledger.windows import Wanted
from tests.predict.conftest import make_rows, write_ledger

TEXT = Wanted({"memo": "", "merchant": ""})
COLUMNS = list(TEXT.columns)


def read(path, size=4):
    """Return the numbers of the rows that are good, and the rejects."""
    windows = list(open_file(path, TEXT).windows(size))
    numbers = [number for window in windows for number in window.rows.numbers]
    return numbers, [(each.number, each.reason) for window in windows for each in window.rejects]


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl", "in.parquet"])
@pytest.mark.parametrize("size", [1, 7, 13, 60, 100])
def test_windows_have_their_size_and_every_row_once(tmp_path, name, size):
    source = open_file(write_ledger(tmp_path / name, make_rows(60)), TEXT)
    windows = list(source.windows(size))
    assert [window.read for window in windows[:-1]] == [size] * (len(windows) - 1)
    ids = [row for window in windows for row in window.rows.frame(["id"])["id"]]
    assert ids == [f"{number:05d}" for number in range(60)]


@pytest.mark.parametrize("name", ["in.csv", "in.jsonl"])
def test_memory_does_not_grow_with_the_rows(tmp_path, name):
    peaks = []
    for rows in (2_000, 20_000):
        path = write_ledger(tmp_path / f"{rows}{name}", make_rows(rows))
        tracemalloc.start()
        for _ in open_file(path, TEXT).windows(500):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_the_one_by_which_the_header_has_the_text(tmp_path, delimiter):
    path = tmp_path / "in.csv"
    path.write_text("\n".join(delimiter.join(row) for row in (["id", *COLUMNS], ["1", "a,;b", ""])))
    source = open_file(path, TEXT)
    assert source.columns == ["id", *COLUMNS]


@pytest.mark.parametrize("seed", range(30))
def test_lines_that_are_read_together_give_what_each_gives_alone(tmp_path, monkeypatch, seed):
    draw = random.Random(seed)
    parts = ["a", "가", ",", ",", ";", '"', '"b"', '"c, d"', '""', ' "', "\\", "\x1a", "\xff", " "]
    ends = ["\n", "\r\n", "\r"] if draw.random() < 0.5 else ["\n"]
    broken = draw.choice([0.0, 0.02, 0.5])  # of the lines: whole parts are read each way

    def line():
        if draw.random() < broken:
            if draw.random() < 0.5:
                return 'a,"b\nc"'
            return "".join(draw.choices(parts, k=draw.randint(0, 6)))
        return draw.choice(
            ['"a, b",가', "a,b", 'a,"b ""c"""', ",", "", '"",x', 'a "b",c', 'a"b,c"d']
        )

    text = "memo,merchant\n" + "".join(line() + draw.choice(ends) for _ in range(200))
    path = tmp_path / "in.csv"
    path.write_bytes(text.encode().replace("\xff".encode(), b"\xff"))
    monkeypatch.setattr(delimited, "AHEAD", draw.choice([1, 50, 400, 1 << 14]))

    wanted = replace(TEXT, encoding="utf-8")

    def records():
        windows = open_file(path, wanted).windows(64)
        return [(window.rows.items, window.rejects) for window in windows]

    together = records()
    monkeypatch.setattr(delimited, "_one_a_line", lambda *_: None)
    assert together == records()


def test_line_numbers_count_blank_lines_and_lines_inside_quotes(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b'memo,merchant\r\n \t\r\n"a\r\nb",x\r\nc,y\rd,z\nbad\n')
    assert read(path) == ([3, 5, 6], [(7, "1 fields where the header has 2")])


def test_a_header_that_is_repeated_on_each_page_is_no_row(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(
        "memo,merchant\na,x\n memo, merchant\nb,y\nmemo,x\n\ufeffmemo,merchant\n", "utf-8"
    )
    assert read(path) == ([2, 4, 5], [(3, "the header once more"), (6, "the header once more")])


def test_a_delimiter_at_the_end_of_each_row_but_not_of_the_header_is_no_field(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("memo,merchant\na,x,\nb,y,\n" + "c,z,1\n")
    assert read(path) == ([], [(at, "3 fields where the header has 2") for at in (2, 3, 4)])
    path.write_text("memo,merchant\n" + "a,x,\n" * 20 + "b,y,,\nc,z,1\n")
    more = "fields where other rows have 3"
    assert read(path, 99) == ([*range(2, 22)], [(22, f"4 {more}"), (23, f"3 {more}")])
    rows = next(open_file(path, TEXT).windows(4)).rows
    assert rows.records(rows.dialect) == ["a,x"] * 4  # more columns come behind them


def read_values(path, rows):
    path.write_text("\n".join(["memo,merchant,amount,note", *rows]) + "\n")
    source = open_file(path, TEXT)
    windows = list(source.windows(100))
    assert sum(map(len, (window.rejects for window in windows))) + sum(
        len(window.rows.numbers) for window in windows
    ) == len(rows)
    return (
        [item.values for window in windows for item in window.rows.items],
        [(each.number, each.reason) for window in windows for each in window.rejects],
    )


TOO_MANY = "5 fields where the header has 4"


@pytest.mark.parametrize(
    "rows",
    [
        ["taxi,Kim,1,200,", "hotel,Lee,500,", "lunch,Kim,12,345,"],  # thousands, unquoted
        ["lunch, dinner,Kim,500,", *["taxi,Lee,500,paid"] * 20],
        [*["taxi,Lee,500,"] * 200, "lunch, dinner,Kim,500,"],
    ],
)
def test_a_blank_behind_a_field_too_many_does_not_shift_a_row(tmp_path, rows):
    values, rejects = read_values(tmp_path / "in.csv", rows)
    broken = [at for at, row in enumerate(rows, start=2) if row.count(",") == 4]
    assert rejects == [(number, TOO_MANY) for number in broken]
    assert values == [row.split(",") for row in rows if row.count(",") == 3]


def test_thousands_without_quotes_in_every_row_are_no_delimiter_at_its_end(tmp_path):
    rows = [f"taxi,Kim,{number},{100 + number}," for number in range(1, 30)]
    values, rejects = read_values(tmp_path / "in.csv", rows)
    assert not values
    assert {reason for _, reason in rejects} == {TOO_MANY}


def test_a_row_that_differs_where_a_delimiter_ends_each_is_set_aside(tmp_path):
    good = ["taxi,Kim,500,,", "hotel,Lee,700,paid,"] * 30
    rows = [*good, "lunch, dinner,Kim,500,,", "taxi,Kim,500,", "taxi,Kim,500,paid"]
    values, rejects = read_values(tmp_path / "in.csv", rows)
    assert values == [row.removesuffix(",").split(",") for row in good] + [rows[-1].split(",")]
    more = "where other rows have 5"
    assert rejects == [(62, f"6 fields {more}"), (63, f"4 fields {more}")]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(tmp_path):
    path = tmp_path / "in.csv"
    rows = ["a,x", '"b,x', *["c,x"] * 200]
    path.write_text("\n".join(["memo,merchant", *rows]))
    numbers, rejects = read(path)
    assert numbers == [2, *range(4, 204)]
    assert rejects == [(3, "a quote that is not closed")]


def test_spaces_before_what_is_no_quote_stay(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('memo,merchant\n "a, b", x\n "big" shop, x\n "c\nd", "e"\n"f", g\n')
    window = next(open_file(path, TEXT).windows(9))
    rows = [["a, b", "x"], [' "big" shop', " x"], ["c\nd", "e"], ["f", " g"]]
    assert [item.values for item in window.rows.items] == rows
    assert window.rows.numbers == [2, 3, 4, 6]


def test_a_backslash_in_an_open_quote_takes_no_other_line(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('memo,merchant\n"12 \\" pipe,x\n"13 \\" pipe",y\n"14" pipe,z\n')
    reasons = ["a quote that is not closed", "text after a closing quote"]
    assert read(path) == ([3], list(zip([2, 4], reasons, strict=True)))


def test_a_quote_left_open_in_a_large_file_is_found_within_the_longest_field(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("memo,merchant\n" + '"b,x\n' + "c,x\n" * FIELD_LIMIT)
    numbers, rejects = read(path, size=10_000)
    assert len(numbers) == FIELD_LIMIT
    assert rejects == [(2, "a quote that is not closed")]


def test_a_field_longer_than_any_line_of_a_ledger_is_set_aside(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(f"memo,merchant\n{'x' * (FIELD_LIMIT + 1)},y\na,b\n")
    assert read(path) == ([3], [(2, f"a field of more than {FIELD_LIMIT:,} characters")])


def test_the_end_of_a_file_of_dos_is_no_row(tmp_path):
    path = tmp_path / "in.csv"
    path.write_bytes(b"memo,merchant\r\na,x\r\n\x1a")
    assert read(path) == ([2], [])
