"""From a trained adapter to the end of its run: the last metric points, then the register stage.

`kedro train` does this right after training, `kedro register --run` whenever it was not done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click
from mlflow.entities import Run

from account_tax.commands import close, close_dead, end_of, run_in_mlflow
from account_tax.confidential import hidden_logs
from account_tax.errors import Refused
from account_tax.parameters.config import resolve
from account_tax.parameters.kinds import Help
from account_tax.parameters.options import read_options
from account_tax.parameters.schema import RunId
from account_tax.processes.groups import Interrupted
from account_tax.processes.identity import state_of
from account_tax.storage.files import Held, hold, read_json
from account_tax.storage.names import CONFIG_VARIABLE, PREPARED_FILE, REGISTRATION_FILE, TAG
from account_tax.tracking.inputs import split_inputs
from account_tax.tracking.metric_journal import count_unsent, journal_file
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.ownership import OWNER_TAG
from account_tax.tracking.store import (
    TrackingAway,
    answers_soon,
    open_store,
    page,
    patience_seconds,
    tracking_uri,
)

from .stages import TRAINED, Stages, stage_environment

LOCK_FILE = "register.lock"
SALVAGE_SECONDS = 5.0  # a person who has pressed Ctrl-C waits; the file keeps the rest


def finish(stages: Stages, run: OwnedRun, register: bool | Literal["evaluate"]) -> None:
    """Send the metric points that are left; register, only evaluate the test split, or do neither.

    Raises:
        TrackingAway: If the server stays away; with where the results are and how to go on.
    """
    stages.keep_dataset_metadata()
    journal = journal_file(stages.root, run.run_id)
    try:
        run.send_metrics(journal, patience=patience_seconds())
    except TrackingAway as err:
        raise TrackingAway(
            f"{err}\nTraining is done. {stages.root} keeps its adapter and "
            f"{count_unsent(journal)} metric points that the server does not have. "
            f"When it answers again: kedro register --run {run.run_id}"
        ) from err
    if register is False:
        click.echo("register: skipped, and with it the test split")
        return
    run.log_datasets(split_inputs(stages.dataset_metadata(), "test"))  # no trial reads it
    click.echo(f"register: test split{', cold load, registry' if register is True else ' only'}")
    if register == "evaluate":
        stages.prove("register", stages.run("register", "--to-nodes=evaluate_test_split_node"))
        click.echo(f"test split: {_scores(run.metrics())}; nothing was registered")
        return
    result = stages.prove_registration(stages.run("register"))
    click.echo(in_words(result))
    path = f"models/{result['name']}/versions/{result['version']}"
    click.echo(f"see {page(run.tracking_uri, path)}")


def in_words(result: Mapping[str, Any]) -> str:
    """Return a registration as a person reads it: which version, and what is new about it."""
    name, version, alias = (result[key] for key in ("name", "version", "alias"))
    metrics = _scores(result["metrics"])
    holder = result["alias_version"]
    said = f"{name} version {version}{f' ({alias})' if holder == version else ''}: {metrics}"
    if not result["created"]:
        said += f"\nthe same content as version {version} had; nothing new was registered"
    if holder != version:
        said += (
            f"\n{alias} stays with version {holder}, which is newer. This one is reviewed by "
            f"`kedro review --version {version}`"
        )
    return said


def _scores(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{metric.removeprefix('test/')} {metrics[metric]:.4f}"
        for metric in ("test/accuracy", "test/f1", "test/loss")
        if metric in metrics
    )


@contextmanager
def salvaged(stages: Stages, run: OwnedRun) -> Iterator[None]:
    """Keep what a run that does not finish leaves: metric points, logs, no half version.

    Raises:
        Interrupted: If a signal came; with what became of the work and how to go on.
    """
    try:
        with hidden_logs(stages.logs):
            yield
    except TrackingAway:
        raise  # and closing the run says so once more
    except (Exception, Interrupted) as err:
        with suppress(Exception):  # why it did not finish goes before whatever fails now
            run.send_metrics(journal_file(stages.root, run.run_id), within=SALVAGE_SECONDS)
        run.salvage(sorted(stages.logs.rglob("*.log")))
        if isinstance(err, Interrupted):
            raise Interrupted(err.signum, stages.outcome_of_interruption()) from err
        raise


# --- kedro register --run -------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What is asked."""

    run: Annotated[RunId, Help("The id of an MLflow run that has trained.")]


