"""A sheet of an Excel workbook as rows, its cells as they are shown."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from account_tax.errors import Failed, Refused

from .packed import refuse_bomb
from .rows import CsvRows, Item, clean_name
from .windows import (
    HEADER_LINES,
    Header,
    Wanted,
    Window,
    bounded,
    check_columns,
    find_header,
    in_windows,
)

TEXT_LIMIT = 256 << 20  # bytes of the workbook's texts, which are all held in memory


class SheetSource:
    """A sheet of an .xlsx or .xlsm file with a header, read row by row."""

    unit = "row"

    def __init__(self, path: Path, wanted: Wanted):
        self._path = path
        try:
            _refuse_what_fills_memory(path)
            with self._open() as book:
                headers = {
                    name: self._find_header(book[name], wanted) for name in _sheets(book, wanted)
                }
        except Refused:
            raise
        except Exception as err:  # openpyxl checks little, so a broken file fails anywhere
            raise Refused(f"not a spreadsheet that can be read ({type(err).__name__}).") from None
        self._sheet, self._header = _choose(headers)
        self.columns = self._header.names
        check_columns(self.columns, wanted, self._header)
        header_row = self._header.number
        self.found = {"format": "xlsx", "sheet": self._sheet, "header_row": header_row}

    @contextmanager
    def _open(self) -> Iterator[Any]:
        from openpyxl import load_workbook  # only spreadsheets need it

        with warnings.catch_warnings(), self._path.open("rb") as file:
            warnings.simplefilter("ignore")  # of what the sheet has that is no value
            book = load_workbook(file, read_only=True, data_only=True, keep_links=False)
            try:
                yield book
            finally:
                book.close()

    def _find_header(self, sheet: Any, wanted: Wanted) -> Header | None:
        rows = islice(_read_rows(sheet), max(HEADER_LINES, wanted.header_row or 0))
        return find_header(((number, cells) for number, cells in rows if any(cells)), wanted)

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows, `size` at a time; one window without rows where there are none.

        Raises:
            Failed: If the sheet breaks off.
        """
        try:
            with self._open() as book:
                yield from in_windows(
                    self._items(book[self._sheet]),
                    bounded(size, self.columns),
                    lambda items: CsvRows(self.columns, items, None),
                )
        except Exception as err:
            raise Failed(f"the sheet can't be read to its end ({type(err).__name__}).") from None

    def _items(self, sheet: Any) -> Iterator[Item]:
        width = len(self.columns)
        for number, cells in _read_rows(sheet):
            if number > self._header.number and any(cells):
                yield Item(number, "", (cells + [""] * width)[:width])


def _choose(headers: dict[str, Header | None]) -> tuple[str, Header]:
    """Return the sheet whose header fits best; never the first of several."""
    found = {sheet: header for sheet, header in headers.items() if header}
    if not found:
        raise Refused("it has no row that could be a header.")
    best = max(header.fits for header in found.values())
    chosen = [sheet for sheet, header in found.items() if header.fits == best]
    if len(chosen) > 1 and best[0]:
        raise Refused(f"the sheets {chosen} all have such columns. Set data.sheet to one of them.")
    return chosen[0], found[chosen[0]]


def _sheets(book: Any, wanted: Wanted) -> list[str]:
    """Return the names of the sheets that may be meant: the one named, else all that are shown."""
    titles = {clean_name(sheet.title): sheet for sheet in book.worksheets}
    if wanted.sheet is None:
        return [sheet.title for sheet in titles.values() if sheet.sheet_state == "visible"]
    if (name := clean_name(wanted.sheet)) not in titles:
        raise Refused(f"no sheet {name}, found {list(titles)}. Set data.sheet to one of them.")
    return [titles[name].title]


def _read_rows(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    sheet.reset_dimensions()  # a sheet may claim a million empty columns
    for number, row in enumerate(sheet.iter_rows(), start=1):
        cells = [_as_shown(cell) for cell in row]
        while cells and not cells[-1]:
            cells.pop()
        yield number, cells


def _as_shown(cell: Any) -> str:
    """Return a cell's text: a number with its zeros (0811), a date in ISO 8601, TRUE or FALSE."""
    value = cell.value
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime):
        return str(value).removesuffix(" 00:00:00")
    if not isinstance(value, (int, float)):
        return str(value)
    if zeros := re.fullmatch(r"(0+)(\.0+)?", cell.number_format):
        return f"{value:0{len(zeros[0])}.{max(len(zeros[2] or '') - 1, 0)}f}"
    return str(int(value)) if value == int(value) else f"{value:.15g}"


def _refuse_what_fills_memory(path: Path) -> None:
    refuse_bomb(path)
    with zipfile.ZipFile(path) as packed:
        texts = [each for each in packed.infolist() if each.filename == "xl/sharedStrings.xml"]
    if sum(each.file_size for each in texts) > TEXT_LIMIT:
        raise Refused("more text than can be held in memory. Save the sheet as CSV.")
