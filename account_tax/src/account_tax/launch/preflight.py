"""`kedro preflight`: every fault that can be known before a run is submitted, at once."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import click

from account_tax.backends.findings import Findings
from account_tax.errors import Failed
from account_tax.faults import tell
from account_tax.parameters.config import ConfigError, Pair, Resolved, resolve, resolve_usable
from account_tax.parameters.kinds import Help
from account_tax.parameters.options import read_words
from account_tax.parameters.schema import File
from account_tax.terminal import fact_line

from .plan import make_plan

# Each backend's module of checks below account_tax.backends; this machine's stand here.
BACKENDS = {
    "local": "",
    "slurm": "slurm.preflight",
    "kubernetes": "kubernetes",
    "databricks": "databricks",
}


@dataclass(frozen=True)
class Options:
    """What is asked, beside the parameters."""

    backend: Annotated[
        Literal["local", "slurm", "kubernetes", "databricks"], Help("Where the run is to go.")
    ] = "local"
    backend_config: Annotated[
        File | None, Help("The file that `mlflow run --backend-config` is given.")
    ] = None


def preflight(project: Path, words: Sequence[str]) -> int:
    """Print what is missing, or what was found; return 0 if nothing is, else 2.

    Args:
        project: The project's root.
        words: The options, and parameters as `kedro train` takes them.
    """
    values, parameters, faults = read_words(Options, words, lambda _: True)
    if faults:
        faults += _resolve(project, parameters)[1]
        click.echo(tell(faults, "in the options"), err=True)
        return 2
    options = Options(**values)
    backend = options.backend
    if backend == "local":
        findings = _check_here(project, parameters)
    else:
        checks = importlib.import_module(f"account_tax.backends.{BACKENDS[backend]}").checks
        resolved, faults = _resolve(project, parameters)
        config, unreadable = _read(project, options.backend_config)
        findings = checks(project, config, resolved) if config is not None else Findings()
        findings.faults += [*unreadable, *faults]
    for name, fact in findings.facts.items():
        if fact is not None:
            click.echo(fact_line(name, fact))
    if not findings.faults:
        click.echo(f"{backend}: nothing speaks against it; nothing was submitted")
        return 0
    click.echo(tell(findings.faults, f"before submitting to {backend}"), err=True)
    return 2


def _resolve(project: Path, parameters: Sequence[Pair]) -> tuple[Resolved | None, list[str]]:
    """Return the parameters as far as they can be read, and their faults."""
    try:
        return resolve(project, parameters), []
    except ConfigError as err:
        return None, err.faults


def _read(project: Path, name: Path | None) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the backend's configuration, or why there is none."""
    if name is None:
        return None, ["--backend-config: not given, and the backend does nothing without one."]
    try:
        config = json.loads((project / name).read_text(encoding="utf-8"))
    except OSError as err:
        return None, [f"--backend-config {name}: {err.strerror}."]
    except ValueError as err:
        return None, [f"--backend-config {name}: no JSON ({err})."]
    if not isinstance(config, dict):
        return None, [f"--backend-config {name}: expected an object with keys."]
    return config, []


def _check_here(project: Path, parameters: Sequence[Pair]) -> Findings:
    """Return the faults of parameters, data, base model and machine, and what a run would do."""
    try:
        return Findings(facts=make_plan(project, *resolve_usable(project, parameters)).facts())
    except ConfigError as err:
        return Findings(err.faults)
    except Failed as err:
        return Findings([str(err)])
