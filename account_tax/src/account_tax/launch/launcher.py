"""`kedro train`: from the parameters to a registered version, or to one clear reason why not."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from account_tax.commands import run_in_mlflow
from account_tax.errors import Failed, Refused
from account_tax.parameters.config import Resolved, parse_command_line, resolve_usable
from account_tax.processes.groups import run_stage
from account_tax.processes.ranks import free_port
from account_tax.provenance.code import CODE_TAGS
from account_tax.provenance.environment import environment_tags
from account_tax.storage.names import (
    CONFIG_VARIABLE,
    INTERRUPTED_FILE,
    PARAMETERS_FILE,
    PATCH_FILE,
    PREPARED_FOLDER,
    PROGRESS_FILE,
    PROGRESS_VARIABLE,
    RECORD_FILE,
    TAG,
)
from account_tax.storage.prepared import find_prepared, publish_prepared
from account_tax.terminal import ProgressLine, fact_line
from account_tax.tracking.inputs import machine_watched, split_inputs
from account_tax.tracking.metric_journal import journal_file
from account_tax.tracking.owned_run import OwnedRun

from .hang import HangWatch
from .plan import Plan, make_plan, show_values
from .progress import describe_progress
from .register import finish, salvaged
from .resume import Start, begin
from .stages import Stages, stage_environment, warm_stages

# Of the plan's facts, while it starts; `dry_run` shows all.
SHOWN_FACTS = (
    *("rows", "threshold", "global batch", "optimizer steps", "trainable parameters"),
    *("precision", "code"),
)


def train(project: Path, args: Sequence[str]) -> int:
    """Run `kedro train` with the words of its command line; return its exit status."""

    def read() -> tuple[Resolved, list[str]]:
        resolved, faults = resolve_usable(project, parse_command_line(args))
        keys = [f"tuning.{key}" for key in resolved.tuning]
        if beside := [resolved.sources[key] for key in keys if resolved.given(key)]:
            raise Refused(f"{', '.join(beside)}: a search's, so `kedro tune` takes it.")
        if not resolved.launch.dry_run:  # it imports while the store is opened
            warm.enter_context(warm_stages(project))
        return resolved, faults

    def work(asked: tuple[Resolved, list[str]], run: OwnedRun | None) -> None:
        if asked[0].launch.dry_run:
            show_values(asked[0])
            make_plan(project, *asked).show()
            if run:
                run.introduce("dry run", asked[0].launch.recipe)
            return
        assert run is not None
        run_stages(project, args, make_plan(project, *asked), run)

    with ExitStack() as warm:
        return run_in_mlflow(project, read, work, lambda asked: not asked[0].launch.dry_run)


# --- the run --------------------------------------------------------------------------------------


def run_stages(
    project: Path,
    args: Sequence[str],
    plan: Plan,
    run: OwnedRun,
    judge: Callable[[Path], None] = lambda _: None,
) -> None:
    """Prepare, train and register, in the run that is owned or one that it goes on with.

    Args:
        project: The project's root.
        args: The words of `kedro train` that ask for this.
        plan: What is to be done.
        run: The command's run.
        judge: Called a few times a second while ranks train, with the file of the run's metric
            points; ends the training by raising.
    """
    with begin(project, plan, run) as start:
        run.set_tags({f"{TAG}command": shlex.join(["kedro", "train", *args])})
        _run_plan(project, replace(plan, world_size=start.world_size), run, start, judge)


def _run_plan(
    project: Path, plan: Plan, run: OwnedRun, start: Start, judge: Callable[[Path], None]
) -> None:
    root = Path(plan.resolved.values["artifacts_root"]) / run.run_id
    resolved = _into_folder(plan.resolved, root, start.folder)
    environment = stage_environment(project) | run.environment()
    environment[CONFIG_VARIABLE] = resolved.sha256
    checkpoints = project / start.folder
    stages = Stages(project, (project / root).resolve(), environment, checkpoints=checkpoints)
    if plan.resolved.launch.resume == "never":
        stages.again = f"with --resume {run.run_id} the same command"
    stages.write_configuration(resolved)
    _record(run, plan, resolved)
    for name, fact in plan.facts().items():
        if name in SHOWN_FACTS:
            click.echo(fact_line(name, fact))
    click.echo(f"{'logs':<24} {root / 'logs'}")
    seconds = plan.resolved.launch.system_metrics_seconds
    watched = machine_watched(run.run_id, run.tracking_uri, seconds)
    with salvaged(stages, run), watched:
        data = _prepare(stages, plan.report["inputs_sha256"])
        run.log_datasets(split_inputs(data, "train", "validation"))
        start.say(run.run_id)
        journal = journal_file(stages.root, run.run_id)
        _train(stages, plan, lambda: judge(journal))
        finish(stages, run, plan.resolved.launch.register)


def _record(run: OwnedRun, plan: Plan, resolved: Resolved) -> None:
    """Tell the MLflow run what it is made of: parameters, code, environment."""
    found = {"launch.world_size": plan.world_size, "launch.steps": plan.schedule.steps}
    run.log_params(resolved.deciding() | found)
    run.log_text(plan.resolved.to_yaml(), PARAMETERS_FILE)
    run.log_text(json.dumps(plan.environment, indent=2), RECORD_FILE)
    if plan.code.patch:
        run.log_bytes(plan.code.patch, PATCH_FILE)
    # Of an interrupted attempt, whose code may have been another, none stays.
    train, recipe = resolved.values["train"], resolved.launch.recipe
    tags = dict.fromkeys(CODE_TAGS) | {
        "recipe": recipe,
        "config_sha256": resolved.sha256,
        "artifacts_root": resolved.values["artifacts_root"],
        "base": train["model"]["name"],
        "pooling": train["model"]["pooling"],
        "precision": resolved.precision,
        "parameters_trained": str(plan.report["trainable_parameters"]),
        "data_sha256": plan.report["source_sha256"],
        **plan.code.tags(),
        **environment_tags(plan.environment),
    }
    rank = f" r{train['lora']['r']}" if train["lora"]["enable"] else ", all weights"
    run.introduce("train", f"{recipe}{rank}", {f"{TAG}{name}": text for name, text in tags.items()})


def _into_folder(resolved: Resolved, root: Path, checkpoints: Path) -> Resolved:
    """Give the run folders of its own, so that two runs never write to the same files."""
    training = resolved.values["train"]["training"] | {"output_dir": str(checkpoints)}
    train_section = resolved.values["train"] | {"training": training}
    values = resolved.values | {"artifacts_root": str(root), "train": train_section}
    return replace(resolved, values=values)


def _prepare(stages: Stages, key: str) -> dict[str, Any]:
    """Prepare the data, unless that was done before; return what is known of it."""
    folder = stages.project / PREPARED_FOLDER
    version = find_prepared(folder, key)
    if version:
        click.echo(f"prepare: skipped, same source bytes and parameters as version {version}")
    else:
        click.echo("prepare: reading, splitting and tokenizing the ledger")
        version = _prepare_anew(stages, folder, key)
    stages.use_prepared(version)
    return stages.dataset_metadata()


def _prepare_anew(stages: Stages, folder: Path, key: str) -> str:
    """Prepare in a folder of the run's own and publish the whole version: never a part of one."""
    scratch = folder / f".{stages.root.name}"
    stages.write_prepare_catalog(scratch)
    try:
        stages.prove("prepare", stages.run("prepare", "--env=prepare"))
        if version := find_prepared(scratch, key):
            publish_prepared(scratch, folder, version)
        else:  # the stage found what another run had published meanwhile
            version = find_prepared(folder, key)
        if version is None:
            raise Failed("prepare failed: it ended well but left no data of this run.")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return version


