"""What a person sees: progress, and with -v alone the bars, hints and logs of libraries."""

from __future__ import annotations

import logging
import os
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

COLUMNS, BESIDE = 100, 24  # of a terminal; a fact begins beside its name
VERBOSE_VARIABLE = "ACCOUNT_TAX_VERBOSE"  # inherited by what a command starts


def is_verbose() -> bool:
    """Return whether what libraries say is wanted, in this process and those it starts."""
    return VERBOSE_VARIABLE in os.environ


if not (sys.warnoptions or is_verbose()):  # here, because libraries warn while they are imported
    warnings.simplefilter("ignore")


def fact_line(name: str, fact: object) -> str:
    """Return a fact beside its name, broken between words into lines of at most 100 columns."""
    lines = [f"{name:<{BESIDE}}"]
    for word in str(fact).split(" "):
        if _columns(f"{lines[-1]} {word}") > COLUMNS and len(lines[-1]) > BESIDE:
            lines.append(" " * BESIDE)
        lines[-1] += f" {word}"
    return "\n".join(lines)


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text)


def settle_libraries(verbose: bool) -> None:
    """Let libraries say what they have to say, or leave it to the files of a run."""
    if verbose:
        os.environ[VERBOSE_VARIABLE] = "true"
    if is_verbose():
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", ResourceWarning)  # as Python does
        logging.getLogger("py.warnings").setLevel(logging.WARNING)  # conf/logging.yml has no ears
        return
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "account_tax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It sets its level when it is imported, which a filter outlives.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    # Each try of a server that is away would be a warning in the middle of the progress.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def follow(log: Path) -> Callable[[], None]:
    """Return what prints the lines that have come to a log since the last call, where asked for."""
    begun, rest = log.stat().st_size if log.exists() else 0, b""

    def show() -> None:
        nonlocal begun, rest
        with open(log, "rb") as file:
            file.seek(begun)
            came = file.read()
        begun += len(came)
        # Whole lines: a secret in two parts would not be found, nor half a letter be one.
        lines, end, rest = (rest + came).rpartition(b"\n")
        sys.stderr.write((lines + end).decode("utf-8", errors="replace"))

    return show if is_verbose() else lambda: None


class ProgressLine:
    """One line that is drawn over on a terminal, and now and then a line elsewhere."""

    def __init__(self, describe: Callable[[], str], out: TextIO | None = None):
        self._describe, self._out = describe, out or sys.stderr
        self._terminal = self._out.isatty() and not is_verbose()
        self._every_seconds = 1.0 if self._terminal else 5.0
        self._drawn_at = -self._every_seconds
        self._last = ""

    def draw(self, force: bool = False) -> None:
        """Draw what there is to say, if it is news and the last time is long enough ago."""
        now = time.monotonic()
        if not force and now - self._drawn_at < self._every_seconds:
            return
        if (line := self._describe()) and line != self._last:
            self._out.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
            self._out.flush()
            self._drawn_at, self._last = now, line

    def close(self) -> None:
        """Draw the last state and leave the line."""
        self.draw(force=True)
        if self._terminal and self._last:
            self._out.write("\n")
