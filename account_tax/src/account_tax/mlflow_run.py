"""The MLflow run as a command owns it: adopted or started, logged to once, ended once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from account_tax.errors import Refused

DEFAULT_EXPERIMENT = "account-tax"
REASON_TAG = "account_tax.reason"
MAX_BATCH = 100  # params a request; the server's own limit
VERIFIED_TAG = "verified"  # as register sets it; its module would bring torch here
PARENT_ENDS_SECONDS = 60
SHORT_WAITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class TrackingError(Refused):
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
        uri, run_id = tracking_uri(project), os.environ.get("MLFLOW_RUN_ID")
        if run_id:
            _refuse_another_store(uri, run_id)
        with _answers_soon(uri):
            client = MlflowClient(uri)
            if run_id:
                run = client.get_run(run_id)
                client.update_run(run_id, status="RUNNING")
            else:
                run = client.create_run(_experiment_id(client))
            experiment = client.get_experiment(run.info.experiment_id)
        return cls(client, run.info.run_id, experiment.name, uri)

    def environment(self) -> dict[str, str]:
        """Return the variables by which a stage finds this run."""
        return {
            "MLFLOW_RUN_ID": self.run_id,
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_EXPERIMENT_NAME": self.experiment_name,
        }

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Log each resolved value once, under its dotted key.

        A param never changes: where the key itself was the -P name, its text is logged already.
        """
        logged = self._client.get_run(self.run_id).data.params
        params = [
            Param(key, str(value)[:MAX_PARAM_VAL_LENGTH])
            for key, value in sorted(values.items())
            if key not in logged
        ]
        for start in range(0, len(params), MAX_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + MAX_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        entries = [RunTag(key, value[:MAX_TAG_VAL_LENGTH]) for key, value in tags.items()]
        self._client.log_batch(self.run_id, tags=entries)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log each metric once, as the command's result."""
        now_ms = int(time.time() * 1000)
        points = [Metric(key, float(value), now_ms, 0) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=points)

    def log_text(self, text: str, name: str) -> None:
        """Store a text as an artifact of the run."""
        self._client.log_text(self.run_id, text, name)

    def salvage(self, logs: Iterable[Path]) -> None:
        """Attach the logs of a run that did not finish, and take back what it half registered.

        Raises:
            TrackingError: If the server does not answer.
        """
        with _answers_soon(self.tracking_uri):
            for log in logs:
                self._client.log_artifact(self.run_id, str(log), "logs")
            self._withdraw_unverified()

    def _withdraw_unverified(self) -> None:
        """Delete this run's versions that no cold load has confirmed, and models of no version."""
        client, kept = self._client, set[str | None]()
        for version in client.search_model_versions(f"run_id = '{self.run_id}'"):
            if version.tags.get(VERIFIED_TAG) == "true":
                kept.add(version.source)
                continue
            client.delete_model_version(version.name, version.version)
            if not client.search_model_versions(f"name = '{version.name}'"):
                client.delete_registered_model(version.name)
        experiment = self._client.get_run(self.run_id).info.experiment_id
        mine = f"source_run_id = '{self.run_id}'"
        for model in client.search_logged_models([experiment], filter_string=mine):
            if f"models:/{model.model_id}" not in kept:
                client.delete_logged_model(model.model_id)

    def close(self, status: str, reason: str = "") -> None:
        """End the run as FINISHED, FAILED or KILLED, the reason as a tag.

        Raises:
            TrackingError: If the server does not answer.
        """
        with _answers_soon(self.tracking_uri):
            if reason:
                self.set_tags({REASON_TAG: _fit(reason)})
            self._client.set_terminated(self.run_id, status)
        if status == "KILLED" and "MLFLOW_RUN_ID" in os.environ:
            self._repeat_after_parent(status)

    def _repeat_after_parent(self, status: str) -> None:
        """Start a process that sets the status once more when this process's parent has ended.

        `mlflow run` (3.17) means to leave an ended run alone, but takes its status' name for a
        number (mlflow/projects/__init__.py, _maybe_set_run_terminated) and so marks it as FAILED.
        """
        given = [str(os.getppid()), self.tracking_uri, self.run_id, status]
        subprocess.Popen(
            [sys.executable, "-m", "account_tax.mlflow_run", *given],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def tracking_uri(project: Path) -> str:
    """Return the store of runs and models: MLFLOW_TRACKING_URI, or mlflow.db in the project.

    A relative path of SQLite is made absolute, so that every stage finds the same file.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"
    if (file := _relative_file(given)) is None:
        return given
    return given.replace(f":///{file}", f":///{_folder_meant(file) / file}", 1)


def _folder_meant(file: str) -> Path:
    """Return the folder from which the run that was handed over is found at a relative path.

    `mlflow run URI` makes the run in the folder it is typed in, and starts the project in a clone
    elsewhere, with the same relative path: so the folders of the processes above are tried too.
    """
    here, run_id = Path.cwd(), os.environ.get("MLFLOW_RUN_ID")
    if run_id:
        for folder in (here, *_parents_folders()):
            if _has_run(folder / file, run_id):
                return folder
    return here


def _parents_folders() -> Iterator[Path]:
    for parent in psutil.Process().parents():
        with suppress(psutil.Error):  # another user's
            yield Path(parent.cwd())


def _has_run(store: Path, run_id: str) -> bool:
    """Return whether a file is a store that knows a run; none is made where there is no file."""
    if not store.is_file():
        return False
    with suppress(MlflowException), short_waits():
        MlflowClient(f"sqlite:///{store}").get_run(run_id)
        return True
    return False


def _relative_file(uri: str) -> str | None:
    """Return the path in a `sqlite:///` URI, if it depends on the working directory."""
    scheme, file = uri.partition(":///")[0], _path_of(uri)
    relative = scheme.split("+")[0] == "sqlite" and file not in ("", ":memory:")
    return file if relative and not file.startswith("/") else None


def _path_of(uri: str) -> str:
    return uri.partition(":///")[2].partition("?")[0]


def _refuse_another_store(uri: str, run_id: str) -> None:
    """Refuse a relative path at which nobody on the way to here has the run.

    Another store would be made otherwise, which nobody would look into.

    Raises:
        TrackingError: With the form that means the same file everywhere.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    if (file := _relative_file(given)) is None or _has_run(Path(_path_of(uri)), run_id):
        return
    raise TrackingError(
        f"MLFLOW_TRACKING_URI = {given}: a path relative to the folder it is used in. The run "
        f"{run_id} was started from another folder than {Path.cwd()}, where the project runs, so "
        "it is not in the store that this names here. Give the full path, with four slashes: "
        f"sqlite:////FOLDER/{Path(file).name}"
    )


@contextmanager
def _answers_soon(uri: str) -> Iterator[None]:
    """Turn errors of the store to TrackingError, and wait for a server seconds, not minutes."""
    try:
        with short_waits():
            yield
    except MlflowException as err:
        raise TrackingError(
            f"MLFLOW_TRACKING_URI = {uri}: {err.message} "
            "Start the server, or unset the variable to log to mlflow.db in the project."
        ) from err


@contextmanager
def short_waits() -> Iterator[None]:
    """Make MLflow wait for a server seconds, not minutes, where nothing else was asked for.

    While a run is under way MLflow's own patience is right; before and after it a person waits.
    """
    before = {name: os.environ.get(name) for name in SHORT_WAITS}
    os.environ.update({name: before[name] or value for name, value in SHORT_WAITS.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _fit(reason: str) -> str:
    """Return the reason as long as a tag may be: its beginning and its end say most."""
    if len(reason) <= MAX_TAG_VAL_LENGTH:
        return reason
    half = MAX_TAG_VAL_LENGTH // 2 - 5
    return f"{reason[:half]}\n[...]\n{reason[-half:]}"


def _experiment_id(client: MlflowClient) -> str:
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", DEFAULT_EXPERIMENT)
    experiment = client.get_experiment_by_name(name)
    return experiment.experiment_id if experiment else client.create_experiment(name)


def _set_status_after(parent: str, tracking_uri: str, run_id: str, status: str) -> None:
    deadline = time.monotonic() + PARENT_ENDS_SECONDS
    with suppress(psutil.NoSuchProcess):
        # One that nobody has collected yet, a zombie, has ended too.
        while psutil.Process(int(parent)).status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
    MlflowClient(tracking_uri).set_terminated(run_id, status)


if __name__ == "__main__":
    _set_status_after(*sys.argv[1:])
