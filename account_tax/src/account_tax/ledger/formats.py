"""A file of any format as windows of rows: told by its bytes, not only by its name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from account_tax.errors import Failed, Refused

from .delimited import MARKS, CsvSource
from .encodings import LINE_LIMIT, find_encoding, is_text, read_lines
from .packed import ZIP_MARK
from .rows import Item, JsonRows, ParquetRows, clean_name, parse_object
from .spreadsheet import SAVE_ANEW, SheetSource
from .windows import (
    COLUMN_LIMIT,
    Reject,
    Wanted,
    Window,
    bounded,
    check_columns,
    in_windows,
)

PARQUET_MARK, ARROW_STREAM_MARK, ARROW_FILE_MARK = b"PAR1", b"\xff\xff\xff\xff", b"ARROW1"
OLE_MARK = b"\xd0\xcf\x11\xe0"
JSON_ENDINGS = (".jsonl", ".ndjson", ".json")
TYPED_ENDINGS = (".parquet", ".arrow", ".xlsx", ".xlsm")
ENDINGS = (".csv", ".tsv", ".txt", *JSON_ENDINGS, *TYPED_ENDINGS)
SHOWN_FORMS = 5


def open_file(path: Path, wanted: Wanted) -> Source:
    """Return a file's table, by its first bytes; text is JSON Lines or delimited by its name.

    Raises:
        Refused: If it is empty, of no known kind, or lacks a wanted column.
        OSError: If it can't be read.
    """
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise Refused("the file is empty.")
    ending = path.suffix.lower()
    if head.startswith((PARQUET_MARK, ARROW_STREAM_MARK, ARROW_FILE_MARK)):
        return ArrowSource(path, wanted)
    if head.startswith(ZIP_MARK):
        return SheetSource(path, wanted)
    if head.startswith(OLE_MARK):
        raise Refused("an old Excel file, or one with a password. Save it as .xlsx without one.")
    if head.lstrip(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise Refused(f"an HTML or XML page, not a table. {SAVE_ANEW}")
    if ending in TYPED_ENDINGS:
        kind = {".parquet": "a Parquet", ".arrow": "an Arrow"}.get(ending, "a spreadsheet")
        raise Refused(f"not {kind} file that can be read. Save or export it anew as {ending}.")
    return (JsonSource if ending in JSON_ENDINGS else CsvSource)(path, wanted)


def files_in_words(found: Sequence[Mapping[str, Any]]) -> str:
    """Return how files were read as a line, those that were read alike together.

    Args:
        found: Of each file its `file` name and its source's `found`.
    """
    alike: dict[str, list[str]] = {}
    for file in found:
        alike.setdefault(_found_in_words(file), []).append(file["file"])
    listed = [
        f"{names[0] if len(names) == 1 else f'{len(names)} files'}: {words}"
        for words, names in alike.items()
    ]
    return "; ".join([*listed[:SHOWN_FORMS], *["..."] * (len(listed) > SHOWN_FORMS)])


def _found_in_words(file: Mapping[str, Any]) -> str:
    shown = {
        "format": file["format"],
        "encoding": file.get("encoding"),
        "delimiter": MARKS.get(file.get("delimiter", "")),
        "sheet": file.get("sheet") and f"sheet {file['sheet']}",
        "merged": file.get("merged") and f"{file['merged']} merged areas filled downwards",
        "formulas": file.get("uncalculated")
        and f"{file['uncalculated']} formulas without a value, so empty: save it in Excel once",
        "header": file.get("header_row") and f"header in row {file['header_row']}",
    }
    return ", ".join(filter(None, shown.values()))


# --- JSON Lines -----------------------------------------------------------------------------------


class JsonSource:
    """A JSON Lines file: an object on each line that is not blank."""

    unit, told = "line", ("encoding",)

    def __init__(self, path: Path, wanted: Wanted):
        self.path = path
        self._encoding = find_encoding(path, wanted.encoding or "utf-8")  # RFC 8259
        self._wanted = [clean_name(column) for column in wanted.columns]
        found = self._read_names()
        self.columns = list(found)
        # A key that few lines have may be a cell.
        common = [name for name, lines in found.items() if 2 * lines > max(found.values())]
        check_columns(self.columns, wanted, shown=common)
        self.found = {"format": "jsonl", "encoding": self._encoding.name}

    def _read_names(self) -> Counter[str]:
        names = Counter[str]()
        why = "empty"
        for found in self._objects():
            if isinstance(found, Item):
                names.update(dict.fromkeys(found.values, 1))
            elif why == "empty":
                why = f"line {found.number}: {found.reason}"
            if len(names) > COLUMN_LIMIT:
                raise Refused(f"more than {COLUMN_LIMIT:,} different keys, which is no table.")
        if not names:
            raise Refused(f"it has no line with a JSON object ({why}). Expected one on each line.")
        return names

    def _objects(self) -> Iterator[Item | Reject]:
        with self._encoding.open(self.path) as file:
            for number, line in enumerate(read_lines(file), start=1):
                if len(line) == LINE_LIMIT:
                    yield Reject(number, f"a line of more than {LINE_LIMIT:,} characters")
                elif raw := line.strip():
                    yield self._read_object(number, raw)

    def _read_object(self, number: int, raw: str) -> Item | Reject:
        if not is_text(raw):
            return Reject(number, f"bytes that are not {self._encoding.name.upper()}")
        if (values := parse_object(raw)) is None:
            return Reject(number, "no JSON object")
        if "\\u" in raw and not is_text(json.dumps(values, ensure_ascii=False)):
            return Reject(number, "half of a surrogate pair, which is no text")
        return Item(number, raw, {clean_name(key): value for key, value in values.items()})

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows, `size` at a time; one window without rows where there are none."""
        found = map(self._check_values, self._objects())
        size = bounded(size, self.columns)
        yield from in_windows(found, size, lambda items: JsonRows(self.columns, items))

    def _check_values(self, found: Item | Reject) -> Item | Reject:
        if isinstance(found, Reject):
            return found
        for name in self._wanted:
            if isinstance(value := found.values.get(name), (list, dict)):
                kind = "list" if isinstance(value, list) else "mapping"
                return Reject(found.number, f"a {kind} in {name}, which is not a single value")
        return found


