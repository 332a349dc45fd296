"""A training recipe that files ledger lines under tax accounts."""

import os
import warnings
from typing import Any

__version__ = "0.1.0"

# Ledgers are confidential: nothing here sends usage data. The variables must stand before MLflow
# and the hub's client are imported, and the processes started from here inherit them. `.telemetry`
# in the project's root says the same to Kedro for commands that never import this package.
NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "KEDRO_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
os.environ.update(NO_TELEMETRY)

# Of a class of kedro-mlflow's, which no command uses. Kedro imports it before any command, and it
# puts a filter of its own before all others.
HINT = "Add type hints to the `predict` method"
_show = warnings.showwarning


def _show_others(message: Warning | str, *more: Any, **named: Any) -> None:
    if HINT not in str(message):
        _show(message, *more, **named)


warnings.showwarning = _show_others
