"""Rung R3: the training done again in a temporary clone, never in the user's tree."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from mlflow import MlflowClient
from safetensors.torch import load_file

from account_tax.backends.handed_over import without_secrets
from account_tax.ledger.reading import DataError, source_digest
from account_tax.model.classifier import SETTINGS_FILE, BaseModelError, resolve_pin
from account_tax.processes.answers import last_lines
from account_tax.processes.groups import run_stage
from account_tax.provenance.code import (
    BEFORE,
    PACKAGE_FOLDER,
    code_in_words,
    digest_package,
    git,
    git_answer,
    python_path,
)
from account_tax.provenance.environment import describe_environment
from account_tax.registry.record import Difference, Record, read_artifacts
from account_tax.storage.files import sha256_of
from account_tax.storage.names import ADAPTER_FOLDER, PARAMETERS_FILE, PATCH_FILE, TAG

from .differences import configuration_differences, environment_differences, first_cause
from .rungs import BITWISE, DIFFERENT, FAIL, PASS, WITHIN, Rung, recorded_metrics, skip
from .rungs import source_difference as differs_in_source

# No hook of the user's runs in the clone, and files are as committed.
PLAIN = ("-c", "core.hooksPath=/dev/null", "-c", "core.autocrlf=false")
RECIPE = "reproduce"  # written into the clone; git is told to ignore it
LAUNCHER_GRACE_SECONDS = 9.0  # the launcher ends its own ranks, and its run, within that
# With any of these another model is what has to come out, so nothing is trained.
DECISIVE = ("data", "base", "code", "configuration")


class TrainingError(RuntimeError):
    """The training in the clone ended badly; the message has the last lines it wrote."""


@dataclass(frozen=True)
class Trained:
    """A training in the clone.

    Attributes:
        weights: Its safetensors files by name.
        metrics: Its test metrics.
        parameters: parameters.yml of its run.
    """

    weights: Mapping[str, Path]
    metrics: Mapping[str, float]
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Workshop:
    """Where a training is done again.

    Attributes:
        project: The project's root in the clone.
        record: What the version's run kept.
        logs: Folder of the trainings' output.
        say: Tells the user what is going on.
    """

    project: Path
    record: Record
    logs: Path
    say: Callable[[str], None]

    @property
    def store(self) -> str:
        """The clone's own tracking store."""
        return f"sqlite:///{self.project / 'mlflow.db'}"


def retrain(
    project: Path,
    classifier: Path,
    record: Record,
    scratch: Path,
    seeds: int,
    say: Callable[[str], None],
) -> Rung:
    """Return rung R3.

    Args:
        project: The user's project; only read.
        classifier: The version's folder, downloaded.
        record: What its run kept.
        scratch: An empty folder for clone, store and logs.
        seeds: Trainings with other seeds, where the weights differ.
        say: Tells the user what is going on.
    """
    if git(project, "--version").returncode != 0:
        return skip("R3", "git is not on PATH, so there is no clone to train in")
    before = list(find_differences(project, record, classifier))
    first = first_cause(before)
    if first and first.cause in DECISIVE:
        return _not_the_same(first.text, before)
    if changed := record.tags.get(BEFORE):
        before.append(Difference("code", f"the run went on with other code ({changed})"))
    prefix = clone_code(project, record, scratch / "clone")
    workshop = Workshop(scratch / "clone" / prefix, record, scratch / "logs", say)
    if hidden := hidden_from_git(workshop.project, record):
        return _not_the_same(hidden.text, [*before, hidden])
    try:
        again = train_again(workshop, _seed(record))
    except TrainingError as err:
        unknown = Difference("environment", "it does not train", inferred=True)
        return _not_the_same(str(err), [*before, unknown])
    assert record.parameters is not None
    found = [*before, *configuration_differences(record.parameters, again.parameters)]
    weights = compare_weights(classifier, again.weights)
    if not weights["other_files"]:
        names = ", ".join(sorted(again.weights))
        evidence = f"{names}: sha256 equal, from {code_in_words(record.tags)}"
        return Rung("R3", PASS, evidence, tuple(found), weights, BITWISE)
    return _within_band(workshop, again, seeds, found, weights)


def _not_the_same(evidence: str, differences: list[Difference]) -> Rung:
    return Rung("R3", FAIL, evidence, tuple(differences), verdict=DIFFERENT)


def _seed(record: Record) -> int:
    assert record.parameters is not None
    return record.parameters["train"]["training"]["seed"]


# --- before: the inputs ---------------------------------------------------------------------------


def find_differences(project: Path, record: Record, classifier: Path) -> Iterator[Difference]:
    """Yield where an input is gone, was edited, or is another one than that which was recorded."""
    assert record.parameters is not None
    yield from record.changed
    try:
        if found := differs_in_source(record, source_digest(record.parameters["data"])):
            yield found
    except DataError as err:
        yield Difference("data", "; ".join(err.faults))
    yield from _base_difference(record, classifier)
    yield from _code_difference(project, record)
    if record.environment is not None:
        yield from environment_differences(record.environment, describe_environment(project))


