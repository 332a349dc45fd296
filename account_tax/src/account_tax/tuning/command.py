"""`kedro tune`: from a space to the best values found, registered."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from mlflow import MlflowClient
from mlflow.entities import Run

from account_tax.backends.place import OneMachine
from account_tax.commands import run_in_mlflow
from account_tax.errors import Failed, Refused
from account_tax.faults import in_a_line
from account_tax.launch.plan import Plan, make_plan
from account_tax.launch.register import in_words, register_run
from account_tax.launch.stages import stage_environment, warm_stages
from account_tax.parameters.config import (
    ConfigError,
    Pair,
    Resolved,
    parse_command_line,
    read_aliases,
    resolve_usable,
)
from account_tax.parameters.conflicts import goal_of
from account_tax.processes.groups import Interrupted
from account_tax.processes.guard import guard_stage
from account_tax.processes.identity import state_of
from account_tax.provenance.code import describe_code
from account_tax.provenance.environment import describe_environment
from account_tax.storage.files import Held, canonical_sha256, hold, read_json
from account_tax.storage.names import REGISTRATION_FILE, STUDY_VARIABLE, TAG
from account_tax.terminal import fact_line
from account_tax.tracking.owned_run import KIND_TAG, OwnedRun
from account_tax.tracking.ownership import OWNER_TAG
from account_tax.tracking.store import answers_soon, condition, open_store, tracking_uri

from .space import Space, read_space, shown
from .study import ENDS, Study
from .trial import keep_best, run_trial
from .workers import Workers

STUDY_TAG, DIGESTS_TAG = f"{TAG}study", f"{TAG}study_digests"
# What the trials' words leave out: they register nothing and search nothing themselves.
NOT_A_TRIALS = ("tuning.", "register", "resume", "dry_run", "verbose")
ALIKE = 3  # first trials that fail the same way end the study
LOCK_SECONDS = 60.0  # another worker asks Optuna in less


@dataclass(frozen=True)
class Asked:
    """What a command's words ask for.

    Attributes:
        pairs: The words that each trial gets too, by dotted key.
        resolved: The parameters that the search starts from.
        faults: Values that can't stand together, and every fault of the space.
        space: What is searched.
        search: The section `tuning`, metric and direction filled in.
    """

    pairs: list[Pair]
    resolved: Resolved
    faults: list[str]
    space: Space
    search: dict[str, Any]

    @property
    def root(self) -> Path:
        """The folder with the runs' own."""
        return Path(self.resolved.values["artifacts_root"])


def tune(project: Path, words: Sequence[str]) -> int:
    """Run `kedro tune` with the words of its command line; return its exit status."""
    study_id = os.environ.get(STUDY_VARIABLE)

    def work(asked: Asked, run: OwnedRun | None) -> None:
        if study_id:
            _work_for(project, asked, study_id)
            return
        with warm_stages(project):
            plan = make_plan(project, asked.resolved, asked.faults, asked.search["workers"])
            if asked.resolved.launch.dry_run:
                _show(asked, plan)
                return
            assert run is not None
            _search(project, words, asked, plan, run)

    def own_run(asked: Asked) -> bool:
        return not (asked.resolved.launch.dry_run or study_id)

    return run_in_mlflow(project, lambda: read_asked(project, words), work, own_run)


def read_asked(project: Path, words: Sequence[str]) -> Asked:
    """Return what the words ask for.

    Raises:
        ConfigError: With every fault in words, files and space.
    """
    pairs = parse_command_line(words)
    try:
        resolved, faults = resolve_usable(project, pairs)
    except ConfigError as err:
        raise ConfigError([*err.faults, *_faults_of_space(project, pairs)]) from err
    search = dict(resolved.tuning)
    space, wrong = read_space(project, search["space"], resolved)
    if wrong:
        raise ConfigError([*faults, *wrong])
    known = resolved.flat() | {f"tuning.{key}": value for key, value in search.items()}
    search["metric"], search["direction"] = goal_of(known.get)
    keys = {alias: key for key, alias in read_aliases(project).items()}
    given = [(keys.get(name, name), text) for name, text in pairs]
    kept = dict(pair for pair in given if not pair[0].startswith(NOT_A_TRIALS))
    return Asked(list(kept.items()), resolved, faults, space, search)


def _faults_of_space(project: Path, pairs: Sequence[Pair]) -> list[str]:
    """Return what is wrong with a space beside words that can't be read: it starts from none."""
    given = [pair for pair in pairs if pair[0] in ("recipe", "space", "tuning.space")]
    try:
        resolved = resolve_usable(project, given)[0]
    except ConfigError:
        return []  # these words are among those that can't be read
    return read_space(project, resolved.tuning["space"], resolved)[1]


