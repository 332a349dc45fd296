"""What every format gives: windows of rows that follow each other, and those that can't be read.

Messages have column names, line and row numbers and counts; never a cell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from account_tax.errors import Refused

from .rows import Item, Rows, clean_name

HEADER_LINES = 100  # the header is looked for among so many lines
COLUMN_LIMIT = 16_384  # of a spreadsheet program's rows
SHOWN_COLUMNS = 50
CELL_LIMIT = 1 << 21  # of a window: of a table with many columns it has fewer rows


@dataclass(frozen=True)
class Wanted:
    """What is looked for in a file, and what is known of it.

    Attributes:
        columns: Name of each column that is needed, and the parameter that says so ("" for none).
        encoding: Of a text file; None finds it.
        header_row: Line of the header, from 1; None finds it by the columns.
        sheet: Of a spreadsheet; None takes the one that has the columns.
    """

    columns: Mapping[str, str]
    encoding: str | None = None
    header_row: int | None = None
    sheet: str | None = None


@dataclass(frozen=True)
class Reject:
    """A row that can't be read: the line or row it began in, from 1, and why."""

    number: int
    reason: str


@dataclass
class Window:
    """So many rows that follow each other, and those among them that can't be read."""

    rows: Rows
    rejects: list[Reject] = field(default_factory=list)
    file: str = ""  # that they are in, the split of that file, and what its numbers count
    split: str | None = None
    unit: str = ""

    @property
    def read(self) -> int:
        """How many rows were read, those that can't be used included."""
        return len(self.rows.numbers) + len(self.rejects)


def in_windows(
    items: Iterator[Item | Reject], size: int, to_rows: Callable[[list[Item]], Rows]
) -> Iterator[Window]:
    """Yield windows of `size` rows, rejects counted; one without rows where there are none."""
    good: list[Item] = []
    rejects: list[Reject] = []
    yielded = False
    for item in items:
        rejects.append(item) if isinstance(item, Reject) else good.append(item)
        if len(good) + len(rejects) == size:
            yield Window(to_rows(good), rejects)
            good, rejects, yielded = [], [], True
    if good or rejects or not yielded:
        yield Window(to_rows(good), rejects)


def bounded(size: int, columns: Sequence[str]) -> int:
    """Return the rows of a window that holds no more cells than `CELL_LIMIT`."""
    return max(1, min(size, CELL_LIMIT // max(len(columns), 1)))


# --- columns --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """The row that names the columns."""

    number: int  # of its line or row
    names: list[str]
    fits: tuple[int, int]  # wanted names it has, and those it has but for case


def find_header(records: Iterable[tuple[int, list[str]]], wanted: Wanted) -> Header | None:
    """Return the first row that has the wanted names, or the one that has most of them.

    Args:
        records: Number and cells of the rows that may be it.
        wanted: With `header_row` that row is taken, whatever its names.
    """
    best: Header | None = None
    for number, cells in records:
        header = Header(number, names := [clean_name(cell) for cell in cells], _fits(names, wanted))
        if wanted.header_row is not None:
            if number >= wanted.header_row:
                return header if number == wanted.header_row else None
            continue
        if best is None or header.fits > best.fits:
            best = header
        if best.fits[0] == len(wanted.columns):
            return best
    return best


def header_again(record: Item, names: Sequence[str]) -> Item | Reject:
    """Return a row, or set it aside where it repeats the header, as on each page of a report."""
    again = names[0] in record.values[0] and list(map(clean_name, record.values)) == [*names]
    if not again:
        return record
    return Reject(record.number, "the header once more")


def _fits(names: Sequence[str], wanted: Wanted) -> tuple[int, int]:
    folded = {name.casefold() for name in names}
    exact = sum(clean_name(column) in names for column in wanted.columns)
    return exact, sum(clean_name(column).casefold() in folded for column in wanted.columns)


def check_columns(
    names: Sequence[str],
    wanted: Wanted,
    header: Header | None = None,
    shown: Sequence[str] | None = None,
) -> None:
    """Refuse a table that lacks a wanted column, or has it twice.

    Args:
        names: Of the columns, as `clean_name` gives them.
        wanted: What is needed.
        header: Where the names stand among the rows: if none is as wanted, they may be cells.
        shown: The names that are no cells; None: all.
    """
    if len(names) > COLUMN_LIMIT:
        raise Refused(f"{len(names):,} columns. Expected at most {COLUMN_LIMIT:,}.")
    faults = [_missing_fault(names, wanted, header, names if shown is None else shown)]
    if twice := [name for name in repeated(names) if name in map(clean_name, wanted.columns)]:
        faults.append(f"the columns {twice} stand there more than once. Rename one.")
    if faults := list(filter(None, faults)):
        raise Refused(" ".join(faults))


def _missing_fault(
    names: Sequence[str], wanted: Wanted, header: Header | None, shown: Sequence[str]
) -> str:
    missing = [column for column in wanted.columns if clean_name(column) not in names]
    if not missing:
        return ""
    expected = f"expected the columns {sorted(wanted.columns)}, found"
    near = {name.casefold(): name for name in names}
    spelt = [
        near[name] for name in (clean_name(each).casefold() for each in missing) if name in near
    ]
    fields = "1 field" if len(names) == 1 else f"{len(names)} fields"
    if header is None or _may_be_shown(header, wanted):
        first = sorted(shown)[:SHOWN_COLUMNS]
        more = len(names) - len(first)
        text = f"{expected} {first}" + f" and {more:,} more" * (more > 0)
    elif wanted.header_row is not None:
        text = f"{expected} none of them in row {wanted.header_row}, which has {fields}"
    else:
        where = f"in the first {HEADER_LINES} lines; a row has {fields}"
        text = f"{expected} none of them {where}"
    text += f"; spelt in another case: {spelt}" if spelt else ""
    keys = ", ".join(dict.fromkeys(filter(None, (wanted.columns[name] for name in missing))))
    return f"{text}. Rename the column{f' or set {keys}' if keys else ''}."


def _may_be_shown(header: Header, wanted: Wanted) -> bool:
    """Return whether a row is a header after all, not one of cells that has a name by chance."""
    cells = any(re.fullmatch(r"[\W\d_]+", name) for name in header.names)
    return not cells and 0 < len(wanted.columns) <= 2 * header.fits[0]


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that stand there more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)