# --- Parquet and Arrow ----------------------------------------------------------------------------


class ArrowSource:
    """A Parquet or Arrow file, with its own types."""

    unit, told = "row", ()

    def __init__(self, path: Path, wanted: Wanted):
        self._path = path
        try:
            with self._open() as (schema, _):
                renamed = [column.with_name(clean_name(column.name)) for column in schema]
                self.schema = pa.schema(renamed, schema.metadata)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as err:
            raise Refused("not a Parquet or Arrow file that can be read.") from err
        self.columns = self.schema.names
        check_columns(self.columns, wanted)
        for column in wanted.columns:
            kind = self.schema.field(clean_name(column)).type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                raise Refused(f"the column {column} has the type {kind}, not single values.")
        self.found = {"format": "parquet" if self._is_parquet() else "arrow"}

    def _is_parquet(self) -> bool:
        with self._path.open("rb") as file:
            return file.read(4) == PARQUET_MARK

    @contextmanager
    def _open(self) -> Iterator[tuple[pa.Schema, Callable[[int], Iterator[pa.RecordBatch]]]]:
        """Give the schema, and what reads the rows in batches of at most a size."""
        if self._is_parquet():
            with pq.ParquetFile(self._path, pre_buffer=False, buffer_size=1 << 20) as file:
                yield file.schema_arrow, lambda size: file.iter_batches(size, use_threads=False)
            return
        with pa.memory_map(str(self._path)) as raw:
            marked = raw.read(6) == ARROW_FILE_MARK
            raw.seek(0)
            reader = pa.ipc.open_file(raw) if marked else pa.ipc.open_stream(raw)
            yield reader.schema, lambda size: _batches(reader)

    def windows(self, size: int) -> Iterator[Window]:
        """Yield the rows, `size` at a time; one window without rows where there are none.

        Raises:
            Failed: If a row group is broken.
        """
        done, size = 0, bounded(size, self.columns)
        try:
            with self._open() as (_, read):
                for table in _slices(read(size), size):
                    numbers = list(range(done + 1, done + len(table) + 1))
                    yield Window(ParquetRows(numbers, self._rename(table)))
                    done += len(table)
        except (pa.ArrowInvalid, OSError) as err:
            raise Failed(
                f"the rows after row {done:,} can't be read ({type(err).__name__})."
            ) from err
        if not done:
            yield Window(ParquetRows([], self.schema.empty_table()))

    def _rename(self, table: pa.Table) -> pa.Table:
        return pa.Table.from_arrays(table.columns, schema=self.schema)


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return map(reader.get_batch, range(reader.num_record_batches))
    return iter(reader)


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


# A file that was found readable and has the wanted columns. `unit` is what a reject's number
# counts, line or row; `told` what a person can say of how it is read; `found` its format, and what
# was found out about it.
Source = CsvSource | SheetSource | JsonSource | ArrowSource