def _show(asked: Asked, plan: Plan) -> None:
    """Print what is searched, the first trial, and what a trial costs."""
    for each in asked.space.ranges:
        now = shown(asked.space.base[each.key])
        click.echo(f"{each.key:<48} {each.in_words()}; the recipe's {now}")
    click.echo("")
    for name in ("trials", "workers", "metric", "direction", "sampler", "seed", "pruner"):
        click.echo(fact_line(name, asked.search[name]))
    for name in ("rows", "optimizer steps"):
        click.echo(fact_line(name, plan.facts()[name]))
    click.echo(fact_line("evaluations a trial", plan.schedule.evaluations))
    click.echo("\ndry run: nothing was started, nothing was written.")


# --- the study ------------------------------------------------------------------------------------


def digests(asked: Asked, plan: Plan) -> dict[str, str]:
    """Return what makes it the same study or another; the first three are its name too."""
    search = {
        key: asked.search[key] for key in ("metric", "direction", "sampler", "seed", "pruner")
    }
    ranges = [vars(each) for each in asked.space.ranges]
    return {
        "space": canonical_sha256([ranges, search]),
        "configuration": plan.resolved.sha256,
        "data": plan.report["inputs_sha256"],
        **_of_machine(plan.code.package_sha256, plan.environment),
    }


def _of_machine(code: str, environment: Mapping[str, Any]) -> dict[str, str]:
    """Return what a worker has to have in common with its study, whatever its words are."""
    installed = [environment["lock_sha256"], environment["differences"]]
    return {"code": code, "environment": canonical_sha256(installed)}


def _differing(now: Mapping[str, str], then: Mapping[str, str]) -> str:
    """Return what differs as `code and environment differ`, or nothing."""
    names = [key for key in now if now[key] != then.get(key)]
    names = ["space or search" if key == "space" else key for key in names]
    return f"{' and '.join(names)} differ{'s' * (len(names) == 1)}" if names else ""


def _search(project: Path, words: Sequence[str], asked: Asked, plan: Plan, run: OwnedRun) -> None:
    """Run the trials that are missing, then register what the best has trained."""
    now = digests(asked, plan)
    name = asked.search["study"] or canonical_sha256([now[key] for key in list(now)[:3]])[:12]
    studies = (project / asked.root / "studies").resolve()
    with _alone(studies / name, name), _told_to_go_on(name):
        study = _begin(asked, run, name, now, studies)
        study.release()
        wanted = asked.search["trials"]
        click.echo(f"study {name}: {wanted} trial{'s' * (wanted > 1)}, run {run.run_id}")
        if asked.search["workers"] > 1:
            command = [sys.executable, "-m", "kedro", "tune", *words]
            launch = asked.resolved.launch
            environment = stage_environment(project) | {STUDY_VARIABLE: run.run_id}
            folder = studies / run.run_id
            assert isinstance(plan.place, OneMachine)  # no other takes several
            workers = Workers(command, asked.search["workers"], plan.place, folder)
            workers.run(project, environment, launch.grace_seconds)
        _serve(project, asked, study, tracking_uri(project))
        _finish(project, asked, study, run)


@contextmanager
def _told_to_go_on(name: str) -> Iterator[None]:
    """Say of a search that is interrupted how it goes on."""
    try:
        yield
    except Interrupted as err:
        said = f"study {name} keeps its trials; the same command goes on with it"
        raise Interrupted(err.signum, said) from err


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    try:
        with hold(folder / "tune.lock") as sign:
            sign({})
            yield
    except Held as err:
        raise Refused(
            f"study {name} is under way: process {err.owner.get('pid', 'unknown')}. Wait for it, "
            "end it, or give another name with -P study=NAME."
        ) from None


def _begin(asked: Asked, run: OwnedRun, name: str, now: dict[str, str], studies: Path) -> Study:
    """Let the run be the study's: a new one, or that of an earlier call of the same study.

    Its folder in `studies` is there from now on: another machine that sees it shares the lock.

    Raises:
        Refused: If the study of this name is another one, or has all its trials.
    """
    client = MlflowClient(run.tracking_uri)
    with answers_soon(run.tracking_uri):
        mine = client.get_run(run.run_id)
        named = condition(f"tags.`{STUDY_TAG}`", name)
        where = f"{named} and {condition(f'tags.`{KIND_TAG}`', 'tune')}"
        found = client.search_runs([mine.info.experiment_id], where)
        study = Study(client, run.run_id, mine.info.experiment_id, asked.space, asked.search)
        if earlier := next(iter(found), None):
            _refuse_another(earlier, run.run_id, name, now, studies)
            study.run_id = earlier.info.run_id
            there = study.trials()
            if earlier.info.status == "FINISHED" and len(there) >= asked.search["trials"]:
                raise Refused(
                    f"study {name} has its {len(there)} trials: run {study.run_id}. Ask for more "
                    "with -P trials=N, or begin another with -P study=NAME."
                )
            ended = sum(trial.state in ENDS for trial in there)
            run.go_on(study.run_id, f"trial {ended}")
            click.echo(f"study {name}: going on, {ended} of its trials have ended")
    (studies / study.run_id).mkdir(parents=True, exist_ok=True)
    run.introduce("tune", name, {STUDY_TAG: name, DIGESTS_TAG: json.dumps(now)})
    run.log_params({f"tuning.{key}": asked.search[key] for key in sorted(asked.search)})
    return study


