"""`kedro review`: a version reviewed, decided upon, or its history shown."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.errors import Failed, Refused
from account_tax.registry.find import DENIED, find_version
from account_tax.registry.history import count_entries
from account_tax.registry.registry_state import (
    find_contradictions,
    find_expired,
    read_registry,
    verify_history,
)
from account_tax.registry.states import CHAMPION, PREVIOUS_CHAMPION
from account_tax.reporting.description import write_section
from account_tax.storage.files import scratch_folder, sha256_of
from account_tax.storage.names import TAG
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.store import open_store, tracking_uri

from .allowed import Proposal, author_of, check_before_review
from .decision import decide
from .gates import GateResult, judge
from .history_text import format_history
from .report import describe_review, render_html, render_markdown
from .request import Request

FOLDER = "review"  # of the run's artifacts
REPORT = "report.html"
COLOURS = {"passed": "green", "failed": "red", "not measured": "yellow"}


def review(project: Path, request: Request, run: OwnedRun | None) -> None:
    """Review a version, decide on it, or show the history."""
    uri = run.tracking_uri if run else tracking_uri(project)
    mlflow.set_tracking_uri(uri)
    client = open_store(uri)
    with _clear_errors(uri):
        if request.reads_only:
            _tell_history(client, request)
        else:
            assert run is not None, "only the history is read without a run"
            _review_and_decide(client, run, request)


# --- what it does ---------------------------------------------------------------------------------


@contextmanager
def _clear_errors(uri: str) -> Iterator[None]:
    """Say of a store that fails which it is and what became of the version."""
    try:
        yield
    except MlflowException as err:
        if err.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise Refused(f"{uri}: {err.message}. Check -P registered_model_name.") from err
        if err.error_code in DENIED:
            raise Refused(
                f"{uri}: no permission ({err.message}). Ask whoever runs the registry for the "
                "right to read the model's versions and to tag them."
            ) from err
        raise Failed(
            f"{uri}: the registry failed ({err.message}). A decision that is not printed above was "
            "not made; repeat the command when the registry answers."
        ) from err


def _tell_history(client: MlflowClient, request: Request) -> None:
    if request.history:
        registry = read_registry(client, request.name)
        click.echo(format_history(registry.history.entries), nl=False)
        for fault in [*find_contradictions(registry), *find_expired(registry)]:
            click.echo(f"mind this: {fault}")
    if not request.verify_history:
        return
    if faults := verify_history(client, request.name):
        lines = "".join(f"\n  {fault}" for fault in faults)
        raise Failed(f"the history of {request.name} is not as it was written{lines}")
    click.echo(f"the history of {request.name} is whole")


def _review_and_decide(client: MlflowClient, run: OwnedRun, request: Request) -> None:
    """Review the version, then decide on it where a decision is asked for."""
    now = datetime.now(UTC)
    proposal = Proposal(
        request.decision or "", request.reviewer, request.reason, now, run.run_id,
        waive=request.waive, expires=request.expires, sign_key=request.registry.get("sign_key"),
    )  # fmt: skip
    if request.decision == "rollback":
        _roll_back(client, request.name, proposal)
        return
    version = find_version(client, request.name, request.reference)
    seen = None
    if request.decision:  # a review takes minutes, and looks the champion up
        registry = read_registry(client, request.name)
        check_before_review(registry, version, author_of(client, version), proposal)
        seen = len(registry.history.digests)
    gates = []
    if request.decision != "retire":  # a version goes out of service whatever its numbers are
        try:
            gates = review_version(client, run, version, request, now)
        except Refused as err:
            if request.decision != "reject":
                raise
            click.echo(f"{err}\nIt is rejected without a review.", err=True)
    if request.decision:
        proposal = replace(proposal, gates=gates)
        click.echo(decide(client, request.name, proposal, version.version, seen).message)


def _roll_back(client: MlflowClient, name: str, proposal: Proposal) -> None:
    """Let the previous champion serve again, if its files are those that served."""
    from account_tax.registry.download import download_version, refuse_broken

    seen = count_entries(client, name)
    number = client.get_registered_model(name).aliases.get(PREVIOUS_CHAMPION)
    if number is not None:  # else the decision says so
        version = client.get_model_version(name, number)
        title = f"{name} version {number} can't be gone back to"
        with scratch_folder() as scratch, refuse_broken(title):
            download_version(version, scratch)
    click.echo(decide(client, name, proposal, entries_seen=seen).message)


def review_version(
    client: MlflowClient, run: OwnedRun, version: ModelVersion, request: Request, now: datetime
) -> list[GateResult]:
    """Return the gates' results, after writing the findings to the run and onto the version."""
    # Imported late: history and retirement need no torch, nor does a refused version.
    from .evidence import gather_evidence, load_contender
    from .findings import find, gate_results

    other, note = find_champion(client, version)
    beside = f"{other.name} version {other.version} (champion)" if other else "the baselines"
    click.echo(f"review: {version.name} version {version.version} against {beside}")
    with scratch_folder() as scratch:
        challenger = load_contender(client, version, scratch)
        champion = load_contender(client, other, scratch) if other else None
    evidence = gather_evidence(
        challenger, champion, note, source=request.data, slices=request.slices
    )
    findings = find(evidence, request.registry["gates"]) | {
        "run_id": run.run_id,
        "date": f"{now:%Y-%m-%d %H:%M} UTC",
    }
    show(findings)
    log_review(client, run, version, findings)
    report = f"{FOLDER}/{REPORT}"
    click.echo(f"report: {report} of run {run.run_id}\nsee {run.page_of(report)}")
    return gate_results(findings)