def _base_difference(record: Record, classifier: Path) -> Iterator[Difference]:
    assert record.parameters is not None
    pin = json.loads((classifier / SETTINGS_FILE).read_text(encoding="utf-8"))["base"]
    try:
        resolve_pin(pin | {"name": record.parameters["train"]["model"]["name"]})
    except BaseModelError as err:
        yield Difference("base", str(err))


def _code_difference(project: Path, record: Record) -> Iterator[Difference]:
    commit = record.tags.get("commit")
    if commit is None:
        yield Difference("code", "no commit was recorded: there was no repository, or no git")
    elif git(project, "cat-file", "-e", f"{commit}^{{commit}}").returncode != 0:
        yield Difference("code", f"commit {commit} is not in this repository; fetch it")


# --- the clone ------------------------------------------------------------------------------------


def clone_code(project: Path, record: Record, folder: Path) -> str:
    """Make a clone at the recorded commit, patched, and return the project's place in it.

    `--shared` reads the objects where they are, so a commit that no branch holds any more is found
    as well; nothing is written to the user's repository.
    """
    root = os.fsdecode(git_answer(project, "rev-parse", "--show-toplevel")).rstrip("\n")
    prefix = os.fsdecode(git_answer(project, "rev-parse", "--show-prefix")).rstrip("\n")
    clone = ("clone", "--quiet", "--shared", "--no-checkout", root, str(folder))
    git_answer(folder.parent, *PLAIN, *clone)
    git_answer(folder, *PLAIN, "checkout", "--quiet", "--detach", record.tags["commit"])
    if record.patch:
        patch = folder.parent / PATCH_FILE
        patch.write_bytes(record.patch)
        where = (f"--directory={prefix}",) if prefix else ()
        git_answer(folder, *PLAIN, "apply", "--whitespace=nowarn", *where, str(patch))
    with (folder / ".git" / "info" / "exclude").open("a", encoding="utf-8") as exclude:
        exclude.write(f"{RECIPE}*.yml\n")
    return prefix


def hidden_from_git(clone: Path, record: Record) -> Difference | None:
    """Return the difference if the clone's package is not the one that was trained with.

    Git does not show what is marked as unchanged, ignored, or in a repository of its own.
    """
    found, then = digest_package(clone / PACKAGE_FOLDER), record.tags.get("package_sha256")
    if then in (None, found):
        return None
    text = f"{PACKAGE_FOLDER}: sha256 {found} instead of {then}; git shows not all that was changed"
    return Difference("code", text)


# --- the training ---------------------------------------------------------------------------------


def train_again(workshop: Workshop, seed: int) -> Trained:
    """Train in the clone with the recorded parameters and this seed, registering nothing.

    Raises:
        TrainingError: If it ends badly.
    """
    ranks = workshop.record.params.get("launch.world_size", "1")
    recipe, log = f"{RECIPE}-{seed}", workshop.logs / f"seed-{seed}.log"
    (workshop.project / "recipes" / f"{recipe}.yml").write_text(
        yaml.safe_dump(_recipe(workshop, seed), sort_keys=False, allow_unicode=True),
        encoding="utf-8",
    )
    workshop.say(f"R3: training again, seed {seed}, {ranks} rank{'s' * (ranks != '1')}")
    words = (
        "--recipe",
        recipe,
        "--num_gpus",
        ranks,
        "--register",
        _without_registry(workshop.project),
    )
    status = run_stage(
        [sys.executable, "-m", "kedro", "train", *words],
        cwd=workshop.project,
        environment=_environment(workshop),
        log=log,
        grace_seconds=LAUNCHER_GRACE_SECONDS,
    )
    if status != 0:
        tail = "\n".join(last_lines(log))
        raise TrainingError(f"the training ended with status {status}.\n{tail}")
    return _read_training(workshop)


def _without_registry(clone: Path) -> str:
    """Return the word that scores the test split only; older code has no other one than false."""
    schema = clone / PACKAGE_FOLDER / "parameters" / "schema.py"
    return "evaluate" if '"evaluate"' in schema.read_text(encoding="utf-8") else "false"


def _recipe(workshop: Workshop, seed: int) -> dict[str, Any]:
    """Return the recorded values as a recipe: all of them, so nothing else sets one.

    `registry` is left out, nothing is registered; so is the folder, the clone has its own.
    """
    assert workshop.record.parameters is not None
    data, train = (workshop.record.parameters[name] for name in ("data", "train"))
    training = {key: value for key, value in train["training"].items() if key != "output_dir"}
    return {"data": data, "train": train | {"training": training | {"seed": seed}}}


