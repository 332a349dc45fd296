"""Sets a run's status once more when the process that would overwrite it has ended."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

import psutil
from mlflow import MlflowClient

PARENT_ENDS_SECONDS = 60


def set_status_after(parent: str, tracking_uri: str, run_id: str, status: str) -> None:
    """Wait for a process to end, for a time, then set the status of a run."""
    deadline = time.monotonic() + PARENT_ENDS_SECONDS
    with suppress(psutil.NoSuchProcess):
        # One that nobody has collected yet, a zombie, has ended too.
        while psutil.Process(int(parent)).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    MlflowClient(tracking_uri).set_terminated(run_id, status)


if __name__ == "__main__":
    set_status_after(*sys.argv[1:])
