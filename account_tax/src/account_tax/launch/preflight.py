"""`kedro preflight`: every fault that can be known before a run is submitted, at once."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from account_tax.backends.findings import Findings
from account_tax.errors import Failed
from account_tax.parameters.config import ConfigError, Resolved, parse_command_line, resolve

from .plan import make_plan

# Each backend's module of checks below account_tax.backends; this machine's stand here.
BACKENDS = {
    "local": "",
    "slurm": "slurm.preflight",
    "kubernetes": "kubernetes",
    "databricks": "databricks",
}


def preflight(project: Path, backend: str, config_file: str | None, words: Sequence[str]) -> int:
    """Print what is missing, or what was found; return 0 if nothing is, else 2.

    Args:
        project: The project's root.
        backend: One of BACKENDS.
        config_file: The file that `mlflow run --backend-config` is given; None for `local`.
        words: Parameters, as `kedro train` takes them.
    """
    if backend == "local":
        findings = _check_here(project, words)
    else:
        checks = importlib.import_module(f"account_tax.backends.{BACKENDS[backend]}").checks
        resolved, faults = _resolve(project, words)
        config, unreadable = _read(project, config_file)
        findings = checks(project, config, resolved) if config is not None else Findings()
        findings.faults += [*unreadable, *faults]
    for name, fact in findings.facts.items():
        if fact is not None:
            click.echo(f"{name:<24} {fact}")
    if not findings.faults:
        click.echo(f"{backend}: nothing speaks against it; nothing was submitted")
        return 0
    noun = "problem" if len(findings.faults) == 1 else "problems"
    click.echo(f"{len(findings.faults)} {noun} before submitting to {backend}", err=True)
    for fault in findings.faults:
        click.echo(f"  {fault}", err=True)
    return 2


def _resolve(project: Path, words: Sequence[str]) -> tuple[Resolved | None, list[str]]:
    """Return the parameters as far as they can be read, and their faults."""
    try:
        return resolve(project, parse_command_line(words)), []
    except ConfigError as err:
        return None, err.faults


def _read(project: Path, name: str | None) -> tuple[dict[str, Any] | None, list[str]]:
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


def _check_here(project: Path, words: Sequence[str]) -> Findings:
    """Return the faults of parameters, data, base model and machine, and what a run would do."""
    try:
        return Findings(facts=make_plan(project, words).facts())
    except ConfigError as err:
        return Findings(err.faults)
    except Failed as err:
        return Findings([str(err)])
