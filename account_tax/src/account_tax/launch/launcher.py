"""`kedro train`: from the parameters to a registered version, or to one clear reason why not."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import yaml

from account_tax.config import ConfigError, Resolved, batch_faults, parse_command_line, resolve
from account_tax.prepared import DATASETS, find_prepared, publish_prepared
from account_tax.ranks import free_port

from .mlflow_run import OwnedRun, TrackingError
from .processes import Interrupted, raise_on_signals, run_stage
from .progress import ProgressLine
from .refusals import find_machine_faults
from .stages import StageFailed, Stages

REFUSED, FAILED = 2, 1  # exit statuses


def train(project: Path, args: Sequence[str]) -> int:
    """Run `kedro train` with the words of its command line; return its exit status.

    0: finished, with evidence. 1: a stage failed. 2: refused before anything started. 128 + n:
    ended by signal n.
    """
    raise_on_signals()
    run: OwnedRun | None = None
    dry_run = any(word.startswith("--dry") for word in args) and _wants_dry_run(args)
    try:
        if not dry_run or "MLFLOW_RUN_ID" in os.environ:
            run = OwnedRun.open(project)
        if dry_run:
            _show_plan(*_resolve_and_check(project, args))
        else:
            assert run is not None
            _run_stages(project, args, run)
        status, state, reason = 0, "FINISHED", ""
    except (ConfigError, TrackingError) as err:
        status, state, reason = REFUSED, "FAILED", str(err)
    except StageFailed as err:
        status, state, reason = FAILED, "FAILED", str(err)
    except Interrupted as err:
        status, state, reason = 128 + err.signum, "KILLED", f"ended by {err}"
    except Exception as err:  # a bug, or a server or disk that went away: say it, close the run
        traceback.print_exc()
        status, state, reason = FAILED, "FAILED", f"unexpected {type(err).__name__}: {err}"
    if reason:
        click.echo(reason, err=True)
    return _close(run, state, reason, status) if run else status


def _close(run: OwnedRun, state: str, reason: str, status: int) -> int:
    """End the MLflow run and return the exit status; a run that can't be ended is no success."""
    try:
        run.close(state, reason)
    except TrackingError as err:
        click.echo(f"the MLflow run {run.run_id} is not marked as {state}. {err}", err=True)
        return status or FAILED
    return status


def _wants_dry_run(args: Sequence[str]) -> bool:
    """Read the flag by itself: it must hold also when other parameters are wrong."""
    try:
        given = dict(parse_command_line(args))
    except ConfigError:
        return False
    return given.get("dry_run", "false").lower() == "true"


# --- before anything starts -----------------------------------------------------------------------


def _resolve_and_check(project: Path, args: Sequence[str]) -> tuple[Resolved, dict[str, Any], int]:
    """Return the resolved parameters, the report on data, model and machine, and the world size.

    Raises:
        ConfigError: With every fault there is, of whatever kind.
    """
    faults: list[str] = []
    try:
        resolved = resolve(project, parse_command_line(args))
    except ConfigError as err:
        if err.usable is None:
            raise
        faults, resolved = err.faults, err.usable
    report = _check(project, resolved.values)
    world_size = _world_size(resolved, report)
    found = list(report["faults"])
    if not any(fault.startswith("num_gpus") for fault in faults):
        found += batch_faults(resolved.values, world_size)
    found += find_machine_faults(
        resolved.values, report, world_size, resolved.launch.master_port, project
    )
    faults += [_name_source(fault, resolved) for fault in found]
    if faults:
        raise ConfigError(faults)
    return resolved, report, world_size