def find_champion(client: MlflowClient, version: ModelVersion) -> tuple[ModelVersion | None, str]:
    """Return the version in service beside this one, or None and why there is none."""
    number = client.get_registered_model(version.name).aliases.get(CHAMPION)
    if number is None:
        return None, f"no version has the alias {CHAMPION} yet"
    if str(number) == str(version.version):
        return None, "the reviewed version is the champion itself"
    return client.get_model_version(version.name, number), ""


def log_review(
    client: MlflowClient, run: OwnedRun, version: ModelVersion, findings: dict[str, Any]
) -> None:
    """Write the report to the run, and its digest and tags to the version, last."""
    with tempfile.TemporaryDirectory() as folder:
        files = {
            REPORT: render_html(findings),
            "report.md": render_markdown(findings),
            "review.json": json.dumps(findings, ensure_ascii=False, indent=1) + "\n",
        }
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        sha256 = sha256_of(Path(folder) / REPORT)
        client.log_artifacts(run.run_id, folder, FOLDER)
    _log_metrics(client, run.run_id, findings)
    what = f"{version.name} version {version.version}"
    reviewed = {f"{TAG}reviewed": f"models:/{version.name}/{version.version}"}
    run.introduce("review", what, reviewed)
    experiment = client.get_run(run.run_id).info.experiment_id
    write_section(client, version, "review", describe_review(findings, experiment))
    tags = {
        "review/run_id": run.run_id,
        "review/gates": findings["outcome"],
        "review/sha256": sha256,
    }
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value)


def _log_metrics(client: MlflowClient, run_id: str, findings: dict[str, Any]) -> None:
    now = int(datetime.now(UTC).timestamp() * 1000)
    values = {
        f"review/{role}/{metric}": each[metric]["value"]
        for role, each in findings["models"].items()
        for metric in ("accuracy", "f1")
    }
    for metric, change in findings["difference"].items():
        values |= {f"review/change/{metric}_{end}": change[end] for end in ("low", "value", "high")}
    for role, each in findings["calibration"].items():
        values[f"review/{role}/calibration_error"] = each["expected_calibration_error"]
    points = [Metric(key, value, now, 0) for key, value in values.items()]
    client.log_batch(run_id, points, synchronous=True)


def show(findings: dict[str, Any]) -> None:
    """Print the scores and the gates as short tables."""
    titles, rows = findings["titles"], findings["models"]
    lines = [(titles[role], each["accuracy"], each["f1"], ".4f") for role, each in rows.items()]
    change = findings["difference"]
    lines.append((f"difference to {findings['reference']['key']}", change["accuracy"], change["f1"],
                  "+.4f"))  # fmt: skip
    width = max(len(title) for title, *_ in lines)
    rows_shown = f"{findings['rows']:,} test rows"
    click.echo(f"{rows_shown:<{width}}  {'accuracy':<25}  macro-F1")
    for title, *metrics, form in lines:
        cells = [
            f"{each['value']:{form}} ({each['low']:{form}} to {each['high']:{form}})"
            for each in metrics
        ]
        click.echo(f"{title:<{width}}  {cells[0]:<25}  {cells[1]}")
    for warning in filter(None, [findings["worse"], *findings["warnings"]]):
        click.echo(f"mind this: {warning}")
    width = max((len(gate["name"]) for gate in findings["gates"]), default=0)
    for gate in findings["gates"]:
        found = f"{gate['found']}, wanted: " if gate["found"] else "wanted: "
        status = click.style(f"{gate['status']:<12}", fg=COLOURS[gate["status"]])
        click.echo(f"{gate['name']:<{width}}  {status}  {found}{gate['wanted']}")
        if gate["status"] != "passed":
            click.echo(f"{'':<{width}}  {gate['why']}")
    outcome, sentence = judge(findings["gates"])
    click.secho(sentence, fg=COLOURS[outcome])
