"""CSV and its like as rows, whatever its delimiter, encoding and the lines above its header."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count, islice, pairwise, takewhile
from pathlib import Path

from account_tax.errors import Refused

from .encodings import Encoding, find_encoding, is_text, read_lines
from .rows import CsvRows, Dialect, Item
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

MARKS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
END_OF_FILE = "\x1a"  # of DOS
SPACED = re.compile(' +"')
UNCLOSED = "a quote that is not closed"
AHEAD = 1 << 14  # characters of the lines that are looked at together
SPLIT_NUMBER = re.compile(r"\D{0,3}\d{1,3},\d{3}(\.\d*)?\D{0,3}")
MOST = 0.9  # of the first rows end alike where the rows of a file do
FIELD_LIMIT = csv.field_size_limit()


class _Lines:
    """The lines of a file, counted; those of one record can be given back."""

    def __init__(self, lines: Iterator[str]):
        self._lines, self._again = lines, list[str]()
        self.first, self.taken = 1, list[str]()  # of the record at hand

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._again.pop() if self._again else next(self._lines)
        self.taken.append(line)
        return line

    def look_ahead(self) -> list[str]:
        """Return some of the next lines, which are still to be taken; none while there are such."""
        if self._again:
            return []
        lines, left = list[str](), AHEAD
        while left > 0 and (line := next(self._lines, None)) is not None:
            lines.append(line)
            left -= len(line)
        self._again.extend(reversed(lines))
        return lines

    def begin_record(self) -> str | None:
        """Return the first line of the next record; None at the end."""
        self._end_record()
        return next(self, None)

    def take_ahead(self) -> int:
        """Take the lines that were looked at, a record each; return the number of the first."""
        self._end_record()
        self.taken.extend(reversed(self._again))
        self._again.clear()
        return self.first

    def _end_record(self) -> None:
        self.first += len(self.taken)
        self.taken.clear()

    def give_back(self, kept: int) -> None:
        """Let all but so many lines of the record be read again."""
        self._again.extend(reversed(self.taken[kept:]))
        del self.taken[kept:]

    @property
    def text(self) -> str:
        """The record as it stands in the file, without its end."""
        return _without_end("".join(self.taken))


class CsvSource:
    """A text file with a header; its delimiter is one of comma, semicolon, tab, bar."""

    unit, told = "line", ("encoding", "header_row")

    def __init__(self, path: Path, wanted: Wanted):
        self.path, self._encoding = path, find_encoding(path, wanted.encoding)
        headers = {mark: self._find_header(mark, wanted) for mark in MARKS}
        found = {mark: header for mark, header in headers.items() if header}
        if not found:
            raise Refused(f"{_no_header(wanted)}{_as_told(wanted)}")
        delimiter = max(found, key=lambda mark: found[mark].fits)  # the first among equals
        self._header = found[delimiter]
        self.columns = self._header.names
        try:
            check_columns(self.columns, wanted, self._header)
        except Refused as err:
            marks = ", ".join(MARKS.values())
            hint = f" Its fields are parted by none of {marks}." * (len(self.columns) == 1)
            raise Refused(f"{err}{hint}{_as_told(wanted)}") from None
        # Excel takes a file without BOM for one in the country's old encoding.
        bom = bool(self._encoding.skip) or self._encoding.name != "utf-8"
        self.dialect = Dialect(delimiter, self._line_end(), bom)
        self._surplus = self._find_surplus()
        self.found = {
            "format": "csv",
            "encoding": self._encoding.name,
            "delimiter": delimiter,
            "header_row": self._header.number,
        }

    def _find_header(self, delimiter: str, wanted: Wanted) -> Header | None:
        last = max(HEADER_LINES, wanted.header_row or 0)
        records = self._records(delimiter)
        near = takewhile(lambda record: record.number <= last, records)
        return find_header(
            ((each.number, each.values) for each in near if isinstance(each, Item)), wanted
        )

    def _line_end(self) -> str:
        with self._encoding.open(self.path) as file:
            line = next(read_lines(file))
        return line[len(line.rstrip("\r\n")) :] or "\n"

    def _records(self, delimiter: str) -> Iterator[Item | Reject]:
        with self._encoding.open(self.path) as file:
            yield from _read_records(read_lines(file), delimiter, self._encoding)

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows, `size` at a time; one window without rows where there are none."""
        size = bounded(size, self.columns)
        yield from in_windows(
            map(self._check_record, self._below_header()),
            size,
            lambda items: CsvRows(self.columns, items, self.dialect),
        )

    def _check_record(self, record: Item | Reject) -> Item | Reject:
        if isinstance(record, Reject):
            return record
        values, expected = record.values, len(self.columns)
        fields, usual = len(values), expected + self._surplus
        if self._surplus and fields == usual and not any(values[expected:]):
            values = values[:expected]
            record = Item(record.number, self.dialect.record(values), values)
        elif fields != expected or (self._surplus and not values[-1]):
            whose = "other rows have" if self._surplus else "the header has"
            return Reject(record.number, f"{fields} fields where {whose} {usual}")
        return header_again(record, self.columns)

    def _find_surplus(self) -> int:
        """Return how many blank fields end each row beyond the header's.

        In a few rows they come of a delimiter too many before them, such as in 1,200 without
        quotes; so they do in all where such a number stands at the same place of most.
        """
        below = islice(self._below_header(), HEADER_LINES)
        rows = [each.values for each in below if isinstance(each, Item)]
        whole = len(self.columns)
        longer = [row for row in rows if len(row) > whole and not any(row[whole:])]
        if len(longer) <= MOST * sum(len(row) >= whole for row in rows):
            return 0
        split = Counter(at for row in longer for at in _split_numbers(row))
        if max(split.values(), default=0) > len(longer) / 2:
            return 0
        return Counter(map(len, longer)).most_common(1)[0][0] - whole

    def _below_header(self) -> Iterator[Item | Reject]:
        records = self._records(self.dialect.delimiter)
        return (each for each in records if each.number > self._header.number)


