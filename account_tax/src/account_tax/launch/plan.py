"""What a run will do, settled before anything starts: parameters, data, model and machine."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import yaml

from account_tax.backends.place import OneMachine, Place, find_place
from account_tax.confidential import secrets_in
from account_tax.errors import Failed
from account_tax.parameters.batch import batch_faults, cpu_ranks, free_cores, share_batch
from account_tax.parameters.config import ConfigError, Resolved, source_of
from account_tax.parameters.options import text_of
from account_tax.processes.answers import last_lines
from account_tax.processes.groups import run_stage
from account_tax.provenance.code import Code, code_in_words, describe_code
from account_tax.provenance.environment import (
    describe_environment,
    environment_in_words,
    unlocked_fault,
)
from account_tax.storage.checkpoints import size_of
from account_tax.storage.names import PATCH_FILE
from account_tax.terminal import fact_line

from .refusals import find_machine_faults
from .schedule import Schedule
from .stages import stage_environment

SHOWN = 30  # lines of a check that failed itself
LONGEST_VALUE = 60  # characters
SLOW_BF16 = "bf16, which is slower than fp32 on this device; -P precision=fp32 is faster here"


@dataclass(frozen=True)
class Plan:
    """A run that nothing speaks against.

    Attributes:
        resolved: The parameters, the base pinned as the check found it.
        report: What `account_tax.pipelines.check` found out about data, model and machine.
        place: Where the ranks run.
        world_size: Ranks.
        schedule: Its length.
        environment: The lock, the differences from it, and the machine.
        code: The working tree as it is now.
    """

    resolved: Resolved
    report: dict[str, Any]
    place: Place
    world_size: int
    schedule: Schedule
    environment: dict[str, Any]
    code: Code

    @property
    def device(self) -> str:
        """What the ranks run on."""
        return "GPU" if self.report["gpus"] else "CPU"

    @property
    def any_ranks(self) -> bool:
        """Whether another number of ranks would do: nobody asked for one, and rows are fixed."""
        return (
            type(self.place) is OneMachine
            and not self.report["gpus"]
            and self.resolved.launch.num_gpus == "auto"
            and bool(self.resolved.values["train"]["deepspeed"].get("train_batch_size"))
        )

    def facts(self) -> dict[str, Any]:
        """Return what a person wants to know before the start, by name."""
        report = self.report
        trainable, everything = report["trainable_parameters"], report["parameters"]
        share = trainable / everything
        return {
            "recipe": self.resolved.launch.recipe,
            "configuration sha256": self.resolved.sha256,
            **report["ledger"],
            "classes": len(report["labels"]),
            "world size": f"{self.world_size} ({self.device})",
            "global batch": self._batch_in_words(),
            "optimizer steps": self.schedule.in_words(),
            "trainable parameters": f"{trainable:,} of {everything:,} ({share:.2%})",
            "padding token": report["padding_token"],
            **({"precision": SLOW_BF16} if self._is_slow() else {}),
            "environment": environment_in_words(self.environment),
            "code": code_in_words(self.code.tags()),
        }

    def _is_slow(self) -> bool:
        """Return whether fp32 would be faster; a machine other than this has not been asked."""
        here, training = type(self.place) is OneMachine, self.resolved.values["train"]["training"]
        return here and training["bf16"] and not self.report["fast_bf16"]

    def _batch_in_words(self) -> str:
        rows, times = share_batch(self.resolved.values["train"]["deepspeed"], self.world_size)
        factors = f"rows {rows} x micro-batches {times} x ranks {self.world_size}"
        return f"{self.schedule.global_batch_size} ({factors})"

    def show(self) -> None:
        """Print the facts."""
        for name, value in self.facts().items():
            click.echo(fact_line(name, value))
        click.echo("\ndry run: nothing was started, nothing was written.")


def show_values(resolved: Resolved) -> None:
    """Print what was given, or with dry_run=full every value, and where each came from."""
    flat, whole = resolved.flat(), resolved.launch.dry_run == "full"
    sources = {key: resolved.sources.get(key, "training.yml") for key in flat}
    shown = [
        key for key in flat if whole or resolved.given(key) or sources[key].startswith("conf/local")
    ]
    width = max(map(len, shown), default=0)
    for key in shown:
        value = text_of(flat[key]) or "null"
        value = value if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 3]}..."
        click.echo(f"{key:<{width}} = {value}  ({sources[key]})")
    if others := len(flat) - len(shown):
        click.echo(f"{others} values are the recipe's or defaults; dry_run=full shows them")
    click.echo("")


def make_plan(
    project: Path, resolved: Resolved, conflicts: Sequence[str], workers: int = 1
) -> Plan:
    """Return the plan of a run.

    Args:
        project: The project's root.
        resolved: The parameters, less the sections whose values can't stand together.
        conflicts: Those faults.
        workers: How many such runs there will be at once.

    Raises:
        ConfigError: With these and every fault of data, model and machine.
    """
    faults = list(conflicts)
    environment = describe_environment(project)
    report = _check(project, resolved.values)
    try:
        place: Place = find_place(resolved.launch, workers=workers)
    except ConfigError as err:
        faults, place = faults + err.faults, OneMachine(resolved.launch)
    block = resolved.values["train"].get("deepspeed")
    world_size = place.world_size(report["gpus"] or cpu_ranks(block, free_cores()))
    found = list(report["faults"])
    if not any(fault.startswith("num_gpus") for fault in faults):
        found += batch_faults(block, world_size, resolved.sources)
    ranks_here, port = place.ranks_here(world_size), resolved.launch.master_port
    schedule = Schedule.read(resolved.values, report, world_size)
    found += find_machine_faults(
        *(resolved.values, report, ranks_here, port, project),
        saved_bytes=_saved_bytes(project, resolved, report),
        written=schedule.checkpoints if schedule else 0,
    )
    folders = [project, project / resolved.values.get("artifacts_root", ".")]
    found += place.workers_faults(workers, report["gpus"])
    found += place.faults(folders, stage_environment(project))
    found += _lock_faults(resolved, environment)
    faults += [_name_source(fault, resolved) for fault in found]
    if faults:
        raise ConfigError(faults)
    assert schedule is not None  # whatever it is read from has no fault
    pinned, code = _pin_base(resolved, report["base"]), describe_code(project)
    refuse_secrets(code)
    return Plan(pinned, report, place, world_size, schedule, environment, code)


def refuse_secrets(code: Code) -> None:
    """Refuse to keep changes in which a secret of the environment stands."""
    if named := secrets_in(code.patch.decode(errors="replace"), os.environ):
        changed = "changed files, which the run would keep. Take it out of them"
        raise ConfigError([f"{PATCH_FILE}: the value of {', '.join(named)} is in {changed}."])


def _lock_faults(resolved: Resolved, environment: dict[str, Any]) -> list[str]:
    """Return the fault if a version would come from an environment that nobody can make again."""
    allowed = resolved.values.get("registry", {}).get("allow_unlocked", True)
    if environment["locked"] or allowed or resolved.launch.register is not True:
        return []
    return [unlocked_fault(environment)]


def store_of(resolved: Resolved) -> Path:
    """Return the folder of all checkpoints of a configuration."""
    training = resolved.values["train"]["training"]
    default = Path(resolved.values["artifacts_root"]) / "checkpoints"
    return Path(training.get("output_dir", default)) / resolved.sha256


def _saved_bytes(project: Path, resolved: Resolved, report: dict[str, Any]) -> int:
    """Return the size of the configuration's checkpoints; 0 where it has a fault."""
    if "base" not in report or "training" not in resolved.values["train"]:
        return 0
    return size_of(project / store_of(_pin_base(resolved, report["base"])))


