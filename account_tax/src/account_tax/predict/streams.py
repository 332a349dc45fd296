"""Standard input and output where a file is asked for: `-`."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

from account_tax.errors import Failed
from account_tax.ledger.formats import JSON_ENDINGS

from .options import Options

STREAM = Path("-")


@contextmanager
def as_files(options: Options, scratch: Path) -> Iterator[Options]:
    """Give the options with files for `-`; at the end what was written goes to standard output.

    All messages go to standard error then, rejects without a file of their own too.
    """
    if options.input == STREAM:
        options = replace(options, input=_read_stdin(scratch))
    if options.output != STREAM:
        yield options
        return
    ending = ".jsonl" if options.input.suffix.lower() in JSON_ENDINGS else ".csv"
    options = replace(options, output=scratch / f"stdout{ending}", streamed=True)
    with redirect_stdout(sys.stderr):
        yield options
    if options.errors is None and options.rejects.exists():
        sys.stderr.write(options.rejects.read_text(encoding="utf-8"))
    try:
        with options.output.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.flush()
    except OSError as err:  # `| head` has what it wants, say
        with open(os.devnull, "w") as nothing:  # what is left would be written at the end
            os.dup2(nothing.fileno(), sys.stdout.fileno())
        raise Failed(
            f"standard output did not take all rows ({err.strerror}). Name a file: -P output."
        ) from err


def _read_stdin(scratch: Path) -> Path:
    """Return a file of what comes in: JSON Lines if an object begins it, else told by its bytes."""
    head = sys.stdin.buffer.read(1 << 10)
    begins = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    path = scratch / f"stdin{'.jsonl' if begins == b'{' else '.csv'}"
    with path.open("wb") as file:
        file.write(head)
        shutil.copyfileobj(sys.stdin.buffer, file)
    return path
