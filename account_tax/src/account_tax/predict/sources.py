"""Reading a ledger of any size in windows of so many rows, those that can't be read set aside.

A source is opened once to be checked, and read from its beginning for each run. Messages have
column names, line and row numbers; never ledger text.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from account_tax.errors import Failed, Refused

from .rows import CsvRows, Dialect, Item, JsonRows, ParquetRows, Rows, parse_object

DELIMITERS = (",", ";", "\t", "|")
UNCLOSED = "a quote that is not closed"
NOT_UTF8 = "bytes that are not UTF-8"
FIELD_LIMIT = csv.field_size_limit()


@dataclass(frozen=True)
class Reject:
    """A row that can't be filed: the line or row it began in, from 1, and why."""

    number: int
    reason: str


@dataclass
class Window:
    """So many rows that follow each other, and those among them that can't be read."""

    rows: Rows
    rejects: list[Reject] = field(default_factory=list)

    @property
    def read(self) -> int:
        """How many rows were read, those that can't be filed included."""
        return len(self.rows.numbers) + len(self.rejects)


def open_source(path: Path, text_columns: Sequence[str]) -> Source:
    """Return the ledger in a file, by the ending of its name.

    Args:
        path: A .csv, .parquet or .jsonl file.
        text_columns: Those the model reads; by them a CSV file's delimiter is recognised.

    Raises:
        Refused: If it is empty or no file of its kind.
        OSError: If it can't be read.
    """
    return SOURCES[path.suffix.lower()](path, text_columns)


# --- CSV ------------------------------------------------------------------------------------------


class _Lines:
    """The lines of a file, counted; those of one record can be given back."""

    def __init__(self, file: TextIO):
        self._file, self._again = file, list[str]()
        self.first, self.taken = 1, list[str]()  # of the record at hand

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._file)
        self.taken.append(line)
        return line

    def begin_record(self) -> None:
        self.first += len(self.taken)
        self.taken.clear()

    def give_back(self) -> None:
        """Let all but the record's first line be read again."""
        self._again.extend(reversed(self.taken[1:]))
        del self.taken[1:]

    @property
    def text(self) -> str:
        """The record as it stands in the file, without its end."""
        return "".join(self.taken).removesuffix("\n").removesuffix("\r")


class CsvSource:
    """A CSV file: UTF-8, with a header; its delimiter one of comma, semicolon, tab, bar."""

    unit = "line"

    def __init__(self, path: Path, text_columns: Sequence[str]):
        self._path = path
        with path.open("rb") as file:
            bom = file.read(3) == b"\xef\xbb\xbf"
        headers = {mark: self._read_header(mark) for mark in DELIMITERS}
        fits = (mark for mark, (names, _) in headers.items() if {*text_columns} <= {*names})
        delimiter = next(fits, DELIMITERS[0])
        self.columns, line_end = headers[delimiter]
        self.dialect = Dialect(delimiter, line_end, bom)

    def _open(self) -> TextIO:
        # A byte that is not UTF-8 becomes a surrogate, which no valid text has.
        return self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")

    def _read_header(self, delimiter: str) -> tuple[list[str], str]:
        with self._open() as file:
            lines = _Lines(file)
            header = next(_read_records(lines, delimiter), None)
        if header is None:
            raise Refused("the file is empty.")
        if isinstance(header, Reject):
            raise Refused(
                f"its header has {header.reason}. Expected a CSV file in UTF-8 (in Excel: CSV "
                "UTF-8) whose first line names the columns."
            )
        written = "".join(lines.taken)
        return header.values, written[len(header.raw) :] or "\n"

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows, `size` at a time; one window without rows where there are none."""
        with self._open() as file:
            records = _read_records(_Lines(file), self.dialect.delimiter)
            next(records)  # the header
            yield from _in_windows(
                map(self._check_width, records),
                size,
                lambda items: CsvRows(self.columns, items, self.dialect),
            )

    def _check_width(self, record: Item | Reject) -> Item | Reject:
        if isinstance(record, Reject) or len(record.values) == len(self.columns):
            return record
        expected = len(self.columns)
        return Reject(record.number, f"{len(record.values)} fields where the header has {expected}")


def _read_records(lines: _Lines, delimiter: str) -> Iterator[Item | Reject]:
    """Yield each record that is not blank.

    Of one that is broken, such as by a quote that is never closed, only the first line is lost:
    the lines after it are read again as records of their own.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_record()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as err:
            reason = UNCLOSED if len(lines.taken) > 1 else _csv_reason(str(err))
            lines.give_back()
            yield Reject(lines.first, reason)
            continue
        raw = lines.text
        if not raw.isascii() and not _is_text(raw):
            yield Reject(lines.first, NOT_UTF8)
        elif values:
            yield Item(lines.first, raw, values)


