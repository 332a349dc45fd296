"""A training recipe that files ledger lines under tax accounts."""

import os

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
