"""A sheet of an Excel workbook as rows, its cells as they are shown."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from account_tax.errors import Failed, Refused

from .packed import refuse_bomb
from .rows import CsvRows, Dialect, Item, clean_name
from .windows import (
    HEADER_LINES,
    Header,
    Reject,
    Wanted,
    Window,
    bounded,
    check_columns,
    find_header,
    header_again,
    in_windows,
)

MERGED = re.compile(rb'mergeCell ref="([A-Z]+)(\d+):[A-Z]+(\d+)"[^>]*>')
UNCALCULATED = re.compile(rb"<f\b[^<]*(?:</f>)?(?:<v\s*/>|<v></v>)?</c>")
MASK_PART = re.compile(r'0|[-/ ]|"[^"]*"|\\.')
MASK = re.compile(f"({MASK_PART.pattern})+")
# Of a number's format: colour and country, padding, digits that need not be there, other signs.
UNSEEN = re.compile(r'("[^"]*"|\\.)|\[(?![<>=])[^]]*\]|[_*].|#+(?=0)|;.*')
ESCAPED = re.compile("_x00([0-9A-F]{2})_")  # such as the end of a line on Windows, _x000D_
TEXT_LIMIT = 256 << 20  # bytes of the workbook's texts, which are all held in memory
SAVE_ANEW = "Open it in Excel, save it as .xlsx."  # what is to be done about other kinds of file


class SheetSource:
    """A sheet of an .xlsx or .xlsm file with a header, read row by row."""

    unit, told = "row", ("header_row", "sheet")
    dialect = Dialect(bom=True)  # of its rows as CSV, which Excel opens then

    def __init__(self, path: Path, wanted: Wanted):
        self._path = path
        try:
            _refuse_what_fills_memory(path)
            with self._open() as book:
                headers = {
                    name: self._find_header(book[name], wanted) for name in _sheets(book, wanted)
                }
                self._sheet, self._header = _choose(headers)
                areas, empty = _find_areas(path, book[self._sheet])
                self._merged = [
                    area
                    for area in areas
                    if area.first > self._header.number and area.column < len(self._header.names)
                ]
        except Refused:
            raise
        except Exception as err:  # openpyxl checks little, so a broken file fails anywhere
            why = f"not a spreadsheet that can be read ({type(err).__name__})"
            raise Refused(f"{why}. {SAVE_ANEW}") from None
        self.columns = self._header.names
        check_columns(self.columns, wanted, self._header)
        header_row = self._header.number
        self.found = {"format": "xlsx", "sheet": self._sheet, "header_row": header_row}
        counts = {"merged": len(self._merged), "uncalculated": empty}
        self.found |= {name: count for name, count in counts.items() if count}

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

    def _items(self, sheet: Any) -> Iterator[Item | Reject]:
        width = len(self.columns)
        waiting, here = deque(self._merged), list[_Area]()
        for number, cells in _read_rows(sheet):
            if number > self._header.number and any(cells):
                values = (cells + [""] * width)[:width]
                while waiting and waiting[0].first <= number:
                    here.append(waiting.popleft())
                here = [area for area in here if area.last >= number]
                for area in here:
                    area.fill(values, number)
                yield header_again(Item(number, "", values), self.columns)


@dataclass
class _Area:
    """Merged cells: the upper left one has the value, which stands for those below it too."""

    column: int
    first: int  # row, and the last one
    last: int
    value: str = ""

    def fill(self, values: list[str], number: int) -> None:
        if number == self.first:
            self.value = values[self.column]
        values[self.column] = self.value


def _find_areas(path: Path, sheet: Any) -> tuple[list[_Area], int]:
    """Return a sheet's areas of merged cells, by their first row, and its formulas without a value.

    The areas stand behind the rows, where openpyxl, reading row by row, does not come; a formula
    that no spreadsheet program has calculated is to it an empty cell.
    """
    from openpyxl.utils import column_index_from_string

    areas, empty, rest = list[_Area](), 0, b""
    with zipfile.ZipFile(path) as packed, packed.open(sheet._worksheet_path) as file:
        while piece := file.read(1 << 20):
            rest += piece
            for column, first, last in MERGED.findall(rest):
                place = column_index_from_string(column.decode()) - 1
                areas.append(_Area(place, int(first), int(last)))
            empty += len(UNCALCULATED.findall(rest))
            rest = rest[rest.rfind(b">") + 1 :]
    return sorted(areas, key=lambda area: area.first), empty


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
    if not titles:
        raise Refused(f"a workbook without a sheet, or a Strict Open XML one. {SAVE_ANEW}")
    if wanted.sheet is None:
        shown = [sheet.title for sheet in titles.values() if sheet.sheet_state == "visible"]
        if not shown:
            raise Refused(f"no sheet that is shown. Set data.sheet to one of {list(titles)}.")
        return shown
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
    if isinstance(value, str):
        return ESCAPED.sub(lambda found: chr(int(found[1], 16)), value)
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, datetime):
        return str(value).removesuffix(" 00:00:00")
    if not isinstance(value, (int, float)):
        return str(value)
    shown = UNSEEN.sub(r"\1", cell.number_format)
    if "0" in shown and MASK.fullmatch(shown) and value >= 0:
        return _masked(round(value), MASK_PART.findall(shown))
    if places := re.fullmatch(r"0+\.(0+)", shown):
        return f"{value:0{len(shown)}.{len(places[1])}f}"
    if places := re.fullmatch(r"0(?:\.(0+))?%", shown):
        return f"{value:.{len(places[1] or '')}%}"
    return str(int(value)) if value == int(value) else f"{value:.15g}"


def _masked(value: int, parts: list[str]) -> str:
    """Return a number in a format of zeros and text, such as 0000, 000-00 or "A-"000."""
    zeros = parts.count("0")
    text = f"{value:0{zeros}d}"
    digits = iter([text[: len(text) - zeros + 1], *text[len(text) - zeros + 1 :]])
    return "".join(next(digits) if part == "0" else part.strip('"\\') for part in parts)


def _refuse_what_fills_memory(path: Path) -> None:
    refuse_bomb(path)
    with zipfile.ZipFile(path) as packed:
        texts = [each for each in packed.infolist() if each.filename == "xl/sharedStrings.xml"]
    if sum(each.file_size for each in texts) > TEXT_LIMIT:
        raise Refused("more text than can be held in memory. Save the sheet as CSV.")
