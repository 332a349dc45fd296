"""Rows as each format holds them, and as each format writes them, their values unchanged.

A row goes back into its own format as it stood there: the text of a CSV record and of a JSON
object, the types of a Parquet column.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import pandas as pd
import pyarrow as pa

from account_tax.model.classifier import clean_text

clean_name = lru_cache(4096)(clean_text)  # of a column


@dataclass(frozen=True)
class Dialect:
    """How a CSV file is written: its delimiter, the end of its lines, and whether a BOM begins it.

    BOM: Excel takes a CSV without one for a file in the country's old encoding.
    """

    delimiter: str = ","
    line_end: str = "\n"
    bom: bool = False

    def record(self, values: Sequence[str]) -> str:
        """Return the values as the text of a record, quoted only where they have to be."""
        return self.delimiter.join(map(self._field, values))

    def _field(self, value: str) -> str:
        special = (self.delimiter, '"', "\n", "\r")
        if any(character in value for character in special):
            return '"' + value.replace('"', '""') + '"'
        return value


class Item(NamedTuple):
    """A row as it stands in a text file: the line it began in, from 1, its text and its values."""

    number: int
    raw: str
    values: Any


@dataclass(frozen=True)
class TextRows:
    """Some rows of a text file that follow each other; `columns` are the whole file's."""

    columns: list[str]
    items: list[Item]

    @property
    def numbers(self) -> list[int]:
        """The lines that they began in."""
        return [item.number for item in self.items]

    def keep(self, mask: np.ndarray) -> Self:
        """Return the rows for which the mask, (N,) bool, is true."""
        return replace(self, items=_chosen(self.items, mask))