def _csv_reason(message: str) -> str:
    if "field limit" in message:
        return f"a field of more than {FIELD_LIMIT:,} characters"
    if "unexpected end of data" in message:
        return UNCLOSED
    return "text after a closing quote" if "expected after" in message else "no CSV record"


# --- JSON Lines -----------------------------------------------------------------------------------


class JsonSource:
    """A JSON Lines file: UTF-8, an object on each line that is not blank."""

    unit = "line"

    def __init__(self, path: Path, text_columns: Sequence[str]):
        self._path = path
        columns: dict[str, None] = {}
        for found in self._objects():
            if isinstance(found, Item):
                columns |= dict.fromkeys(found.values)
        if not columns:
            raise Refused("it has no line with a JSON object. Expected one on each line.")
        self.columns = list(columns)

    def _objects(self) -> Iterator[Item | Reject]:
        with self._path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if raw := line.strip():
                    yield _read_object(number, raw)

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows, `size` at a time; one window without rows where there are none."""
        yield from _in_windows(self._objects(), size, lambda items: JsonRows(self.columns, items))


def _read_object(number: int, raw: str) -> Item | Reject:
    if not raw.isascii() and not _is_text(raw):
        return Reject(number, NOT_UTF8)
    if (values := parse_object(raw)) is None:
        return Reject(number, "no JSON object")
    if "\\u" in raw and not _is_text(json.dumps(values, ensure_ascii=False)):
        return Reject(number, "half of a surrogate pair, which is no text")
    return Item(number, raw, values)


# --- Parquet --------------------------------------------------------------------------------------


class ParquetSource:
    """A Parquet file, with its own types."""

    unit = "row"

    def __init__(self, path: Path, text_columns: Sequence[str]):
        self._path = path
        with suppress(pa.ArrowInvalid), self._open() as file:
            self._schema = file.schema_arrow
            self.columns = self._schema.names
            return
        raise Refused("not a Parquet file that can be read.")

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self._path, memory_map=False, pre_buffer=False, buffer_size=1 << 20)

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows, `size` at a time; one window without rows where there are none.

        Raises:
            Failed: If a row group is broken.
        """
        done = 0
        try:
            with self._open() as file:
                for table in _slices(file.iter_batches(size, use_threads=False), size):
                    yield Window(ParquetRows(list(range(done + 1, done + len(table) + 1)), table))
                    done += len(table)
        except (pa.ArrowInvalid, OSError) as err:
            raise Failed(f"input: a row group after row {done:,} can't be read; {err}") from err
        if not done:
            yield Window(ParquetRows([], self._schema.empty_table()))


def _slices(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Cut batches, which may end where a row group does, into tables of one size."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        while sum(map(len, waiting)) >= size:
            table = pa.Table.from_batches(waiting)
            yield table.slice(0, size)
            waiting = table.slice(size).to_batches()
    if any(map(len, waiting)):
        yield pa.Table.from_batches(waiting)


# --- their parts ----------------------------------------------------------------------------------


def _is_text(text: str) -> bool:
    with suppress(UnicodeEncodeError):
        text.encode("utf-8")
        return True
    return False


def _in_windows(
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


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that stand there more than once."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


# A ledger that was found readable; its `unit` is what a reject's number counts: line or row.
Source = CsvSource | JsonSource | ParquetSource
SOURCES: dict[str, Callable[[Path, Sequence[str]], Source]] = {
    ".csv": CsvSource,
    ".parquet": ParquetSource,
    ".jsonl": JsonSource,
}
