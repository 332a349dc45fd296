"""The files of a ledger read one after the other, as if they were one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from account_tax.errors import Failed, Refused

from .formats import ArrowSource, CsvSource, Source, files_in_words, open_file
from .packed import unpack
from .sources import SourceFile, digest_files, find_files
from .windows import Wanted, Window

SHOWN_FAULTS = 3


class JoinedFiles:
    """A file, or a folder or glob of part files that have the same columns.

    Attributes:
        columns: Their names.
        unit: What a row's number counts in its file: line or row.
        dialect: Of the first file, where that is CSV.
        read_as: How the files are read, in words.
    """

    def __init__(self, source: str, wanted: Wanted, scratch: Path):
        self._files = find_files(source, scratch)
        self._opened = self._open_all(wanted, scratch)
        first = self._opened[0]
        self.columns, self.unit = first.columns, first.unit
        self.dialect = first.dialect if isinstance(first, CsvSource) else None
        pairs = zip(self._files, self._opened, strict=True)
        self.read_as = files_in_words([{"file": file.label, **each.found} for file, each in pairs])

    def _open_all(self, wanted: Wanted, scratch: Path) -> list[Source]:
        opened: list[Source] = []
        faults: list[str] = []
        for file in self._files:
            try:
                opened.append(open_file(unpack(file.path, scratch), wanted))
            except Refused as err:
                faults.append(self._below(file, str(err)))
            else:
                if _form(opened[-1]) != _form(opened[0]):
                    faults.append(self._below(file, "it has other columns than the first file."))
        if faults:
            more = len(faults) - SHOWN_FAULTS
            shown = [*faults[:SHOWN_FAULTS], *[f"{more} more files have faults."] * (more > 0)]
            raise Refused(" ".join(shown))
        return opened

    def _below(self, file: SourceFile, text: str) -> str:
        return f"{file.label}: {text}" if len(self._files) > 1 else text

    def digest(self) -> str:
        """Return the sha256 of all bytes, see `digest_files`."""
        return digest_files(self._files)

    def state(self) -> list[tuple[int, int]]:
        """Return what changes when a file does: its size in bytes and time in ns."""
        states = [os.stat(file.path) for file in self._files]
        return [(state.st_size, state.st_mtime_ns) for state in states]

    def windows(self, size: int) -> Iterator[Window]:
        """Yield each file's rows, `size` at a time; of several, windows name theirs.

        Raises:
            Failed: If a file breaks off.
        """
        for file, source in zip(self._files, self._opened, strict=True):
            try:
                for window in source.windows(size):
                    yield replace(window, file=file.label if len(self._files) > 1 else "")
            except Failed as err:
                raise Failed(self._below(file, str(err))) from err


def _form(source: Source) -> tuple[object, ...]:
    types = source.schema.types if isinstance(source, ArrowSource) else None
    return source.unit, source.columns, types