def _environment(workshop: Workshop) -> dict[str, str]:
    """Return the clone's environment: the code it runs is the recorded one, whoever wrote it.

    Of this process's own what finds programs and machine: no secret, and nothing that ties it to
    this run, store or source.
    """
    own = {"MLFLOW_TRACKING_URI": workshop.store, "PYTHONUTF8": "1"}
    own |= python_path(workshop.project)
    if workshop.record.threads:  # the order of sums, and so the bits, depend on it
        own["OMP_NUM_THREADS"] = workshop.record.threads
    return without_secrets(os.environ) | own


def _read_training(workshop: Workshop) -> Trained:
    client = MlflowClient(workshop.store)
    experiments = [each.experiment_id for each in client.search_experiments()]
    run = client.search_runs(experiments, max_results=1)[0]  # the newest
    adapter = workshop.project / run.data.tags[f"{TAG}artifacts_root"] / ADAPTER_FOLDER
    raw = read_artifacts(client, run.info.run_id, (PARAMETERS_FILE,))
    return Trained(
        {file.name: file for file in sorted(adapter.glob("*.safetensors"))},
        {key: value for key, value in run.data.metrics.items() if key.startswith("test/")},
        yaml.safe_load(raw[PARAMETERS_FILE]),
    )


# --- after: the comparison ------------------------------------------------------------------------


def compare_weights(classifier: Path, again: Mapping[str, Path]) -> dict[str, Any]:
    """Return which weight files are not byte for byte the same, and how far their tensors are.

    Returns:
        `other_files`; `max_abs_diff`, over all tensors both have; `other_tensors`, those that only
        one has or that have another shape.
    """
    then = {file.name: file for file in sorted(classifier.glob("*.safetensors"))}
    names = sorted(then.keys() | again.keys())
    other = [
        name
        for name in names
        if name not in then or name not in again or sha256_of(then[name]) != sha256_of(again[name])
    ]
    largest, strange = 0.0, [name for name in other if name not in then or name not in again]
    for name in other:
        if name not in strange:
            difference, tensors = _compare_tensors(load_file(then[name]), load_file(again[name]))
            largest, strange = max(largest, difference), strange + tensors
    return {"other_files": other, "max_abs_diff": largest, "other_tensors": sorted(strange)}


def _compare_tensors(
    then: Mapping[str, torch.Tensor], again: Mapping[str, torch.Tensor]
) -> tuple[float, list[str]]:
    names = then.keys() | again.keys()
    same = {name for name in then.keys() & again.keys() if then[name].shape == again[name].shape}
    largest = [
        float((then[name].double() - again[name].double()).abs().max())
        for name in same
        if then[name].numel()
    ]
    return max(largest, default=0.0), sorted(names - same)


def _within_band(
    workshop: Workshop,
    again: Trained,
    seeds: int,
    differences: list[Difference],
    weights: dict[str, Any],
) -> Rung:
    """Return R3 where the weights differ: is the difference less than what a seed makes?"""
    recorded = recorded_metrics(workshop.record)
    far = f"largest weight difference {weights['max_abs_diff']:.3g}"
    if weights["other_tensors"]:
        return _not_the_same(f"{len(weights['other_tensors'])} other tensors", differences)
    if seeds < 1 or not recorded.keys() & again.metrics.keys():
        return _not_the_same(f"{far}; no band of seeds to judge it by", differences)
    first = _seed(workshop.record)
    others = [train_again(workshop, first + number).metrics for number in range(1, seeds + 1)]
    table = list(compare_metrics(recorded, again.metrics, others))
    outside = [row["metric"] for row in table if not row["within"]]
    widest = max(table, key=lambda row: abs(row["delta"]))
    worst = f"{widest['metric']} {widest['delta']:+.3g}, band of {seeds + 1} seeds "
    evidence = f"{far}; {worst}{widest['band']:.3g}"
    numbers = weights | {"metrics": table, "seeds": seeds + 1}
    word, status = (DIFFERENT, FAIL) if outside else (WITHIN, PASS)
    if outside:
        evidence += f"; outside: {', '.join(outside)}"
    return Rung("R3", status, evidence, tuple(differences), numbers, word)


def compare_metrics(
    recorded: Mapping[str, float], again: Mapping[str, float], others: list[Mapping[str, float]]
) -> Iterator[dict[str, Any]]:
    """Yield each metric's difference beside its band: its range over the trainings' seeds.

    Args:
        recorded: Of the version.
        again: Of the training with the recorded seed.
        others: Of the trainings with other seeds.
    """
    for name in sorted(recorded.keys() & again.keys()):
        values = [again[name], *(each[name] for each in others)]
        band, delta = max(values) - min(values), again[name] - recorded[name]
        yield {"metric": name, "delta": delta, "band": band, "within": abs(delta) <= band}
