"""The MLflow run as a command owns it: adopted or started, logged to once, ended once."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

from account_tax.errors import Failed, Refused
from account_tax.metric_journal import send_batch
from account_tax.ownership import OWNER_TAG, REASON_TAG
from account_tax.process_identity import identify

DEFAULT_EXPERIMENT = "account-tax"
CONTINUES_TAG = "account_tax.continues"  # of an attempt: the run that it let go on
PATIENCE_VARIABLE = "ACCOUNT_TAX_TRACKING_PATIENCE"  # seconds
PATIENCE_SECONDS = 120.0  # how long the end of a run waits for a server that is away
RETRY_SECONDS = 2.0
FINAL_ANSWERS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "PERMISSION_DENIED")
MAX_BATCH = 100  # params a request; the server's own limit
VERIFIED_TAG = "verified"  # as register sets it; its module would bring torch here
PARENT_ENDS_SECONDS = 60
SHORT_WAITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


class TrackingError(Refused):
    """The tracking server can't be used."""


class TrackingAway(Failed):
    """The tracking server has not answered for as long as it was waited for."""


class OwnedRun:
    """One MLflow run: `mlflow run` made it and handed its id over, or it is started here."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_name: str, tracking_uri: str):
        self._client = client
        self.run_id, self.experiment_name, self.tracking_uri = run_id, experiment_name, tracking_uri
        self._attempt_id: str | None = None  # of `mlflow run`, where an earlier run goes on
        self.ended = False

    @classmethod
    def open(cls, project: Path) -> OwnedRun:
        """Return the run of MLFLOW_RUN_ID, or a new one in MLFLOW_EXPERIMENT_NAME.

        Raises:
            TrackingError: If the server does not answer or does not know the run.
        """
        uri, run_id = tracking_uri(project), os.environ.get("MLFLOW_RUN_ID")
        if run_id:
            _refuse_another_store(uri, run_id)
        with answers_soon(uri):
            client = MlflowClient(uri)
            if run_id:
                return cls.reopen(client, run_id, uri)
            tags = {OWNER_TAG: identify()}  # from its first moment, so that it can be closed
            run = client.create_run(_experiment_id(client), tags=tags)
            experiment = client.get_experiment(run.info.experiment_id)
        return cls(client, run.info.run_id, experiment.name, uri)

    @classmethod
    def reopen(cls, client: MlflowClient, run_id: str, uri: str) -> OwnedRun:
        """Return a run of the store, this process's from now on and RUNNING again."""
        experiment = client.get_experiment(claim(client, run_id).info.experiment_id)
        return cls(client, run_id, experiment.name, uri)

    def status_of(self, run_id: str) -> str | None:
        """Return another run's status; None where the server knows no such run."""
        with answers_soon(self.tracking_uri):
            try:
                info = self._client.get_run(run_id).info
            except MlflowException as err:
                unknown = ErrorCode.Name(RESOURCE_DOES_NOT_EXIST), "INVALID_PARAMETER_VALUE"
                if err.error_code in unknown:
                    return None
                raise
        return info.status if info.lifecycle_stage == "active" else None

    def go_on(self, run_id: str, step: int) -> None:
        """Be an earlier, interrupted run from here on: it is RUNNING again.

        The run that the command began as goes, where the command made it. One that `mlflow run`
        made stays as a small record of this attempt, below the other: `mlflow run` will end it.
        """
        client, begun = self._client, self.run_id
        with answers_soon(self.tracking_uri):
            run = claim(client, run_id)
            self.experiment_name = client.get_experiment(run.info.experiment_id).name
            if begun != run_id and "MLFLOW_RUN_ID" in os.environ:
                self.set_tags({
                    MLFLOW_PARENT_RUN_ID: run_id,
                    CONTINUES_TAG: run_id,
                    MLFLOW_RUN_NOTE: f"An attempt that continued run {run_id} from step {step}. "
                    "Parameters, metrics and the model are that run's.",
                })  # fmt: skip
                self._attempt_id = begun
            elif begun != run_id:
                client.set_terminated(begun, "KILLED")
                client.delete_run(begun)
        self.run_id = run_id

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

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags of the run; one that is None goes."""
        given = {key: text[:MAX_TAG_VAL_LENGTH] for key, text in tags.items() if text is not None}
        entries = [RunTag(key, text) for key, text in given.items()]
        self._client.log_batch(self.run_id, tags=entries)
        if gone := tags.keys() - given.keys():
            for key in gone & self._client.get_run(self.run_id).data.tags.keys():
                self._client.delete_tag(self.run_id, key)

    def tag_other(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of another run, if the server knows it."""
        with suppress(MlflowException):
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value[:MAX_TAG_VAL_LENGTH])

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log each metric once, as the command's result."""
        now_ms = int(time.time() * 1000)
        points = [Metric(key, float(value), now_ms, 0) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=points)

    def log_text(self, text: str, name: str) -> None:
        """Store a text as an artifact of the run."""
        self._client.log_text(self.run_id, text, name)

    def log_bytes(self, raw: bytes, name: str) -> None:
        """Store bytes as an artifact of the run."""
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_bytes(raw)
            self._client.log_artifact(self.run_id, str(file))

    def salvage(self, logs: Iterable[Path]) -> None:
        """Attach the logs of a run that did not finish, and take back what it half registered.

        Raises:
            TrackingError: If the server does not answer.
        """
        with answers_soon(self.tracking_uri):
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

    def send_metrics(
        self, journal: Path, *, patience: float = 0.0, within: float = math.inf
    ) -> None:
        """Store what is left of a journal's points; where time is short, what `within` s allow.

        Raises:
            TrackingAway: If the server does not answer, for `patience` seconds.
            TrackingError: If it answers, and refuses.
        """
        until = time.monotonic() + within

        def send() -> None:
            self._client.get_run(self.run_id)  # also where nothing is left: does it answer?
            while send_batch(self._client, self.run_id, journal) and time.monotonic() < until:
                pass

        self._insist(send, patience)

    def close(self, status: str, reason: str = "", *, patience: float = 0.0) -> None:
        """End the run as FINISHED, FAILED or KILLED, the reason as a tag.

        Raises:
            TrackingAway: If the server does not answer, for `patience` seconds.
            TrackingError: If it answers, and refuses.
        """

        def end() -> None:
            if reason:
                self.set_tags({REASON_TAG: _fit(reason)})
            self._client.set_terminated(self.run_id, status)
            if self._attempt_id:
                self._client.set_terminated(self._attempt_id, status)
            self.ended = True

        self._insist(end, patience)
        if status == "KILLED" and "MLFLOW_RUN_ID" in os.environ:
            self._repeat_after_parent(status)

    def _insist(self, work: Callable[[], None], patience: float) -> None:
        """Do something until it succeeds, for a time; all of it may be done twice."""
        deadline, said = time.monotonic() + patience, False
        while True:
            try:
                with answers_soon(self.tracking_uri):
                    return work()
            except TrackingError as err:
                if _is_final(err):
                    raise
                if time.monotonic() + RETRY_SECONDS > deadline:
                    waited = f" It was waited for, {patience:.0f} s." if patience else ""
                    raise TrackingAway(f"{err}{waited}") from err
                if not said:
                    wait = f"waiting for the tracking server, {patience:.0f} s at most"
                    click.echo(wait, err=True)
                said = True
                time.sleep(RETRY_SECONDS)

    def _repeat_after_parent(self, status: str) -> None:
        """Start a process that sets the status once more when this process's parent has ended.

        `mlflow run` (3.17) means to leave an ended run alone, but takes its status' name for a
        number (mlflow/projects/__init__.py, _maybe_set_run_terminated) and so marks it as FAILED.
        """
        given = [str(os.getppid()), self.tracking_uri, self._attempt_id or self.run_id, status]
        subprocess.Popen(
            [sys.executable, "-m", "account_tax.mlflow_run", *given],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def claim(client: MlflowClient, run_id: str) -> Run:
    """Make a run this process's own, RUNNING and without a former end's reason; return it."""
    run = client.get_run(run_id)
    # The owner first: who finds it RUNNING must not find a former owner, who is gone.
    client.set_tag(run_id, OWNER_TAG, identify())
    client.update_run(run_id, status="RUNNING")
    if REASON_TAG in run.data.tags:
        client.delete_tag(run_id, REASON_TAG)
    return run


def _is_final(err: TrackingError) -> bool:
    """Return whether the server has answered, so that asking again changes nothing."""
    return getattr(err.__cause__, "error_code", None) in FINAL_ANSWERS


def patience_seconds() -> float:
    """Return how long the end of a run waits for a server that is away."""
    given = os.environ.get(PATIENCE_VARIABLE, "")
    return float(given) if given.isdigit() else PATIENCE_SECONDS


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
def answers_soon(uri: str) -> Iterator[None]:
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
