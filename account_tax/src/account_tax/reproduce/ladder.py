"""`kedro reproduce`: each rung in its turn, then the report and the verdict on the version."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.errors import Failed, Refused
from account_tax.ledger.sources import SAMPLE
from account_tax.model.classifier import (
    SETTINGS_FILE,
    BaseModelError,
    MissingBaseError,
    resolve_pin,
)
from account_tax.provenance.code import code_in_words
from account_tax.registry.find import find_version
from account_tax.registry.record import Record, read_record
from account_tax.storage.files import read_json, scratch_folder
from account_tax.storage.names import PATCH_FILE
from account_tax.tracking.owned_run import OwnedRun

from .report import in_words, mark_version, print_rung, report_json, report_markdown
from .request import Request
from .retrain import retrain
from .rungs import DIFFERENT, Rung, check_bytes, check_logits, check_metrics, judge, skip

FOLDER = "reproduce"  # among the run's artifacts


def reproduce_version(project: Path, request: Request, run: OwnedRun) -> None:
    """Climb the ladder, print each rung, log the report and mark the version.

    Raises:
        Refused: If there is no such version.
        Failed: If it could not be reproduced.
    """
    mlflow.set_tracking_uri(run.tracking_uri)
    client = MlflowClient(run.tracking_uri)
    version = find_version(client, request.name, request.reference)
    rungs = []
    with scratch_folder() as scratch:
        for rung in climb(project, client, version, request, scratch):
            click.echo(print_rung(rung))
            rungs.append(rung)
    _conclude(client, version, rungs, run)


def climb(
    project: Path, client: MlflowClient, version: ModelVersion, request: Request, scratch: Path
) -> Iterator[Rung]:
    """Yield each rung asked for; those above one that can't be stood on are skipped."""
    record = read_record(client, version)
    if record.parameters:
        record = replace(record, parameters=localise(record.parameters, project, request.data))
    may = "R3" in request.rungs and "commit" in record.tags and may_run(record, request.run_code)
    first, classifier = check_bytes(version, scratch / "version", request.verify_key, record)
    yield first
    if classifier and request.rungs[1:]:
        require_base(classifier)
    missing = ", ".join(record.missing)
    for name in request.rungs[1:]:
        if classifier is None:
            yield skip(name, "R0 failed")
        elif name == "R1":
            yield check_logits(version, classifier)
        elif missing:
            yield skip(name, f"not recorded: {missing}")
        elif name == "R2":
            yield check_metrics(classifier, record)
        elif "commit" in record.tags and not may:
            yield skip(name, "its code was not to be run (run_code)")
        else:
            yield retrain(project, classifier, record, scratch, request.seeds, click.echo)


def require_base(classifier: Path) -> None:
    """Raise Refused where the base is not there: that says nothing of the version."""
    if not (classifier / "adapter_config.json").exists():
        return
    try:
        resolve_pin(read_json(classifier / SETTINGS_FILE)["base"])
    except MissingBaseError as err:
        raise Refused(f"nothing can be reproduced without the base. {err}") from err
    except BaseModelError:
        return  # another one than was trained on, which the rungs tell


def may_run(record: Record, run_code: str) -> bool:
    """Say which recorded code R3 would run on this machine, and return whether it may.

    Raises:
        Refused: If it is to be asked for and there is nobody to ask.
    """
    lines = record.patch.count(b"\n") if record.patch else 0
    patch = f", a patch of {lines:,} lines" if lines else ""
    click.echo(
        f"R3 runs recorded code on this machine, as you: {code_in_words(record.tags)}{patch}"
    )
    if run_code != "ask":
        return run_code == "yes"
    if not sys.stdin.isatty():
        raise Refused(
            "run_code = ask (-P run_code): there is no terminal to ask at. Look at the code (git "
            f"show {record.tags['commit'][:12]}{f', {PATCH_FILE} of the run' if lines else ''}), "
            "then give -P run_code=yes; with no, R3 is left out."
        )
    return click.confirm("Run it?")


def localise(parameters: dict[str, Any], project: Path, source: str | None) -> dict[str, Any]:
    """Return the parameters with the source and a base's folder as any folder finds them.

    Args:
        parameters: parameters.yml.
        project: What relative paths in them are relative to.
        source: Where the data are now, if they have moved.
    """
    data, train = parameters["data"], parameters["train"]
    data = data | ({"source": source} if source else {})
    for key in ("source", "label_map"):
        if (place := data.get(key)) and place != SAMPLE and "://" not in place:
            data = data | {key: str((project / Path(place).expanduser()).resolve())}
    base = train["model"]["name"]
    if (project / base).is_dir():
        base = str((project / base).resolve())
    model = train["model"] | {"name": base}
    return parameters | {"data": data, "train": train | {"model": model}}


def _conclude(
    client: MlflowClient, version: ModelVersion, rungs: Sequence[Rung], run: OwnedRun
) -> None:
    """Log the report, mark the version, and raise where it could not be reproduced."""
    verdict = judge(rungs)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    run.introduce("reproduce", f"{version.name} version {version.version}")
    content = report_json(version, rungs, verdict, at)
    run.log_text(json.dumps(content, ensure_ascii=False, indent=2), f"{FOLDER}/report.json")
    run.log_text(report_markdown(version, rungs, verdict, at), f"{FOLDER}/report.md")
    line = f"{version.name} version {version.version}: {in_words(verdict)}"
    if verdict.word:
        try:
            mark_version(client, version, verdict, run.run_id, at)
        except MlflowException as err:
            raise Failed(f"{line}. The version is not marked so: {err.message}") from err
    if verdict.word == DIFFERENT:
        raise Failed(line)
    click.echo(line)
