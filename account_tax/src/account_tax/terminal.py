"""What a person sees: progress, and none of the bars, hints and logs of libraries."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TextIO

if not sys.warnoptions:  # here, because libraries warn while they are imported; python -W shows all
    warnings.simplefilter("ignore")


def quieten_libraries() -> None:
    """Leave what libraries log to the files of a run."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "account_tax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs each failed statement with its traceback and values, and raises it as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


class ProgressLine:
    """One line that is drawn over on a terminal, and now and then a line elsewhere."""

    def __init__(self, describe: Callable[[], str], out: TextIO | None = None):
        self._describe, self._out = describe, out or sys.stderr
        self._terminal = self._out.isatty()
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