def _refuse_another(earlier: Run, mine: str, name: str, now: dict[str, str], studies: Path) -> None:
    tags, run_id = earlier.data.tags, earlier.info.run_id
    running = earlier.info.status == "RUNNING" and run_id != mine
    owner = tags.get(OWNER_TAG, "")
    if running and (state := state_of(owner)) != "gone":
        if state == "alive":
            raise Refused(f"study {name} is under way: {owner}. Wait for its end.")
        if not (studies / run_id).is_dir():  # so the lock that is held here is not its own
            raise Refused(
                f"study {name} is under way on another machine, or was killed there: {owner} (run "
                f"{run_id}). Wait for its end, go on there, or begin another with -P study=NAME."
            )
    then = json.loads(tags[DIGESTS_TAG])
    if differing := _differing(now, then):
        raise Refused(
            f"study {name}: its {differing} from what it was begun with (run "
            f"{earlier.info.run_id}). Its trials could not be compared. Begin another with "
            "-P study=NAME."
        )


def _serve(project: Path, asked: Asked, study: Study, uri: str) -> None:
    """Run trials until there are enough; other workers may do the same.

    Raises:
        Failed: If the first trials all fail for one reason.
    """
    lock = project / asked.root / "studies" / study.run_id / "ask.lock"
    while True:
        with hold(lock, LOCK_SECONDS):
            trial = study.take()
            if trial is None:
                return
            OwnedRun.reopen(study.client, trial.run_id, uri)  # taken: nobody else takes it up
        run_trial(project, asked.pairs, study, trial, uri)
        trials = study.trials()
        ended = next(each for each in trials if each.number == trial.number)
        said = "" if ended.value is None else f"{asked.search['metric']} {ended.value:.4f}"
        click.echo(f"trial {ended.number}: {said or in_a_line(ended.reason)}")
        keep_best(project / asked.root, study)
        first = [each for each in trials if each.number < ALIKE]
        reasons = {in_a_line(each.reason) for each in first}
        if len(first) == ALIKE and len(reasons) == 1 and {e.state for e in first} == {"failed"}:
            raise Failed(f"the first {ALIKE} trials failed for one reason: {first[0].reason}")


def _work_for(project: Path, asked: Asked, study_id: str) -> None:
    """Be a worker of a study that another process has begun.

    Raises:
        Refused: If the code or the environment is another than the study's.
    """
    guard_stage()
    uri = tracking_uri(project)
    client = open_store(uri)
    parent = client.get_run(study_id)
    then = json.loads(parent.data.tags[DIGESTS_TAG])
    code, environment = describe_code(project), describe_environment(project)
    if differing := _differing(_of_machine(code.package_sha256, environment), then):
        raise Refused(
            f"worker on {socket.gethostname()}: its {differing} from the study's (run {study_id}). "
            "Its trials could not be compared. Give it the project's folder and the environment "
            "that the study was begun with."
        )
    study = Study(client, study_id, parent.info.experiment_id, asked.space, asked.search)
    with warm_stages(project):
        _serve(project, asked, study, uri)


def _finish(project: Path, asked: Asked, study: Study, run: OwnedRun) -> None:
    """Register what the best trial has trained, and say what was found."""
    trials = study.trials()
    best = study.best(trials)
    if best is None:
        raise Failed("no trial was completed, so there is nothing to register.")
    from .report import write_report

    write_report(project, asked.pairs, study, run)
    run.log_metrics({asked.search["metric"]: best.value or 0.0})
    run.set_tags({f"{TAG}best_run": best.run_id})
    click.echo(f"best: trial {best.number}, {asked.search['metric']} {best.value:.4f}")
    for key, value in best.values.items():
        click.echo(f"  {key:<46} {shown(value)}  (the recipe's {shown(asked.space.base[key])})")
    register = asked.resolved.launch.register
    done = read_json(project / asked.root / best.run_id / REGISTRATION_FILE)
    if register and not done:
        done = register_run(project, best.run_id, register)
    elif done:
        click.echo(in_words(done))
    if done:
        run.set_tags({f"{TAG}version": f"{done['name']}/{done['version']}"})
