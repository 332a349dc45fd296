"""The files of a ledger read one after the other, as if they were one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from account_tax.errors import Failed, Refused

from .formats import ArrowSource, CsvSource, JsonSource, Source, files_in_words, open_file
from .packed import unpack
from .sources import SourceFile, digest_files, find_files
from .spreadsheet import SheetSource
from .windows import Wanted, Window, repeated

SHOWN_FAULTS = 3


class JoinedFiles:
    """A file, or a folder or glob of part files, opened.

    Attributes:
        faults: Each file that can't be read, and why; the others can.
        several: Whether it is more than one file.
        columns: Names of the columns; this and the next two are the first file's.
        unit: What a row's number counts in its file: line or row.
        dialect: How it is written as CSV, where it is CSV or a sheet.
        found: What was found out about each file: its name, format, encoding and so on.
        read_as: The same in words.
    """

    def __init__(self, source: str, wanted: Wanted, scratch: Path, alike: bool = False):
        """Open all files.

        Args:
            source: A path, URI or glob.
            wanted: What is looked for in each.
            scratch: Takes what is packed or not on this disk.
            alike: A file that has other columns than the first is a fault; rows have their columns
                in the first one's order.
        """
        self._files, self._alike = find_files(source, scratch), alike
        self._opened: list[tuple[SourceFile, Source]] = []
        self.faults: list[tuple[SourceFile, str]] = []
        self.several = len(self._files) > 1
        empty = self._find_empty()
        for file in self._files:
            if file in empty:
                continue
            try:
                self._opened.append((file, open_file(unpack(file.path, scratch), wanted)))
                if alike and _form(self._opened[0][1]) != _form(self._opened[-1][1]):
                    raise Refused("it has other columns than the first file.")
            except Refused as err:
                self.faults.append((file, str(err)))
        first = self._opened[0][1] if self._opened else None
        self.columns, self.unit = (first.columns, first.unit) if first else ([], "")
        self.dialect = first.dialect if isinstance(first, (CsvSource, SheetSource)) else None
        self.found = [{"file": file.label, **opened.found} for file, opened in self._opened]
        self.found += [{"file": file.label, "format": "empty"} for file in empty]
        self.read_as = files_in_words(self.found)
        if not self.faults and (idle := self._idle(wanted)):
            raise Refused(idle)

    @property
    def paths(self) -> list[Path]:
        """Where the files are on this disk."""
        return [file.path for file in self._files]

    def _find_empty(self) -> list[SourceFile]:
        """Return the files without a byte, such as Spark's parts without rows, beside others."""
        sizes = [size for size, _ in self.state()]
        filled = {file.split for file, size in zip(self._files, sizes, strict=True) if size}
        return [
            file
            for file, size in zip(self._files, sizes, strict=True)
            if not size and file.split in filled
        ]

    def _idle(self, wanted: Wanted) -> str:
        """Return what was said about the files that none of them takes, "" for nothing."""
        told = {name for _, opened in self._opened for name in opened.told}
        said = {name: getattr(wanted, name) for name in ("encoding", "header_row", "sheet")}
        idle = [
            f"{name} = {value} says nothing of it. Set data.{name} to null."
            for name, value in said.items()
            if value is not None and name not in told
        ]
        return f"it was read as {self.read_as}. {' '.join(idle)}" if idle else ""

    def refuse_faults(self) -> None:
        """Refuse files that can't be read, the first of them by name."""
        shown = [self._below(file, text) for file, text in self.faults[:SHOWN_FAULTS]]
        if (more := len(self.faults) - len(shown)) > 0:
            shown.append(f"{more} more files have faults.")
        if shown:
            raise Refused(" ".join(shown))

    def _below(self, file: SourceFile, text: str) -> str:
        return f"{file.label}: {text}" if self.several else text

    def digest(self) -> str:
        """Return the sha256 of all bytes, see `digest_files`."""
        return digest_files(self._files)

    def state(self) -> list[tuple[int, int]]:
        """Return what changes when a file does: its size in bytes and time in ns."""
        states = [os.stat(file.path) for file in self._files]
        return [(state.st_size, state.st_mtime_ns) for state in states]

    def lines(self) -> int | None:
        """Return the line ends of all files, about as many as rows; None if one is not text."""
        opened = [each for _, each in self._opened]
        texts = [each.path for each in opened if isinstance(each, CsvSource | JsonSource)]
        return sum(map(_count_lines, texts)) if len(texts) == len(opened) else None

    def windows(self, size: int) -> Iterator[Window]:
        """Yield each file's rows, `size` at a time.

        Raises:
            Failed: If a file breaks off.
        """
        for file, opened in self._opened:
            try:
                for window in opened.windows(size):
                    if opened.columns != self.columns and self._alike:
                        window.rows = window.rows.in_order(self.columns)
                    yield replace(window, file=file.label, split=file.split, unit=opened.unit)
            except Failed as err:
                raise Failed(self._below(file, str(err))) from err


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


def _form(opened: Source) -> tuple[object, ...]:
    kinds = opened.schema.types if isinstance(opened, ArrowSource) else [""] * len(opened.columns)
    columns = list(zip(opened.columns, map(str, kinds), strict=True))
    return opened.unit, columns if repeated(opened.columns) else sorted(columns)
