"""`kedro compare`: trained runs side by side, on the test split that they share."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import click
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.errors import Refused
from account_tax.faults import hint, tell
from account_tax.parameters.kinds import Help
from account_tax.parameters.options import ModelOptions
from account_tax.parameters.schema import Name
from account_tax.registry.find import find_version
from account_tax.registry.record import read_artifacts, read_record
from account_tax.storage.names import ANSWERS_FILE, DATASET_METADATA_FILE, TAG
from account_tax.tracking.owned_run import KIND_TAG, OwnedRun
from account_tax.tracking.store import condition

FOLDER, REPORT = "compare", "report.html"
MOST_RUNS = 30
SHOWN_TAGS = ("recipe", "base", "pooling", "precision", "parameters_trained", "environment")


@dataclass(frozen=True, kw_only=True)
class Request(ModelOptions):
    """What is asked for: versions, or the trained runs of an experiment."""

    versions: Annotated[list[Name], Help("Registered versions: 1,2,3.")] = field(
        default_factory=list[str]
    )
    experiment: Annotated[Name | None, Help("Whose runs, where no versions: else Default.")] = None
    filter: Annotated[
        Name | None, Help("Which of them, as in tags.`account_tax.recipe` = 'starter'.")
    ] = None


def read_request(project: Path, words: Sequence[str]) -> Request:
    """Return what is asked for.

    Raises:
        Refused: With every fault there is.
    """
    return Request.read(project, words)


def compare(request: Request, run: OwnedRun) -> None:
    """Print the runs side by side and log the report to this command's own run.

    Raises:
        Refused: If there are no two that can be compared, with what stands against it.
    """
    client = MlflowClient(run.tracking_uri)
    findings = compare_runs(client, find_runs(client, request))
    findings["date"] = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    log_comparison(client, run, findings)
    show(findings)
    click.echo(f"see {run.page_of(f'{FOLDER}/{REPORT}')}")


def find_runs(client: MlflowClient, request: Request) -> list[tuple[Run, str]]:
    """Return the runs, each with its version in words, the oldest first.

    Raises:
        Refused: If there is no such experiment or version, or MLflow can't read the filter.
    """
    if request.versions:
        return _find_versions(client, request)
    name = request.experiment or "Default"
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        names = [each.name for each in client.search_experiments()]
        near = hint(name, names)
        raise Refused(f"experiment = {name} (-P experiment): there is none. {near}")
    trained = f"{condition(f'tags.`{KIND_TAG}`', 'train')} and attributes.status = 'FINISHED'"
    trained += " and metrics.`test/f1` >= 0"  # else register=false left the test split alone
    wanted = f"{trained} and {request.filter}" if request.filter else trained
    try:
        runs = client.search_runs([experiment.experiment_id], wanted, max_results=MOST_RUNS)
    except MlflowException as err:
        raise Refused(
            f"filter = {request.filter} (-P filter): {err.message}. Expected what MLflow searches "
            f"runs by, such as tags.`{TAG}recipe` = 'starter'."
        ) from None
    if runs.token:
        click.echo(f"The newest {MOST_RUNS} runs of more; -P filter chooses others.")
    return [(run, _version_of(run)) for run in reversed(runs)]


def _find_versions(client: MlflowClient, request: Request) -> list[tuple[Run, str]]:
    faults, found = list[str](), dict[str, ModelVersion]()  # once: an alias may be one of them
    for key in ("filter", "experiment"):
        if getattr(request, key):
            chooses = "it chooses among runs. Give it or versions, not both"
            faults.append(f"{key} (-P {key}): {chooses}.")
    for reference in dict.fromkeys(request.versions):
        try:
            version = find_version(client, request.name, reference)
        except Refused as err:
            faults.append(str(err))
            continue
        if version.version not in found:
            found[version.version] = version
            changed = read_record(client, version).changed
            faults += [f"version {version.version}: {one.text}" for one in changed]
    if len(found) == 1 and not faults:
        given = f"versions = {','.join(request.versions)} (-P versions)"
        faults.append(f"{given}: only version {next(iter(found))}. Expected at least two.")
    if faults:
        raise Refused(tell(faults, "with the versions"))
    return [
        (client.get_run(str(each.run_id)), f"version {each.version}") for each in found.values()
    ]


def _version_of(run: Run) -> str:
    name, _, number = run.data.tags.get(f"{TAG}version", "").rpartition("/")
    return f"{name} version {number}" if name else ""


def compare_runs(client: MlflowClient, runs: Sequence[tuple[Run, str]]) -> dict[str, Any]:
    """Return what the report shows of runs that were scored on the same rows.

    Raises:
        Refused: With every run that was not, and how they differ.
    """
    if len(runs) < 2:
        found = f"{len(runs)} trained run{'s' * (len(runs) != 1)} with a test score"
        raise Refused(f"{found} found. Expected at least two; -P versions=1,2 takes versions.")
    # Imported here: they bring torch and SciPy, which a refusal does without.
    from account_tax.model.classifier import MANIFEST_FILE

    from .statistics import interval, resample_models, score_model

    names = (ANSWERS_FILE, DATASET_METADATA_FILE, MANIFEST_FILE)
    files = [_read(client, run, names) for run, _ in runs]
    if faults := _faults(runs, files):
        raise Refused(tell(faults, "with the runs"))
    rows = []
    for (run, version), read in zip(runs, files, strict=True):
        truth, predicted = answers_of(read[ANSWERS_FILE]["confusion_matrix"])
        classes = len(read[ANSWERS_FILE]["labels"])
        whole, (drawn,) = (
            score_model(truth, predicted, classes),
            resample_models(truth, [predicted], classes),
        )
        scores = {
            metric: interval(getattr(whole, metric), getattr(drawn, metric), len(truth))
            for metric in ("accuracy", "f1")
        }
        rows.append(_describe(run, version, read.get(MANIFEST_FILE, {})) | scores)
    _tell_apart(rows)
    best = max(rows, key=lambda row: row["f1"]["value"])
    for row in rows:
        row["as_good"] = row["f1"]["high"] >= best["f1"]["low"]
    first = files[0]
    return {
        "runs": rows,
        "best": best["title"],
        "rows": first[DATASET_METADATA_FILE]["splits"]["test"]["rows"],
        "source": first[DATASET_METADATA_FILE]["source"],
        "sha256": first[DATASET_METADATA_FILE]["splits"]["test"]["sha256"],
    }


def _tell_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Let titles that several runs have show whose they are."""
    titles = Counter(row["title"] for row in rows)
    for row in rows:
        if titles[row["title"]] > 1:
            row["title"] += f" ({row['run_id'][:8]})"


