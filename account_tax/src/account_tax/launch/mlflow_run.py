"""The MLflow run as the launcher owns it: adopted or started, logged to once, ended once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

DEFAULT_EXPERIMENT = "account-tax"
REASON_TAG = "account_tax.reason"
MAX_BATCH = 100  # params a request; the server's own limit


class TrackingError(RuntimeError):
    """The tracking server can't be used."""


class OwnedRun:
    """One MLflow run: `mlflow run` made it and handed its id over, or it is started here."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_name: str, tracking_uri: str):
        self._client = client
        self.run_id, self.experiment_name, self.tracking_uri = run_id, experiment_name, tracking_uri

    @classmethod
    def open(cls, project: Path) -> OwnedRun:
        """Return the run of MLFLOW_RUN_ID, or a new one in MLFLOW_EXPERIMENT_NAME.

        Raises:
            TrackingError: If the server does not answer or does not know the run.
        """
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"
        try:
            client = MlflowClient(uri)
            if run_id := os.environ.get("MLFLOW_RUN_ID"):
                run = client.get_run(run_id)
                client.update_run(run_id, status="RUNNING")
            else:
                run = client.create_run(_experiment_id(client))
            experiment = client.get_experiment(run.info.experiment_id)
        except MlflowException as err:
            raise TrackingError(
                f"MLFLOW_TRACKING_URI = {uri}: {err.message} "
                "Start the server, or unset the variable to log to mlflow.db in the project."
            ) from err
        return cls(client, run.info.run_id, experiment.name, uri)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a stage finds this run."""
        return {
            "MLFLOW_RUN_ID": self.run_id,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_EXPERIMENT_NAME": self.experiment_name,
        }

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log each resolved value once, under its dotted key."""
        params = [
            Param(key, str(value)[:MAX_PARAM_VAL_LENGTH]) for key, value in sorted(values.items())
        ]
        for start in range(0, len(params), MAX_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + MAX_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        entries = [RunTag(key, value[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items()]
        self._client.log_batch(self.run_id, tags=entries)

    def log_file(self, file: Path, folder: str) -> None:
        """Attach a file under a folder of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(file), folder)

    def close(self, status: str, reason: str = "") -> None:
        """End the run as FINISHED, FAILED or KILLED, the reason as a tag."""
        if reason:
            self.set_tags({REASON_TAG: reason})
        self._client.set_terminated(self.run_id, status)


def _experiment_id(client: MlflowClient) -> str:
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else client.create_experiment(name)
