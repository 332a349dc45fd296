"""A study: its trials as nested MLflow runs, and Optuna's view of them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from account_tax.parameters.schema import MOST_TRIALS
from account_tax.processes.identity import identify, state_of
from account_tax.storage.names import TAG
from account_tax.terminal import is_verbose
from account_tax.tracking.owned_run import KIND_TAG
from account_tax.tracking.ownership import OWNER_TAG, REASON_TAG
from account_tax.tracking.store import condition

from .space import Space, Values

if TYPE_CHECKING:
    import optuna

State = Literal["running", "lost", "complete", "pruned", "failed"]
# How a trial's run ends. The state is a tag and written first: a run whose owner is gone is closed
# as FAILED by the next command, and one that was interrupted is KILLED, though no trial has ended.
ENDS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
TRIAL_TAG = f"{TAG}trial"  # of a trial's run: its number and values, as JSON
STATE_TAG = f"{TAG}trial_state"


@dataclass(frozen=True)
class Trial:
    """One trial as its run tells it.

    Attributes:
        run_id: Its MLflow run, the only one there will be.
        number: From 0.
        values: What was proposed.
        state: running; lost, if whoever ran it is gone and it goes on with the next call; or how it
            has ended.
        value: Of the metric, of one that is complete.
        curve: The metric at each evaluation, as step and value.
        seconds: From its first start to its end.
        reason: Why it was pruned or failed.
    """

    run_id: str
    number: int
    values: Values
    state: State
    value: float | None
    curve: list[tuple[int, float]]
    seconds: float
    reason: str


@dataclass
class Study:
    """The trials of a study, in the store.

    Attributes:
        client: The store's client.
        run_id: The study's own run, the parent of the trials'.
        experiment_id: Where the runs are.
        space: What is searched.
        search: The section `tuning` of the parameters, metric and direction filled in.
    """

    client: MlflowClient
    run_id: str
    experiment_id: str
    space: Space
    search: Mapping[str, Any]
    _curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # of ended trials

    @property
    def sign(self) -> int:
        """1 if more is better, -1 if less."""
        return 1 if self.search["direction"] == "maximize" else -1

    def trials(self) -> list[Trial]:
        """Return every trial by its number."""
        return sorted(map(self._read, self._runs()), key=lambda trial: trial.number)

    def _runs(self) -> list[Run]:
        mine = condition(f"tags.`{MLFLOW_PARENT_RUN_ID}`", self.run_id)
        runs = self.client.search_runs([self.experiment_id], mine, max_results=MOST_TRIALS)
        return [run for run in runs if TRIAL_TAG in run.data.tags]

    def release(self) -> None:
        """Count trials as lost whose worker, on another machine, can't be asked.

        For who holds the study alone, before its own workers begin: those of before ended with
        their job.
        """
        for run in self._runs():
            unknown = state_of(run.data.tags.get(OWNER_TAG, "")) == "unknown"
            if run.info.status == "RUNNING" and STATE_TAG not in run.data.tags and unknown:
                self.client.set_terminated(run.info.run_id, "KILLED")

    def _read(self, run: Run) -> Trial:
        tags, run_id = run.data.tags, run.info.run_id
        said = json.loads(tags[TRIAL_TAG])
        state = cast("State | None", tags.get(STATE_TAG))
        if state and run.info.status != ENDS[state]:
            self._heal(run, ENDS[state])
        if not state:
            running = run.info.status == "RUNNING" and state_of(tags.get(OWNER_TAG, "")) != "gone"
            state = "running" if running else "lost"
        value = run.data.metrics.get(self.search["metric"]) if state == "complete" else None
        took = (run.info.end_time or run.info.start_time) - run.info.start_time
        # One that is complete may be killed yet, while it is registered.
        reason = tags.get(REASON_TAG, "") if state in ("pruned", "failed") else ""
        curve = self._curve(run_id, ended=state in ENDS)
        return Trial(
            run_id, said["number"], said["values"], state, value, curve, took / 1000, reason
        )

    def _heal(self, run: Run, status: str) -> None:
        """End a run as its trial has: its owner was killed in between, or it is registered now."""
        if state_of(run.data.tags.get(OWNER_TAG, "")) == "gone":
            self.client.set_terminated(run.info.run_id, status, run.info.end_time)

    def _curve(self, run_id: str, ended: bool) -> list[tuple[int, float]]:
        if run_id in self._curves:
            return self._curves[run_id]
        history = self.client.get_metric_history(run_id, self.search["metric"])
        points: dict[int, float] = {}
        for point in sorted(history, key=lambda each: (each.step, each.timestamp)):
            points.setdefault(point.step, point.value)  # after training the best model's comes
        curve = sorted(points.items())
        if ended:
            self._curves[run_id] = curve
        return curve

    # --- which comes next -------------------------------------------------------------------------

    def take(self) -> Trial | None:
        """Return the trial to run now, its run made; None where there are enough.

        First those that were lost, then a new one. Only who holds the study's lock may ask.
        """
        trials = self.trials()
        if lost := next((trial for trial in trials if trial.state == "lost"), None):
            return lost
        number = max((trial.number for trial in trials), default=-1) + 1
        if number >= self.search["trials"]:
            return None
        values = self.propose(trials, number)
        tags = {
            MLFLOW_PARENT_RUN_ID: self.run_id,
            MLFLOW_RUN_NAME: f"trial {number}",
            KIND_TAG: "trial",
            OWNER_TAG: identify(),
            TRIAL_TAG: json.dumps({"number": number, "values": values}),
        }
        run = self.client.create_run(self.experiment_id, tags=tags)
        return Trial(run.info.run_id, number, values, "running", None, [], 0.0, "")

    def propose(self, trials: list[Trial], number: int) -> Values:
        """Return the values of a new trial: the recipe's of the first, else the sampler's.

        Its random numbers follow seed and number alone: a resumed study asks for the same.
        """
        if number == 0:
            return self.space.start()
        import optuna

        seed, study = (self.search["seed"] + number) % 2**32, self.in_optuna(trials)
        by_name = {
            "tpe": optuna.samplers.TPESampler,
            "random": optuna.samplers.RandomSampler,
        }
        study.sampler = by_name[self.search["sampler"]](seed=seed)
        return self.space.suggest(study.ask())

    def in_optuna(self, trials: Sequence[Trial]) -> optuna.Study:
        """Return Optuna's study of these trials, in memory."""
        import optuna

        if not is_verbose():
            optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction=self.search["direction"], study_name=self.run_id)
        for trial in trials:
            study.add_trial(self._frozen(trial))
        return study

    def _frozen(self, trial: Trial) -> optuna.trial.FrozenTrial:
        """Return a trial as Optuna has it; evaluations are counted, as steps depend on batches."""
        import optuna

        states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
        ranges = [each for each in self.space.ranges if each.key in trial.values]
        asked = optuna.trial.FixedTrial(trial.values)
        for each in ranges:
            each.suggest(asked)  # type: ignore[arg-type]
        finite = {n: value for n, (_, value) in enumerate(trial.curve) if math.isfinite(value)}
        return optuna.trial.create_trial(
            state=optuna.trial.TrialState[states.get(trial.state, "RUNNING")],
            value=trial.value,
            params=dict(trial.values),
            distributions=asked.distributions,
            intermediate_values=finite,
        )

    # --- how one stands ---------------------------------------------------------------------------

    def why_prune(self, run_id: str, curve: list[tuple[int, float]]) -> str | None:
        """Return why a trial is to end at its last evaluation, or None."""
        import optuna

        if self.search["pruner"] == "none":
            return None
        trials = self.trials()
        me = next(trial for trial in trials if trial.run_id == run_id)
        others = [trial for trial in trials if trial.run_id != run_id]
        mine = self._frozen(replace(me, curve=curve, state="running"))
        study = self.in_optuna(others)
        study.add_trial(mine)
        if not optuna.pruners.MedianPruner().prune(study, study.trials[-1]):
            return None
        step, value = curve[-1]
        said = f"pruned at step {step}: {self.search['metric']} {value:.4f}"
        done = [each for each in others if each.state == "complete"]  # as Optuna counts them
        there = [each.curve[len(curve) - 1][1] for each in done if len(each.curve) >= len(curve)]
        if there:
            said += f", median {statistics.median(there):.4f}"
        return said

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the best of the complete trials, the first of equals."""
        done = [trial for trial in trials if trial.value is not None]
        return max(
            done, key=lambda each: (self.sign * (each.value or 0), -each.number), default=None
        )
