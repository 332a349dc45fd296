"""Writing filed rows: each window as a part of its own, and the parts as one file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from account_tax.ledger.joined import JoinedFiles
from account_tax.ledger.rows import Dialect, Rows

ENDINGS = (".csv", ".parquet", ".jsonl")
BOM = "\ufeff"
SCORE_DIGITS = 6


def make_sink(path: Path, source: JoinedFiles, added: Sequence[str]) -> Sink:
    """Return what writes a file, by the ending of its name; `added` names the answers' columns."""
    if path.suffix.lower() == ".csv":
        return CsvSink(source, added)
    return JsonSink() if path.suffix.lower() == ".jsonl" else ParquetSink()


class CsvSink:
    """CSV with a header; in the input's own dialect, where that is a CSV file too."""

    def __init__(self, source: JoinedFiles, added: Sequence[str]):
        self._dialect = source.dialect or Dialect()
        self._header = self._dialect.record([*source.columns, *added])

    def write_part(self, path: Path, rows: Rows, answers: pd.DataFrame) -> int:
        """Write rows, and beside each its answers: label, score and so on, (N,).

        Return how many have a cell that a spreadsheet runs; cells are never changed.
        """
        mark, end = self._dialect.delimiter, self._dialect.line_end
        added = map(self._dialect.record, zip(*_as_texts(answers), strict=True))
        pairs = zip(rows.records(self._dialect), added, strict=True)
        lines = [f"{record}{mark}{answer}{end}" for record, answer in pairs]
        path.write_text("".join(lines), encoding="utf-8", newline="")
        return sum(map(bool, map(_formula(mark).search, lines)))

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Write one file that holds the parts in their order, the header once."""
        header = f"{BOM if self._dialect.bom else ''}{self._header}{self._dialect.line_end}"
        _concatenate(header.encode(), parts, path)


class JsonSink:
    """JSON Lines; the input's own objects, where it is JSON Lines too."""

    def write_part(self, path: Path, rows: Rows, answers: pd.DataFrame) -> int:
        """Write each row's object with its answers, (N,), at its end."""
        added = [json.dumps(row, ensure_ascii=False) for row in answers.to_dict("records")]
        pairs = zip(rows.objects(), added, strict=True)
        lines = [f"{item[:-1].rstrip()}, {answer[1:]}\n" for item, answer in pairs]
        path.write_text("".join(lines), encoding="utf-8", newline="")
        return 0

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Write one file that holds the parts in their order."""
        _concatenate(b"", parts, path)


class ParquetSink:
    """Parquet; the input's own types, where it is Parquet too, else text."""

    def write_part(self, path: Path, rows: Rows, answers: pd.DataFrame) -> int:
        """Write the rows' columns, then those of their answers, (N,)."""
        table = rows.table()
        for name, column in answers.items():
            table = table.append_column(str(name), pa.array(column.tolist(), _arrow_type(column)))
        pq.write_table(table, path)
        return 0

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Write one file that holds the parts in their order, each a row group."""
        with pq.ParquetWriter(path, pq.read_schema(parts[0])) as writer:
            for part in parts:
                writer.write_table(pq.ParquetFile(part).read())


Sink = CsvSink | JsonSink | ParquetSink


@cache
def _formula(delimiter: str) -> re.Pattern[str]:
    """Return what finds a cell that begins as a formula does, and is no number with a sign."""
    mark = re.escape(delimiter)
    return re.compile(rf'(^|{mark})"?([=@]|[+-](?![\d.,]*"?({mark}|$)))', re.ASCII)


def _as_texts(answers: pd.DataFrame) -> list[list[str]]:
    """Return each column as the texts that a CSV file shows."""
    shown: dict[str, Callable[[Any], str]] = {
        "f": lambda score: f"{score:.{SCORE_DIGITS}f}",
        "b": lambda flag: "true" if flag else "false",
    }
    return [
        [shown.get(column.dtype.kind, str)(value) for value in column.tolist()]
        for _, column in answers.items()
    ]


def _arrow_type(column: pd.Series) -> pa.DataType:
    return {"b": pa.bool_(), "f": pa.float64()}.get(column.dtype.kind, pa.string())


def _concatenate(header: bytes, parts: Sequence[Path], path: Path) -> None:
    with path.open("wb") as output:
        output.write(header)
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, output)
