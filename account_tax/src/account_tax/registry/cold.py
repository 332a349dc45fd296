"""The cold check: a version loaded by a process that has never seen the training."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow

from account_tax.tracking.store import absolute_store

from . import verify

COLD_CHECK_TIMEOUT_SECONDS = 900


class ColdProcess:
    """A fresh process in another folder, without the project; imports while others work."""

    def __init__(self) -> None:
        self._elsewhere = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-P", verify.__file__, "-"],  # -P: this folder stays off sys.path
            cwd=self._elsewhere.name,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def load(self, uri: str, probe: Path, content_sha256: str) -> dict[str, Any]:
        """Return what verify.py says of a model; the process has done its work then.

        Returns:
            `verified`; where it is true max_abs_diff and tolerance, else the reason.
        """
        arguments = [uri, str(probe.resolve()), content_sha256]
        order = json.dumps({"arguments": arguments, "environment": _stores()})
        try:
            said, complaints = self._process.communicate(order, COLD_CHECK_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as err:
            return {"verified": False, "reason": f"no answer in {err.timeout:.0f} s."}
        finally:
            self.close()
        last_line = said.rstrip().rpartition("\n")[2]
        if last_line.startswith("{"):
            return json.loads(last_line)
        tail = "\n".join(complaints.splitlines()[-5:])
        status = self._process.returncode
        return {"verified": False, "reason": f"it ended with status {status}.\n{tail}"}

    def close(self) -> None:
        """End the process, whether it has worked or not."""
        self._process.kill()
        self._process.wait()
        self._elsewhere.cleanup()


_started: ColdProcess | None = None


def load_cold(uri: str, probe: Path, content_sha256: str) -> dict[str, Any]:
    """Return what a cold process says of a version, by its URI or its downloaded folder.

    The process is one that was started early, if there is one.
    """
    global _started
    process, _started = _started or ColdProcess(), None
    return process.load(uri, probe, content_sha256)


def start_cold() -> None:
    """Start the process of the next `load_cold` now."""
    global _started
    _started = ColdProcess()


def forget_cold() -> None:
    """End the process that was started and is not needed."""
    global _started
    if _started is not None:
        _started.close()
        _started = None


def _stores() -> dict[str, str]:
    stores = {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri(),
    }
    return {key: absolute_store(uri) for key, uri in stores.items()}