def _train(stages: Stages, plan: Plan, judge: Callable[[], None]) -> None:
    """Train in the ranks, showing rank 0's progress."""
    training, launch = plan.resolved.values["train"]["training"], plan.resolved.launch
    port = launch.master_port
    stages.clear_outcome()
    progress = stages.root / PROGRESS_FILE
    ranks_here = plan.place.ranks_here(plan.world_size)
    environment = stages.rank_environment(ranks_here, plan.report["gpus"], training)
    environment[PROGRESS_VARIABLE] = str(progress)
    line = ProgressLine(partial(describe_progress, "train", progress))
    hang = HangWatch(progress, launch.hang_timeout_seconds)

    def watch() -> None:
        line.draw()
        hang.check()
        judge()

    click.echo(f"train: {plan.world_size} {plan.device} rank{'s' * (plan.world_size > 1)}")
    try:
        status = run_stage(
            plan.place.start_ranks(
                stages.kedro("train"),
                plan.world_size,
                free_port() if port == "auto" else port,
                stages.logs / "ranks",
            ),
            cwd=stages.project,
            environment=environment,
            log=stages.logs / "train.log",
            watch=watch,
            grace_seconds=launch.grace_seconds,
        )
    finally:
        line.close()
    plan.place.raise_if_preempted(status, stages.root / INTERRUPTED_FILE)
    stages.prove_training(status)
