"""One trial: `kedro train` with its values and without the test split, judged as it goes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from account_tax.commands import close, end_of
from account_tax.errors import Failed, Preempted
from account_tax.launch.launcher import run_stages
from account_tax.launch.plan import Plan, make_plan, store_of
from account_tax.parameters.config import Pair, parse_command_line, resolve_usable
from account_tax.processes.groups import Interrupted
from account_tax.storage.checkpoints import list_checkpoints, remove
from account_tax.storage.names import ADAPTER_FOLDER, BEST_FOLDER
from account_tax.tracking.metric_journal import read_points
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.store import TrackingAway, patience_seconds

from .space import override, shown
from .study import ENDS, STATE_TAG, State, Study, Trial


class Pruned(Exception):
    """A trial is behind, and ends; the message says how far."""


def run_trial(project: Path, pairs: Sequence[Pair], study: Study, trial: Trial, uri: str) -> None:
    """Train with a trial's values, in its run, to one of its ends.

    Raises:
        Interrupted: If this process is to end; the trial goes on another time.
        TrackingAway: If the server went away, likewise.
    """
    run = OwnedRun.reopen(study.client, trial.run_id, uri)
    words = [f"--{key}={text}" for key, text in override(pairs, trial.values)]
    said = ", ".join(f"{key} = {shown(value)}" for key, value in trial.values.items())
    click.echo(f"trial {trial.number}: {said}")
    plan: Plan | None = None
    try:
        plan = _plan(project, words, run)
        run_stages(project, words, plan, run, Judge(study, trial.run_id, plan.schedule.evaluations))
        value = study.client.get_run(run.run_id).data.metrics.get(study.search["metric"])
        if value is None or not math.isfinite(value):
            raise Failed(f"{study.search['metric']} is {value}, no finite number")
        _end(run, "complete", "")
    except Pruned as err:
        _end(run, "pruned", str(err))
    except (Interrupted, TrackingAway, Preempted) as err:
        close(run, end_of(err))
        raise
    except Exception as err:
        _end(run, "failed", end_of(err).reason)
    if plan:
        remove(project / store_of(plan.resolved) / run.run_id)


def _plan(project: Path, words: Sequence[str], run: OwnedRun) -> Plan:
    """Return the plan of a trial: its own checkpoints are the only ones that it goes on from."""
    pairs = parse_command_line(words)
    plan = make_plan(project, *resolve_usable(project, pairs, all_serve=False))
    there = list_checkpoints(project / store_of(plan.resolved) / run.run_id)
    resume = run.run_id if there else "never"
    launch = replace(plan.resolved.launch, register=False, resume=resume)
    return replace(plan, resolved=replace(plan.resolved, launch=launch))


def _end(run: OwnedRun, state: State, reason: str) -> None:
    """End a trial for good; the state first, so that it is never run again."""
    run.set_tags({STATE_TAG: state})
    run.close(ENDS[state], reason, patience=patience_seconds())


class Judge:
    """Looks at each evaluation of a trial as it is written, and ends one that is behind.

    The last one is left alone: there is nothing to save by then, and whether it is seen before
    the trial's own end would be chance.
    """

    def __init__(self, study: Study, run_id: str, evaluations: int):
        self._study, self._run_id, self._last = study, run_id, evaluations
        self._size = self._seen = 0

    def __call__(self, journal: Path) -> None:
        """Look once more.

        Raises:
            Pruned: If the trial is behind.
        """
        size = journal.stat().st_size if journal.exists() else 0
        if size == self._size:
            return
        self._size, points = size, dict[int, float]()
        for point in read_points(journal):
            if point.key == self._study.search["metric"]:
                points.setdefault(point.step, point.value)
        curve = sorted(points.items())
        for seen in range(self._seen + 1, min(len(curve) + 1, self._last)):
            self._seen = seen
            if why := self._study.why_prune(self._run_id, curve[:seen]):
                raise Pruned(why)


def keep_best(root: Path, study: Study) -> None:
    """Remove the classifiers of all trials that have ended but the best; the rest of each stays."""
    trials = study.trials()
    best = study.best(trials)
    for trial in trials:
        if trial.state in ENDS and trial is not best:
            for name in (ADAPTER_FOLDER, BEST_FOLDER):
                shutil.rmtree(root / trial.run_id / name, ignore_errors=True)
