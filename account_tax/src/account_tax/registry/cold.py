"""The cold check: a version loaded by a process that has never seen the training."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion

from account_tax.tracking.store import absolute_store

from . import verify

COLD_CHECK_TIMEOUT_SECONDS = 900


def load_cold(version: ModelVersion, probe: Path, content_sha256: str) -> dict[str, Any]:
    """Return what verify.py, in a fresh process and another folder, says of a version.

    Returns:
        `verified`; where it is true max_abs_diff and tolerance, else the reason.
    """
    script = [sys.executable, "-P", verify.__file__]  # -P: this folder stays off sys.path
    uri = f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory() as elsewhere:
        try:
            done = subprocess.run(
                [*script, uri, str(probe.resolve()), content_sha256],
                cwd=elsewhere, env=_environment(), capture_output=True, text=True,
                timeout=COLD_CHECK_TIMEOUT_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as err:
            return {"verified": False, "reason": f"no answer in {err.timeout:.0f} s."}
    last_line = done.stdout.rstrip().rpartition("\n")[2]
    if last_line.startswith("{"):
        return json.loads(last_line)
    tail = "\n".join(done.stderr.splitlines()[-5:])
    return {"verified": False, "reason": f"it ended with status {done.returncode}.\n{tail}"}


def _environment() -> dict[str, str]:
    stores = {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    return {**os.environ, **{key: absolute_store(uri) for key, uri in stores.items()}}