def register(project: Path, words: Sequence[str]) -> int:
    """Register what a run has trained, end that run and return the exit status."""

    # The run beside the options is one that `mlflow run` makes for the command itself.
    def work(options: Options, _: OwnedRun | None) -> None:
        close_dead(tracking_uri(project))
        register_run(project, options.run)

    return run_in_mlflow(project, lambda: read_options(Options, words)[0], work, lambda _: False)


def register_run(
    project: Path, run_id: str, register: Literal[True, "evaluate"] = True
) -> dict[str, Any]:
    """Register, or only evaluate, what a run has trained; end that run and return what was made."""
    uri = tracking_uri(project)
    with answers_soon(uri):
        client = open_store(uri)
        found = client.get_run(run_id)
    stages = _restore_stages(project, found)
    with _alone(stages.root):
        with answers_soon(uri):
            run = OwnedRun.reopen(client, run_id, uri)
        try:
            with salvaged(stages, run):
                stages.environment |= run.environment()
                finish(stages, run, register)
                run.close("FINISHED", patience=patience_seconds())
        except (Exception, Interrupted) as err:
            close(run, end_of(err))
            raise
    return read_json(stages.root / REGISTRATION_FILE)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Let one process at a time register what lies in a run's folder."""
    try:
        with hold(root / LOCK_FILE) as sign:
            sign({})
            yield
    except Held as err:
        raise Refused(f"run {root.name} is being registered: {err}. Wait for its end.") from err


def _restore_stages(project: Path, run: Run) -> Stages:
    """Return the stages of a run that has trained, as its launcher had them.

    Raises:
        Refused: If there is nothing to register, or nothing left to do.
    """
    run_id, tags = run.info.run_id, run.data.tags
    if run.info.lifecycle_stage != "active":
        raise Refused(f"run {run_id} is deleted. `mlflow runs restore --run-id {run_id}` first.")
    if run.info.status == "RUNNING" and state_of(tags.get(OWNER_TAG, "")) == "alive":
        raise Refused(f"run {run_id} is still under way: {tags[OWNER_TAG]}. Wait for its end.")
    root = _folder_of(project, run)
    if missing := [name for name in (*TRAINED, PREPARED_FILE) if not (root / name).is_file()]:
        raise Refused(
            f"run {run_id} has not trained to its end: there is no {missing[0]} in {root}. "
            "Start it again with the command it was started with."
        )
    if run.info.status == "FINISHED" and (root / REGISTRATION_FILE).is_file():
        done = json.loads((root / REGISTRATION_FILE).read_text(encoding="utf-8"))
        raise Refused(
            f"run {run_id} is registered and finished already: {done['name']} version "
            f"{done['version']}."
        )
    versions = json.loads((root / PREPARED_FILE).read_text(encoding="utf-8"))
    environment = stage_environment(project)
    if sha256 := tags.get(f"{TAG}config_sha256"):
        environment[CONFIG_VARIABLE] = sha256
    stages = Stages(project, root, environment, versions)
    stages.prove_training(0)
    stages.place_configuration()
    return stages


def _folder_of(project: Path, run: Run) -> Path:
    """Return a run's own folder: below its tag artifacts_root, else the project's."""
    given = run.data.tags.get(f"{TAG}artifacts_root")
    root = Path(given or resolve(project, []).values["artifacts_root"])
    if root.name != run.info.run_id:
        root = root / run.info.run_id
    return (project / root).resolve()
