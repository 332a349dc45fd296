"""Keeps bars, hints to developers and logs off the terminal, where a person reads the result."""

from __future__ import annotations

import logging
import os
import sys
import warnings

if not sys.warnoptions:  # here, because libraries warn while they are imported; python -W shows all
    warnings.simplefilter("ignore")


def quieten_libraries() -> None:
    """Leave what libraries log to the files of a run."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "account_tax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It logs each failed statement with its traceback and values, and raises it as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
