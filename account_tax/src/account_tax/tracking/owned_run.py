"""The MLflow run as a command owns it: adopted or started, logged to once, ended once."""

from __future__ import annotations

import getpass
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
)
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_PARAM_VAL_LENGTH,
    MAX_TAG_VAL_LENGTH,
)

from account_tax.confidential import hide_secrets
from account_tax.processes.identity import identify
from account_tax.provenance.code import PACKAGE, git
from account_tax.storage.names import TAG, VERIFIED_TAG

from . import after_parent
from .metric_journal import send_batch
from .ownership import KIND_TAG, OWNER_TAG, REASON_TAG, REFUSED_TAG, Kind
from .store import (
    RETRY_SECONDS,
    TrackingAway,
    TrackingError,
    answers_soon,
    condition,
    experiment_id,
    is_final,
    open_store,
    page,
    refuse_another_store,
    refuse_unwritable,
    tracking_uri,
)

GENERATED_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")  # as MLflow makes them up
CONTINUES_TAG = f"{TAG}continues"  # of an attempt: the run that it let go on
MAX_BATCH = 100  # params a request; the server's own limit


class OwnedRun:
    """One MLflow run: `mlflow run` made it and handed its id over, or it is started here."""

    def __init__(self, client: MlflowClient, run_id: str, experiment_name: str, tracking_uri: str):
        self._client = client
        self.run_id, self.experiment_name, self.tracking_uri = run_id, experiment_name, tracking_uri
        self._attempt_id: str | None = None  # of `mlflow run`, where an earlier run goes on
        self._made_here = self._is_new = False  # new: nothing was logged to it by any command
        self.ended = False

    @classmethod
    def open(cls, project: Path) -> OwnedRun:
        """Return the run of MLFLOW_RUN_ID, or a new one in MLFLOW_EXPERIMENT_NAME.

        Raises:
            TrackingError: If the server does not answer or does not know the run.
        """
        uri, run_id = tracking_uri(project), os.environ.get("MLFLOW_RUN_ID")
        if run_id:
            refuse_another_store(uri, run_id)
        with answers_soon(uri):
            client = open_store(uri)
            if run_id:
                handed = client.get_run(run_id)
                refuse_unwritable(str(handed.info.artifact_uri))
                tags = handed.data.tags
                had_owner = OWNER_TAG in tags
                owned = cls.reopen(client, run_id, uri)
                # MLflow has tagged where the project came from, with a git remote's password.
                clean = {key: hide_secrets(text) for key, text in tags.items()}
                for key, text in (origin_of(project) | clean).items():
                    if tags.get(key) != text:
                        client.set_tag(run_id, key, text)
                owned._is_new = not had_owner
                return owned
            # From its first moment, so that it can be closed, and is somebody's.
            tags = {OWNER_TAG: identify(), **origin_of(project)}
            experiment = client.get_experiment(experiment_id(client))
            refuse_unwritable(experiment.artifact_location)
            run = client.create_run(experiment.experiment_id, tags=tags)
        owned = cls(client, run.info.run_id, experiment.name, uri)
        owned._made_here = owned._is_new = True
        return owned

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

    def go_on(self, run_id: str, place: str) -> None:
        """Be an earlier, interrupted run from here on: it is RUNNING again.

        The run that the command began as goes, where the command made it. One that `mlflow run`
        made stays as a small record of this attempt, below the other: `mlflow run` will end it.
        """
        client, begun, self._is_new = self._client, self.run_id, False
        with answers_soon(self.tracking_uri):
            run = claim(client, run_id)
            self.experiment_name = client.get_experiment(run.info.experiment_id).name
            if begun != run_id and "MLFLOW_RUN_ID" in os.environ:
                self.introduce("attempt", f"from {place}", {
                    MLFLOW_PARENT_RUN_ID: run_id,
                    CONTINUES_TAG: run_id,
                    MLFLOW_RUN_NOTE: f"An attempt that continued run {run_id} from {place}. "
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
        A key that MLflow takes for no name, such as an expression in rank_pattern, goes before its
        value, under a name without those signs, as long as may be.
        """
        named: dict[str, str] = {}
        for key, value in sorted(values.items()):
            name = re.sub(r"[^/\w.\- :]", "_", key)[:MAX_ENTITY_KEY_LENGTH]
            text = str(value) if name == key else f"{key} = {value}"
            named[name] = f"{named[name]}, {text}" if name in named else text
        logged = self._client.get_run(self.run_id).data.params
        params = [
            Param(name, hide_secrets(text)[:MAX_PARAM_VAL_LENGTH])
            for name, text in named.items()
            if name not in logged
        ]
        for start in range(0, len(params), MAX_BATCH):
            self._client.log_batch(self.run_id, params=params[start : start + MAX_BATCH])

    def set_tags(self, tags: Mapping[str, str | None]) -> None:
        """Set tags of the run; one that is None goes."""
        self._is_new = False
        given = {key: hide_secrets(text) for key, text in tags.items() if text is not None}
        entries = [RunTag(key, text[:MAX_TAG_VAL_LENGTH]) for key, text in given.items()]
        self._client.log_batch(self.run_id, tags=entries)
        if gone := tags.keys() - given.keys():
            for key in gone & self._client.get_run(self.run_id).data.tags.keys():
                self._client.delete_tag(self.run_id, key)

    def introduce(
        self, kind: Kind, what: str, tags: Mapping[str, str | None] | None = None
    ) -> None:
        """Say what the run is, as tags and, unless a person named it, as its name.

        Args:
            kind: Of what command it is.
            what: Which one, in a few words.
            tags: More of them.
        """
        run = self._client.get_run(self.run_id)
        known = run.data.tags.get(KIND_TAG, kind)  # what a search made is a trial
        said: dict[str, str | None] = {KIND_TAG: known, **(tags or {})}
        if GENERATED_NAME.fullmatch(run.info.run_name or ""):
            said[MLFLOW_RUN_NAME] = f"{known} {what}"
        self.set_tags(said)

    def page_of(self, artifact: str) -> str:
        """Return where MLflow shows an artifact of the run."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        path = f"experiments/{experiment}/runs/{self.run_id}/artifacts/{artifact}"
        return page(self.tracking_uri, path)

    def log_datasets(self, datasets: Iterable[DatasetInput]) -> None:
        """Log what the run reads."""
        given = list(datasets)
        try:
            self._client.log_inputs(self.run_id, given)
        except MlflowException as err:
            # MLflow (3.17) looks for a dataset, then adds it: another run may have between the two.
            if not re.search("constraint|duplicate", str(err), re.IGNORECASE):
                raise
            self._client.log_inputs(self.run_id, given)

    def tag_other(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of another run, if the server knows it."""
        with suppress(MlflowException):
            for key, value in tags.items():
                self._client.set_tag(run_id, key, hide_secrets(value)[:MAX_TAG_VAL_LENGTH])

    def metrics(self) -> dict[str, float]:
        """Return what was measured so far, the last value of each."""
        return self._client.get_run(self.run_id).data.metrics

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Log each metric once, as the command's result."""
        now_ms = int(time.time() * 1000)
        points = [Metric(key, float(value), now_ms, 0) for key, value in metrics.items()]
        self._client.log_batch(self.run_id, metrics=points)

    def log_text(self, text: str, name: str) -> None:
        """Store a text as an artifact of the run."""
        self._client.log_text(self.run_id, hide_secrets(text), name)

    def log_bytes(self, raw: bytes, name: str) -> None:
        """Store bytes as an artifact of the run."""
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            file.write_bytes(raw)
            self._client.log_artifact(self.run_id, str(file))

    def salvage(self, logs: Iterable[Path]) -> None:
        """Take back what a run that did not finish half registered, and attach its logs.

        It never raises: where server or disk can't do it, the next attempt does.
        """
        with suppress(Exception), answers_soon(self.tracking_uri):
            self._withdraw_unverified()
        with suppress(Exception), answers_soon(self.tracking_uri):
            for log in logs:
                self._client.log_artifact(self.run_id, str(log), "logs")

    def _withdraw_unverified(self) -> None:
        """Delete this run's versions that no cold load has confirmed, and models of no version."""
        client, kept = self._client, set[str | None]()
        for version in client.search_model_versions(condition("run_id", self.run_id)):
            if version.tags.get(VERIFIED_TAG) == "true":
                kept.add(version.source)
                continue
            client.delete_model_version(version.name, version.version)
            if not client.search_model_versions(condition("name", version.name)):
                client.delete_registered_model(version.name)
        experiment = self._client.get_run(self.run_id).info.experiment_id
        mine = condition("source_run_id", self.run_id)
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

    def close(
        self, status: str, reason: str = "", *, refused: bool = False, patience: float = 0.0
    ) -> None:
        """End the run as FINISHED, FAILED or KILLED, the reason as a tag.

        Of a command that was refused before it logged anything, a run that it made itself goes,
        and one that `mlflow run` made is tagged, so that lists can leave it out.

        Raises:
            TrackingAway: If the server does not answer, for `patience` seconds.
            TrackingError: If it answers, and refuses.
        """
        refused &= self._is_new
        tags = {REASON_TAG: _fit(reason)} if reason else {}
        tags |= {REFUSED_TAG: "true"} if refused else {}

        def end() -> None:
            if refused:
                run = self._client.get_run(self.run_id)
                self.introduce("refused", run.data.tags.get(MLFLOW_PROJECT_ENTRY_POINT, ""))
            if tags:
                self.set_tags(tags)
            self._client.set_terminated(self.run_id, status)
            if refused and self._made_here:
                self._client.delete_run(self.run_id)
            if self._attempt_id:
                self._client.set_terminated(self._attempt_id, status)
            self.ended = True

        self._insist(end, patience)
        if status == "KILLED" and os.environ.get("MLFLOW_RUN_ID") == (
            self._attempt_id or self.run_id
        ):
            self._repeat_after_parent(status)

    def _insist(self, work: Callable[[], None], patience: float) -> None:
        """Do something until it succeeds, for a time; all of it may be done twice."""
        deadline, said = time.monotonic() + patience, False
        while True:
            try:
                with answers_soon(self.tracking_uri):
                    return work()
            except TrackingError as err:
                if is_final(err):
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
            [sys.executable, "-m", after_parent.__name__, *given],
            env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def origin_of(project: Path) -> dict[str, str]:
    """Return whose a run is and what started it, as `mlflow run` tags it."""
    commit = git(project, "rev-parse", "--verify", "--quiet", "HEAD").stdout.decode().strip()
    tags = {
        "mlflow.source.name": project.resolve().name,
        "mlflow.source.type": "PROJECT",
    }
    with suppress(KeyError, OSError):  # a user without a name: nobody knows whose it is
        tags["mlflow.user"] = getpass.getuser()
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def claim(client: MlflowClient, run_id: str) -> Run:
    """Make a run this process's own, RUNNING and without a former end's reason; return it."""
    run = client.get_run(run_id)
    # The owner first: who finds it RUNNING must not find a former owner, who is gone.
    client.set_tag(run_id, OWNER_TAG, identify())
    client.update_run(run_id, status="RUNNING")
    for tag in {REASON_TAG, REFUSED_TAG} & run.data.tags.keys():
        client.delete_tag(run_id, tag)
    return run


def _fit(reason: str) -> str:
    """Return the reason as long as a tag may be: its beginning and its end say most."""
    if len(reason) <= MAX_TAG_VAL_LENGTH:
        return reason
    half = MAX_TAG_VAL_LENGTH // 2 - 5
    return f"{reason[:half]}\n[...]\n{reason[-half:]}"
