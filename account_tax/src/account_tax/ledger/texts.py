"""Rows kept on disk while a ledger is read: its texts, and what a model reads of them.

They are in files without a name: memory need not hold them, and nothing of them is left behind,
however the process ends.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, pairwise

import numpy as np
import pandas as pd
import pyarrow as pa

from account_tax.errors import Refused

# Gives of N texts the lists of int32 that a model reads, its token ids.
Tokenize = Callable[[pa.StringArray], pa.ListArray]

SCHEMA = pa.schema({"text": pa.string(), "ids": pa.list_(pa.int32())})


@contextmanager
def _or_say_where() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        raise Refused(
            f"TMPDIR = {tempfile.gettempdir()}: {err.strerror or err}, and the ledger's texts are "
            "kept there meanwhile. Free some space, or set TMPDIR to another folder."
        ) from err


class RowFile:
    """Arrow record batches in a file without a name: first all are appended, then they are read.

    Raises:
        Refused: If the folder for temporary files takes no more.
    """

    @_or_say_where()
    def __init__(self, schema: pa.Schema):
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as this
        self._writer: pa.RecordBatchFileWriter | None = pa.ipc.new_file(self._file, schema)
        self.starts = [0]  # of the batches, and their end: numbers of rows

    @_or_say_where()
    def append(self, batch: pa.RecordBatch) -> None:
        """Write some rows; those without any are left out."""
        assert self._writer is not None
        if batch.num_rows:
            self._writer.write_batch(batch)
            self.starts.append(self.starts[-1] + batch.num_rows)

    @_or_say_where()
    def _close(self) -> None:
        if self._writer:
            self._writer.close()
            self._file.flush()
            self._writer = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches, each read when its turn comes."""
        self._close()
        reader = pa.ipc.open_file(pa.PythonFile(self._file))
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)

    def table(self) -> pa.Table:
        """Return all rows, mapped from the file; it stays while the table is used."""
        self._close()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped))).read_all()


class Texts:
    """The texts of a ledger, a place for each row that was added, from 0.

    Args:
        tokenize: What a model reads of texts, or None where no model is known.
    """

    def __init__(self, tokenize: Tokenize | None = None):
        self._tokenize = tokenize
        self._rows = RowFile(SCHEMA if tokenize else SCHEMA.remove(1))

    def add(self, texts: pd.Series) -> pd.DataFrame:
        """Keep texts, (N,), and return of each its place and a number, seen, of what is read of it.

        Those of one number are repeats of each other, whichever ledger they are in.
        """
        first = self._rows.starts[-1]
        # A ledger repeats its lines: each of these rows' different texts is tokenized once.
        columns = {"text": pa.array(texts.tolist(), pa.string())}
        coded = columns["text"].dictionary_encode()
        places, read = coded.indices, coded.dictionary
        if self._tokenize:
            read = self._tokenize(read)
            columns["ids"] = read.take(places)
        self._rows.append(pa.record_batch(columns))
        place = np.arange(first, first + len(texts))
        return pd.DataFrame(
            {"place": place, "seen": number(read)[places.to_numpy()]}, index=texts.index
        )

    def of(self, rows: pd.DataFrame) -> list[str]:
        """Return the texts of rows, by their column place, which rises."""
        return list(chain.from_iterable(self.parts(rows)))

    def parts(self, rows: pd.DataFrame) -> Iterator[list[str]]:
        """Yield them some at a time."""
        return (array.to_pylist() for array in self._pick("text", rows))

    def token_ids(self, rows: pd.DataFrame) -> Iterator[pa.ListArray]:
        """Yield the lists of token ids of rows, by their column place, which rises."""
        return self._pick("ids", rows)

    def _pick(self, column: str, rows: pd.DataFrame) -> Iterator[pa.Array]:
        places, starts = rows["place"].to_numpy(), self._rows.starts
        assert np.all(np.diff(places) > 0)
        cuts = np.searchsorted(places, starts)
        for at, batch in enumerate(self._rows.batches()):
            mine = places[cuts[at] : cuts[at + 1]]
            if len(mine):
                yield batch[column].take(pa.array(mine - starts[at]))


def number(rows: pa.Array) -> np.ndarray:
    """Return a number of 64 bits for each text or list of int32, (N,), the same for the same."""
    offsets = np.frombuffer(rows.buffers()[1], "<i4")[rows.offset : rows.offset + len(rows) + 1]
    if isinstance(rows, pa.ListArray):
        data, width = memoryview(rows.values.to_numpy(zero_copy_only=False).astype("<i4")), 4
    else:
        data, width = memoryview(rows.buffers()[2] or b""), 1
    raw = data.cast("B")
    ends = (offsets * width).tolist()
    digests = b"".join(
        hashlib.blake2b(raw[start:end], digest_size=8).digest() for start, end in pairwise(ends)
    )
    return np.frombuffer(digests, dtype="<i8")