def answers_of(matrix: Sequence[Sequence[int]]) -> Any:
    """Return class ids of truth and answer, each (N,), that have a confusion matrix, (C, C)."""
    import numpy as np

    counts = np.asarray(matrix)
    return (np.repeat(ids, counts.ravel()) for ids in np.indices(counts.shape).reshape(2, -1))


def _read(client: MlflowClient, run: Run, names: Sequence[str]) -> dict[str, Any]:
    raw = read_artifacts(client, run.info.run_id, names)
    return {name: json.loads(content) for name, content in raw.items()}


def _faults(runs: Sequence[tuple[Run, str]], files: Sequence[Mapping[str, Any]]) -> list[str]:
    faults, splits = list[str](), dict[str, list[str]]()
    for (run, version), read in zip(runs, files, strict=True):
        title = version or run.info.run_id
        if missing := [name for name in (ANSWERS_FILE, DATASET_METADATA_FILE) if name not in read]:
            faults.append(f"{title}: no {missing[0]}. It was not scored on its test split.")
            continue
        sha256 = read[DATASET_METADATA_FILE]["splits"]["test"]["sha256"]
        splits.setdefault(sha256, []).append(title)
    if len(splits) > 1:
        listed = "; ".join(f"{digest[:12]} of {', '.join(of)}" for digest, of in splits.items())
        faults.append(f"their test splits differ: {listed}. Compare those of one split.")
    return faults


def _describe(run: Run, version: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    tags, metrics = run.data.tags, run.data.metrics
    size = sum(each["bytes"] for each in manifest.get("files", {}).values())
    seconds = metrics.get("train/runtime_seconds")
    return {
        "title": version or run.info.run_name or run.info.run_id,
        "run_id": run.info.run_id,
        "run": run.info.run_name or "",
        **{name: tags.get(f"{TAG}{name}", "not recorded") for name in SHOWN_TAGS},
        "size": f"{size / 1e6:.1f} MB" if size else "not recorded",
        "training": f"{seconds:,.0f} s" if seconds is not None else "not recorded",
        "loss": metrics.get("test/loss"),
    }


def log_comparison(client: MlflowClient, run: OwnedRun, findings: Mapping[str, Any]) -> None:
    """Write the report to the run."""
    from .report import render_comparison

    run.introduce("compare", f"{len(findings['runs'])} runs")
    with tempfile.TemporaryDirectory() as folder:
        texts = render_comparison(findings) | {
            "compare.json": json.dumps(findings, ensure_ascii=False, indent=1) + "\n"
        }
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        client.log_artifacts(run.run_id, folder, FOLDER)


def show(findings: Mapping[str, Any]) -> None:
    """Print a line a run, the best first."""
    rows = sorted(findings["runs"], key=lambda row: -row["f1"]["value"])
    width = max(len(row["title"]) for row in rows)
    click.echo(f"{findings['rows']:,} test rows; 95% intervals")
    click.echo(f"{'':<{width}}  {'macro-F1':<25}  {'accuracy':<25}  training  base")
    for row in rows:
        cells = [
            f"{row[metric]['value']:.4f} ({row[metric]['low']:.4f} to {row[metric]['high']:.4f})"
            for metric in ("f1", "accuracy")
        ]
        line = f"{row['title']:<{width}}  {cells[0]:<25}  {cells[1]:<25}  {row['training']:>8}"
        click.echo(f"{line}  {row['base']}")