@dataclass(frozen=True)
class CsvRows(TextRows):
    """Records of a CSV file or rows of a sheet; every value is text."""

    dialect: Dialect | None  # of the items' text; None where the file is no text

    def frame(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns as text, by the names given; what is missing is ""."""
        places = {column: self.columns.index(clean_name(column)) for column in columns}
        picked = {name: [item.values[at] for item in self.items] for name, at in places.items()}
        return pd.DataFrame(picked, dtype=str)

    def in_order(self, columns: Sequence[str]) -> Self:
        """Return the rows with the same columns in another order."""
        places = [self.columns.index(column) for column in columns]
        items = [each._replace(values=[each.values[at] for at in places]) for each in self.items]
        return replace(self, columns=[*columns], items=items, dialect=None)

    def records(self, dialect: Dialect) -> list[str]:
        """Return each row as the text of a CSV record, without its end."""
        if dialect == self.dialect:
            return [item.raw for item in self.items]
        return [dialect.record(item.values) for item in self.items]

    def objects(self) -> list[str]:
        """Return each row as the text of a JSON object."""
        return [_dump(dict(zip(self.columns, item.values, strict=True))) for item in self.items]

    def table(self) -> pa.Table:
        """Return the rows as an Arrow table of text."""
        return _text_table(self.columns, [item.values for item in self.items])


@dataclass(frozen=True)
class JsonRows(TextRows):
    """Objects of a JSON Lines file, numbers as they are written there.

    Columns are in the order of their first appearance.
    """

    def frame(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns as text, by the names given; what is missing is ""."""
        names = {column: clean_name(column) for column in columns}
        shown = {None: "", True: "True", False: "False"}
        picked = {
            column: [shown.get(value := item.values.get(name), value) for item in self.items]
            for column, name in names.items()
        }
        return pd.DataFrame(picked, dtype=str)

    def in_order(self, columns: Sequence[str]) -> Self:
        """Return the rows with the same columns in another order."""
        return replace(self, columns=[*columns])

    def records(self, dialect: Dialect) -> list[str]:
        """Return each row as a CSV record; null and a key that is missing are both empty."""
        return [dialect.record([value or "" for value in row]) for row in self._texts()]

    def objects(self) -> list[str]:
        """Return each row as its JSON object stands in the file."""
        return [item.raw for item in self.items]

    def table(self) -> pa.Table:
        """Return the rows as an Arrow table of text, as one key may hold several types."""
        return _text_table(self.columns, list(self._texts()))

    def _texts(self) -> Iterator[list[str | None]]:
        for item in self.items:
            yield [_json_text(item.raw, name, item.values.get(name)) for name in self.columns]


@dataclass(frozen=True)
class ParquetRows:
    """Rows of a Parquet file, with its types; `numbers` are theirs, from 1."""

    numbers: list[int]
    arrow: pa.Table

    def frame(self, columns: Sequence[str]) -> pd.DataFrame:
        """Return columns as text, by the names given; what is missing is ""."""
        classes = _class_names(self.arrow.schema)
        texts = {column: self._texts(clean_name(column), classes) for column in columns}
        return pd.DataFrame(texts, dtype=str)

    def _texts(self, name: str, classes: Mapping[str, list[str]]) -> list[str]:
        texts = _as_shown(self.arrow[name])
        if (names := classes.get(name)) is None:
            return texts
        return [names[int(number)] if number.isdigit() else "" for number in texts]  # -1: none

    def keep(self, mask: np.ndarray) -> ParquetRows:
        """Return the rows for which the mask, (N,) bool, is true."""
        chosen = _chosen(self.numbers, mask)
        return replace(self, numbers=chosen, arrow=self.arrow.filter(pa.array(mask)))

    def in_order(self, columns: Sequence[str]) -> ParquetRows:
        """Return the rows with the same columns in another order."""
        return replace(self, arrow=self.arrow.select(columns))

    def records(self, dialect: Dialect) -> list[str]:
        """Return each row as the text of a CSV record; null is empty."""
        columns = [_as_texts(column) for column in self.arrow.columns]
        return [dialect.record(row) for row in zip(*columns, strict=True)]

    def objects(self) -> list[str]:
        """Return each row as a JSON object; NaN and infinity, unknown to JSON, are null."""
        rows = self.arrow.to_pylist()
        return [_dump({key: _finite(value) for key, value in row.items()}) for row in rows]

    def table(self) -> pa.Table:
        """Return the rows as an Arrow table, with the file's own schema."""
        return self.arrow


# Some rows that follow each other in the input. Each format's answers to the same questions.
Rows = CsvRows | JsonRows | ParquetRows


def parse_object(line: str) -> dict[str, Any] | None:
    """Return the JSON object of a line, numbers as they are written; None if it is none."""
    keep: Callable[[str], Any] = str  # 0.50 must not become 0.5
    drop = {}.get  # to None: NaN and Infinity are not JSON
    try:
        found = json.loads(line, parse_int=keep, parse_float=keep, parse_constant=drop)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _json_text(raw: str, column: str, value: Any) -> str | None:
    if isinstance(value, (dict, list)):
        again = {clean_name(key): found for key, found in json.loads(raw).items()}
        return _dump(again[column])  # its numbers are numbers
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def _as_texts(column: pa.ChunkedArray) -> list[str]:
    try:
        texts = column.cast(pa.string()).to_pylist()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # lists, structs, bytes
        texts = [None if value is None else _dump(value) for value in column.to_pylist()]
    if pa.types.is_floating(column.type):
        return [_without_exponent(text or "") for text in texts]
    return [text or "" for text in texts]


def _without_exponent(number: str) -> str:
    """Return a number with all its digits: from 1e+10 on Arrow writes codes so."""
    return np.format_float_positional(float(number), trim="-") if "e" in number else number


def _as_shown(column: pa.ChunkedArray) -> list[str]:
    """Return single values as a table shows them: 811 for 811.0, a date without 00:00:00."""
    texts = _as_texts(column)
    if pa.types.is_floating(column.type):
        return ["" if text == "nan" else text for text in texts]
    if pa.types.is_boolean(column.type):
        return [text.capitalize() for text in texts]  # as Python and pandas write them
    if pa.types.is_timestamp(column.type):
        return [re.sub(r"( 00:00:00)?(\.0+)?$", "", text) for text in texts]
    return texts


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes of columns, as Hugging Face datasets records them."""
    info = json.loads((schema.metadata or {}).get(b"huggingface", "{}")).get("info", {})
    return {
        clean_name(column): kind["names"]
        for column, kind in info.get("features", {}).items()
        if isinstance(kind, dict) and isinstance(kind.get("names"), list)  # a ClassLabel
    }


def _text_table(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> pa.Table:
    schema = pa.schema([(column, pa.string()) for column in columns])
    arrays = [pa.array([row[place] for row in rows], pa.string()) for place in range(len(columns))]
    return pa.Table.from_arrays(arrays, schema=schema)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _chosen(items: Sequence[Any], mask: np.ndarray) -> list[Any]:
    return [item for item, wanted in zip(items, mask, strict=True) if wanted]