def _check(project: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Run `account_tax.check`: it needs torch, which this process does without."""
    with tempfile.TemporaryDirectory() as scratch:
        parameters, report = Path(scratch) / "parameters.yml", Path(scratch) / "report.json"
        parameters.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "account_tax.check", str(parameters), str(report)]
        log = Path(scratch) / "check.log"
        status = run_stage(command, cwd=project, environment=_environment(project), log=log)
        if status != 0 or not report.exists():
            text = log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise StageFailed(f"the check itself failed (exit status {status}).\n{text}")
        return json.loads(report.read_text(encoding="utf-8"))


def _name_source(fault: str, resolved: Resolved) -> str:
    """Add to a fault of the form `key = value: ...` where that key was set."""
    key, equals, rest = fault.partition(" = ")
    source = resolved.sources.get(key)
    if not (equals and source):
        return fault
    value, colon, text = rest.partition(": ")
    return f"{key} = {value} ({source}): {text}" if colon and "(" not in value else fault


def _world_size(resolved: Resolved, report: dict[str, Any]) -> int:
    wanted = resolved.launch.num_gpus
    return max(1, report["gpus"]) if wanted == "auto" else wanted


def _environment(project: Path) -> dict[str, str]:
    source = str(project / "account_tax" / "src")
    path = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUTF8": "1"}
    return os.environ | quiet | {"PYTHONPATH": path}


# --- the dry run ----------------------------------------------------------------------------------


def _show_plan(resolved: Resolved, report: dict[str, Any], world_size: int) -> None:
    """Print what a run would do, and where each value came from."""
    flat = resolved.flat()
    width = max(map(len, flat))
    for key, value in flat.items():
        click.echo(f"{key:<{width}} = {value}  ({resolved.sources.get(key, 'training.yml')})")
    plan = _plan(resolved, report, world_size)
    click.echo("")
    for name, value in plan.items():
        click.echo(f"{name:<24} {value}")
    click.echo("\ndry run: nothing was started, nothing was written.")


def _plan(resolved: Resolved, report: dict[str, Any], world_size: int) -> dict[str, Any]:
    deepspeed = resolved.values["train"]["deepspeed"]
    training = resolved.values["train"]["training"]
    batch = (
        deepspeed["train_micro_batch_size_per_gpu"]
        * deepspeed.get("gradient_accumulation_steps", 1)
        * world_size
    )
    epochs, max_steps = training.get("num_train_epochs", 3), training.get("max_steps")
    steps = max_steps or math.ceil(math.ceil(report["rows"]["train"] / batch) * epochs)
    trainable, everything = report["trainable_parameters"], report["parameters"]
    return {
        "recipe": resolved.launch.recipe,
        "configuration sha256": resolved.sha256,
        "rows": ", ".join(f"{name} {count:,}" for name, count in report["rows"].items()),
        "classes": len(report["labels"]),
        "world size": f"{world_size} ({'GPU' if report['gpus'] else 'CPU'})",
        "global batch": batch,
        "optimizer steps": steps,
        "trainable parameters": f"{trainable:,} of {everything:,} ({trainable / everything:.2%})",
    }


# --- the run --------------------------------------------------------------------------------------


def _run_stages(project: Path, args: Sequence[str], run: OwnedRun) -> None:
    """Check, prepare, train and register, in the run that is owned."""
    resolved, report, world_size = _resolve_and_check(project, args)
    plan = _plan(resolved, report, world_size)
    root = Path(resolved.values["artifacts_root"]) / run.run_id
    resolved = _into_folder(resolved, root)
    environment = _environment(project) | run.environment()
    environment["ACCOUNT_TAX_CONFIG_SHA256"] = resolved.sha256
    stages = Stages(project, (project / root).resolve(), environment)
    stages.write_configuration(resolved)
    run.log_params(resolved.flat() | {"launch.world_size": world_size})
    run.set_tags(
        {
            "account_tax.recipe": resolved.launch.recipe,
            "account_tax.config_sha256": resolved.sha256,
            **_code_tags(project),
        }
    )
    for name in ("rows", "global batch", "optimizer steps", "trainable parameters"):
        click.echo(f"{name:<24} {plan[name]}")
    try:
        _prepare(stages, report["inputs_sha256"])
        _train(stages, resolved, report["gpus"], world_size)
        _register(stages, resolved, run)
    except (StageFailed, Interrupted):
        with suppress(TrackingError):  # closing the run will say so
            run.salvage(sorted(stages.logs.rglob("*.log")))
        raise


def _into_folder(resolved: Resolved, root: Path) -> Resolved:
    """Give the run a folder of its own, so that two runs never write to the same files."""
    old = resolved.values["artifacts_root"]
    training = resolved.values["train"]["training"]
    output = str(training.get("output_dir", f"{old}/checkpoints"))
    training = training | {"output_dir": output.replace(str(old), str(root), 1)}
    train_section = resolved.values["train"] | {"training": training}
    values = resolved.values | {"artifacts_root": str(root), "train": train_section}
    return Resolved(resolved.launch, values, resolved.sources)


def _code_tags(project: Path) -> dict[str, str]:
    """Return the commit and whether the tree differs from it; empty outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=project, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return {}
    return {
        "account_tax.commit": commit,
        "account_tax.dirty": str(bool(git("status", "--porcelain"))).lower(),
    }


def _prepare(stages: Stages, key: str) -> None:
    """Prepare the data, unless that was done from the same bytes and parameters."""
    folder = stages.project / "data" / "04_feature"
    version = find_prepared(folder, key)
    if version:
        click.echo(f"prepare: skipped, same source bytes and parameters as version {version}")
    else:
        click.echo("prepare: reading, splitting and tokenizing the ledger")
        version = _prepare_anew(stages, folder, key)
    stages.versions = dict.fromkeys(DATASETS, version)


def _prepare_anew(stages: Stages, folder: Path, key: str) -> str:
    """Prepare in a folder of the run's own and publish the whole version: never a part of one."""
    scratch = folder / f".{stages.root.name}"
    stages.write_prepare_catalog(scratch)
    command, log = stages.single("prepare", "--env=prepare"), stages.logs / "prepare.log"
    try:
        status = run_stage(command, cwd=stages.project, environment=stages.environment, log=log)
        stages.prove("prepare", status)
        version = find_prepared(scratch, key)
        if version is None:
            raise StageFailed("prepare failed: it ended well but left no data of this run.")
        publish_prepared(scratch, folder, version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return version


def _train(stages: Stages, resolved: Resolved, gpus: int, world_size: int) -> None:
    """Train in the ranks, showing rank 0's progress."""
    training = resolved.values["train"]["training"]
    port = resolved.launch.master_port
    progress = stages.root / "progress.json"
    environment = stages.rank_environment(world_size, gpus, training)
    environment["ACCOUNT_TAX_PROGRESS_FILE"] = str(progress)
    line = ProgressLine(progress)
    click.echo(f"train: {world_size} {'GPU' if gpus else 'CPU'} rank{'s' * (world_size > 1)}")
    try:
        status = run_stage(
            stages.ranks(world_size, free_port() if port == "auto" else port),
            cwd=stages.project,
            environment=environment,
            log=stages.logs / "train.log",
            watch=line.draw,
        )
    finally:
        line.close()
    stages.prove_training(status)


def _register(stages: Stages, resolved: Resolved, run: OwnedRun) -> None:
    """Evaluate the test split and, unless told not to, register the adapter."""
    wanted = resolved.launch.register
    click.echo(f"register: test split{', cold load, registry' if wanted else ' only'}")
    status = run_stage(
        stages.single("register", *([] if wanted else ["--to-nodes=evaluate_test_split_node"])),
        cwd=stages.project,
        environment=stages.environment,
        log=stages.logs / "register.log",
    )
    if not wanted:
        stages.prove("register", status)
        return
    result = stages.prove_registration(status)
    metrics = ", ".join(
        f"{name.removeprefix('test/')} {result['metrics'][name]:.4f}"
        for name in ("test/accuracy", "test/f1", "test/loss")
        if name in result["metrics"]
    )
    click.echo(f"{result['name']} version {result['version']} ({result['alias']}): {metrics}")
