"""From a command's work to its exit status: a fault said once, the MLflow run ended once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import click

from account_tax.config import NOT_GIVEN, resolve
from account_tax.errors import Failed, Preempted, Refused
from account_tax.mlflow_run import OwnedRun, TrackingError
from account_tax.processes import Interrupted, raise_on_signals


def run_in_mlflow(
    project: Path, work: Callable[[OwnedRun | None], None], *, own_run: bool = True
) -> int:
    """Do a command's work in its MLflow run and return the exit status.

    0: done. 1: failed. 2: refused. 75: goes on later. 128 + n: ended by signal n. The run is
    FINISHED, FAILED, SCHEDULED or KILLED, with the reason as its tag.

    Args:
        project: The project's root.
        work: What to do; raises `Refused` or `Failed` to say why it can't.
        own_run: Whether a run is started where MLFLOW_RUN_ID names none; one that it names is
            adopted in any case.
    """
    raise_on_signals()
    run: OwnedRun | None = None
    try:
        if own_run or "MLFLOW_RUN_ID" in os.environ:
            run = OwnedRun.open(project)
        work(run)
        status, state, reason = 0, "FINISHED", ""
    except Refused as err:
        status, state, reason = 2, "FAILED", str(err)
    except Failed as err:
        status, state, reason = err.status, "FAILED", str(err)
    except Preempted as err:
        status, state, reason = err.status, err.state, str(err)
    except Interrupted as err:
        status, state, reason = 128 + err.signum, "KILLED", f"ended by {err}"
    except Exception as err:  # a bug, or a server or disk that went away: say it, close the run
        traceback.print_exc()
        status, state, reason = 1, "FAILED", f"unexpected {type(err).__name__}: {err}"
    if reason:
        click.echo(reason, err=True)
    return _close(run, state, reason, status) if run else status


def _close(run: OwnedRun, state: str, reason: str, status: int) -> int:
    """End the MLflow run and return the exit status; a run that can't be ended is no success."""
    try:
        run.close(state, reason)
    except TrackingError as err:
        click.echo(f"the MLflow run {run.run_id} is not marked as {state}. {err}", err=True)
        return status or 1
    return status


def given(text: str) -> str | None:
    """Return what an option was set to; None for MLproject's words for "not given"."""
    return None if text.strip().lower() in ("none", NOT_GIVEN, "") else text.strip()


def registered_name(project: Path, text: str) -> str:
    """Return the registered model's name: the option's, or that of the project's parameters."""
    name = given(text)
    return resolve(project, [("registry.name", name)] if name else []).values["registry"]["name"]