def _split_numbers(row: list[str]) -> list[int]:
    """Return where two fields would be one number if a comma between them were its own."""
    return [at for at, pair in enumerate(pairwise(row)) if SPLIT_NUMBER.fullmatch(",".join(pair))]


def _as_told(wanted: Wanted) -> str:
    """Return what may be to blame for what is not found: how a person said that it is read."""
    told = {name: getattr(wanted, name) for name in ("encoding", "header_row")}
    said = [f"data.{name} says {value}" for name, value in told.items() if value is not None]
    return f" It was read so because {' and '.join(said)}: with null it is found." * bool(said)


def _no_header(wanted: Wanted) -> str:
    if wanted.header_row is None:
        return "it has no header: the file is empty, or its first line never ends."
    return f"no row begins in line {wanted.header_row}. Set data.header_row to the header's line."


def _read_records(
    lines: Iterable[str], delimiter: str, encoding: Encoding
) -> Iterator[Item | Reject]:
    """Yield each record that is not blank, which one of delimiters alone is, too.

    Of one that is broken, such as by a quote that is never closed, only the first line is lost:
    the lines after it are read again as records of their own.
    """
    counted = _Lines(iter(lines))
    form = {"delimiter": delimiter, "strict": True}
    plain = csv.reader(counted, **form)
    spaced = csv.reader(counted, skipinitialspace=True, **form)
    escaped = csv.reader(counted, escapechar="\\", **form)
    while True:
        if values := _one_a_line(ahead := counted.look_ahead(), delimiter):
            for number, line, row in zip(count(counted.take_ahead()), ahead, values):
                if any(row) and line.strip():
                    yield Item(number, _without_end(line), row)
            continue
        if (line := counted.begin_record()) is None:
            return
        try:
            if '"' in line or len(line) > FIELD_LIMIT:
                values = _next_values(counted, plain, spaced, escaped)
            else:  # the same, and several times as fast
                values = line.rstrip("\r\n").split(delimiter)
        except csv.Error as err:
            reason = UNCLOSED if len(counted.taken) > 1 else _csv_reason(str(err))
            counted.give_back(1)
            yield Reject(counted.first, reason)
            continue
        raw = counted.text
        if not is_text(raw):
            yield Reject(counted.first, f"bytes that are not {encoding.name.upper()}")
        elif any(values) and raw.strip() not in ("", END_OF_FILE):
            yield Item(counted.first, raw, values)


def _one_a_line(lines: list[str], delimiter: str) -> list[list[str]] | None:
    """Return the values of lines each of which is a whole record; None where one may be none."""
    text = "".join(lines)
    if ' "' in text or END_OF_FILE in text or not is_text(text):
        return None
    try:
        values = list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return values if len(values) == len(lines) else None


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _next_values(counted: _Lines, *readers: Iterator[list[str]]) -> list[str]:
    """Return the values of the record that has begun.

    Spaces may stand between a delimiter and a quote; Spark writes a backslash before a quote.
    """
    plain, spaced, escaped = readers
    line = counted.text
    counted.give_back(0)
    try:
        values = next(plain)
    except csv.Error:
        if '\\"' not in line:
            raise
        counted.give_back(0)
        return next(escaped)
    if any(map(SPACED.match, values)):
        counted.give_back(0)
        try:
            return next(spaced)
        except csv.Error:  # the quote is the text's own
            counted.give_back(0)
            return next(plain)
    return values


def _csv_reason(message: str) -> str:
    if "field limit" in message:
        return f"a field of more than {FIELD_LIMIT:,} characters"
    if "unexpected end of data" in message:
        return UNCLOSED
    return "text after a closing quote" if "expected after" in message else "no CSV record"
