"""From a command's work to its exit status: a fault said once, the MLflow run ended once."""

from __future__ import annotations

import logging
import os
import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click
from mlflow.exceptions import MlflowException

from account_tax.confidential import describe_error, hide_secrets, is_outspoken
from account_tax.errors import Failed, Preempted, Refused, Unmeasured
from account_tax.processes.groups import Interrupted, raise_on_signals
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.ownership import close_dead_runs
from account_tax.tracking.store import (
    TrackingAway,
    TrackingError,
    open_store,
    patience_seconds,
    short_waits,
)

Asked = TypeVar("Asked")


def run_in_mlflow(
    project: Path,
    read: Callable[[], Asked],
    work: Callable[[Asked, OwnedRun | None], None],
    own_run: Callable[[Asked], bool] = lambda _: True,
) -> int:
    """Read a command's words, do its work in its MLflow run and return the exit status.

    0: done. 1: failed. 2: refused. 4: refused, as something was not measured. 75: goes on later.
    128 + n: ended by signal n. The run is FINISHED, FAILED, SCHEDULED or KILLED, with the reason as
    its tag. A command that is refused before it has done anything leaves no run but the one that
    MLFLOW_RUN_ID names.

    Args:
        project: The project's root.
        read: Returns what is asked for; raises `Refused` where a word can't be what it is. No run
            is open by then, and nothing heavy should be imported for it.
        work: What to do; raises `Refused` or `Failed` to say why it can't.
        own_run: Whether a run is started where MLFLOW_RUN_ID names none; one that it names is
            adopted in any case.
    """
    raise_on_signals()
    # It logs each failed statement with its values, and raises it as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    run: OwnedRun | None = None
    by_mlflow = "MLFLOW_RUN_ID" in os.environ
    try:
        try:
            asked = read()
        except Refused as err:
            return _tell(_adopt(project) if by_mlflow else None, end_of(err))
        try:
            if by_mlflow or own_run(asked):
                run = OwnedRun.open(project)
                close_dead(run.tracking_uri)
            work(asked, run)
            end = End(0, "FINISHED", "")
        except Exception as err:
            end = end_of(err)
        return _tell(run, end)
    except Interrupted as err:  # during the work or after it; no second signal comes
        return _tell(run, end_of(err))


def _adopt(project: Path) -> OwnedRun | None:
    """Return the run that `mlflow run` made for a refused command, if its store answers."""
    with suppress(Refused):
        return OwnedRun.open(project)


def _tell(run: OwnedRun | None, end: End) -> int:
    """Say why it was not done, end the run and return the exit status."""
    if end.reason:
        click.echo(hide_secrets(_as_typed(end.reason)), err=True)
    return close(run, end) if run else end.status


def _as_typed(reason: str) -> str:
    """Return the reason with options as the command has them that was typed: -P is mlflow run's."""
    if "MLFLOW_RUN_ID" in os.environ:
        return reason
    lines = reason.splitlines(keepends=True)
    typed = (each if "mlflow run" in each else re.sub(r"-P (?=\w)", "--", each) for each in lines)
    return "".join(typed)


@dataclass(frozen=True)
class End:
    """How a command ends: exit status, the MLflow run's state and the reason, if not done.

    `insist` says whether its end waits for a tracking server that is away.
    """

    status: int
    state: str
    reason: str
    insist: bool = True

    @property
    def refused(self) -> bool:
        """Whether the command was told that it can't be done."""
        return self.status in (Refused.status, Unmeasured.status)


def end_of(err: BaseException) -> End:
    """Return how a command ends by an exception; of a bug it is shown where it was raised."""
    match err:
        case TrackingAway():
            return End(err.status, "FAILED", str(err), insist=False)  # it was waited for
        case Refused():
            return End(err.status, "FAILED", str(err))
        case Failed():
            return End(err.status, "FAILED", str(err))
        case Preempted():
            return End(err.status, err.state, str(err), insist=False)  # there is no time
        case Interrupted():
            return End(128 + err.signum, "KILLED", f"ended by {err}", insist=False)
        case _:  # a bug, or a server or disk that went away: say it, close the run
            if not is_outspoken(err):
                traceback.print_tb(err.__traceback__)  # without the words of any library
            return End(1, "FAILED", describe_error(err))


def close(run: OwnedRun, end: End) -> int:
    """End the MLflow run and return the exit status; a run that can't be ended is no success."""
    if run.ended:
        return end.status
    try:
        patience = patience_seconds() if end.insist else 0
        run.close(end.state, end.reason, refused=end.refused, patience=patience)
    except Exception as err:  # whatever the store raises
        click.echo(
            f"the MLflow run {run.run_id} is not marked as {end.state}. {err} The next command "
            "that finds the server marks it as FAILED; of a trained one "
            f"`kedro register --run {run.run_id}` makes a FINISHED one.",
            err=True,
        )
        return end.status or 1
    return end.status


def close_dead(uri: str) -> None:
    """Close the runs of a store whose process on this host is gone, and name them."""
    # What a command is for goes before this.
    with suppress(MlflowException, TrackingError), short_waits():
        for run_id in close_dead_runs(open_store(uri)):
            click.echo(f"run {run_id}: its process is gone; closed as FAILED", err=True)