def _pin_base(resolved: Resolved, base: dict[str, str | None]) -> Resolved:
    """Return the parameters with the commit and digest of the base that was checked.

    A hub id without a commit may point elsewhere a minute later; all stages take this one.
    """
    train = resolved.values["train"]
    news = {key: value for key, value in base.items() if train["model"].get(key) != value}
    sources = {f"train.model.{key}": "found by the check" for key in news}
    values = resolved.values | {"train": train | {"model": train["model"] | base}}
    return replace(resolved, values=values, sources=resolved.sources | sources)


def _check(project: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Run `account_tax.pipelines.check`: it needs torch, which this process does without."""
    with tempfile.TemporaryDirectory() as scratch:
        parameters, report = Path(scratch) / "parameters.yml", Path(scratch) / "report.json"
        parameters.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        files = map(str, (parameters, report))
        command = [sys.executable, "-m", "account_tax.pipelines.check", *files]
        log = Path(scratch) / "check.log"
        status = run_stage(command, cwd=project, environment=stage_environment(project), log=log)
        if status != 0 or not report.exists():
            text = "\n".join(last_lines(log, SHOWN))
            raise Failed(f"the check itself failed (exit status {status}).\n{text}")
        return json.loads(report.read_text(encoding="utf-8"))


def _name_source(fault: str, resolved: Resolved) -> str:
    """Add to a fault of the form `key = value: ...` where that key was set."""
    key, equals, rest = fault.partition(" = ")
    source = source_of(key, resolved.sources)
    value = re.match(r"(\{.*?\}|.*?): ", rest)  # a mapping holds colons itself
    if not (equals and source and value) or f" ({source}): " in rest:
        return fault
    return f"{key} = {value[1]} ({source}): {rest[value.end() :]}"
