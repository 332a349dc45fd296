"""Two versions trained, the second reviewed against the first, and what a registry may do to it."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion

from account_tax.errors import Refused
from account_tax.review.evidence import load_contender
from tests.conftest import WORDS

from .conftest import ACCOUNTS, MARKER, Finished, Project, kedro_words

pytestmark = pytest.mark.integration

NAME = "account-tax"
REVIEWER = ("--reviewer", "Kim Reviewer", "--reason", "the first one there is")


def write_wide_ledger(file: Path) -> Path:
    draw = random.Random(0)
    lines: dict[str, str] = {}
    while len(lines) < 240:
        account = list(ACCOUNTS)[len(lines) % len(ACCOUNTS)]
        words = [*draw.choices(ACCOUNTS[account], k=3), *draw.choices(WORDS, k=2)]
        lines.setdefault(" ".join([MARKER, *words]), account)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label", "region"])
        for number, (text, label) in enumerate(lines.items()):
            writer.writerow([text, label, ["seoul", "busan", "jeju"][number % 3]])
    return file


@pytest.fixture(scope="module")
def reviewed(new_project, tiny, tmp_path_factory) -> tuple[Project, Finished]:
    """Two versions; the first approved with every gate waived, the second reviewed."""
    project = new_project()
    ledger = write_wide_ledger(tmp_path_factory.mktemp("wide") / "ledger.csv")
    options = [option for option in tiny if not option.startswith(("data=", "num_gpus="))]
    options += [f"data={ledger}", "num_gpus=1", "allow_unlocked=true"]
    options += ["train.ngrams.enable=false"]  # they would learn so plain a ledger by heart
    for steps in ("max_steps=2", "max_steps=6"):
        given = [option for option in options if not option.startswith("max_steps=")]
        trained = project.kedro_train(*kedro_words([*given, steps]))
        assert trained.returncode == 0, trained.output
    failing = not_passed(review(project, "--version", "1").output)
    approved = review(
        project, "--version", "1", "--decision", "approve", *REVIEWER, "--waive", ",".join(failing)
    )
    assert approved.returncode == 0, approved.output
    second = review(project, "--slices", "region", "--registry.gates.min_f1", "0.999")
    assert second.returncode == 0, second.output
    return project, second


def review(project: Project, *words: str, **how) -> Finished:
    return project.run("kedro", "review", *words, **how)


def not_passed(output: str) -> list[str]:
    return re.findall(r"^(\w+) +(?:failed|not measured)  ", output, re.M)


def version(client: MlflowClient, number: int) -> ModelVersion:
    return client.get_model_version(NAME, str(number))


def report_of(project: Project, number: int, folder: Path) -> Path:
    run_id = version(project.client(), number).tags["review/run_id"]
    return Path(
        download_artifacts(
            run_id=run_id, artifact_path="review", dst_path=str(folder), tracking_uri=project.store
        )
    )


def classifier_file(project: Project, number: int, name: str) -> Path:
    """Return a file of a version where the registry keeps it."""
    client = project.client()
    model = client.get_logged_model(str(version(client, number).source).removeprefix("models:/"))
    root = Path(model.artifact_location.removeprefix("file://"))
    (found,) = (project.folder / root).rglob(name)
    return found


def test_the_second_version_is_compared_with_the_first(reviewed, tmp_path):
    project, finished = reviewed
    assert f"{NAME} version 2 against {NAME} version 1 (champion)" in finished.output
    found = json.loads((report_of(project, 2, tmp_path) / "review.json").read_text("utf-8"))
    assert found["reference"]["key"] == "champion"
    registered = float(version(project.client(), 2).tags["test/accuracy"])
    assert found["models"]["challenger"]["accuracy"]["value"] == pytest.approx(registered, abs=5e-5)
    before = float(version(project.client(), 1).tags["test/f1"])
    assert found["models"]["champion"]["f1"]["value"] == pytest.approx(before, abs=5e-5)
    assert {row["what"] for row in found["differences"]["configuration"]} == {
        "train.training.max_steps"
    }
    assert {part["value"] for part in found["slices"]["region"]} <= {
        *("seoul", "busan", "jeju"),
        *(f"other ({n} value{'s' * (n > 1)})" for n in (1, 2, 3)),
    }
    assert found["warnings"] == []
    data = {row["what"]: row["challenger"] for row in found["differences"]["data"]}
    assert data["accounts, sha256"].startswith(f"{len(found['classes'])}, ")


def test_the_version_says_what_was_found(reviewed, tmp_path):
    project, _ = reviewed
    second = version(project.client(), 2)
    assert second.tags["review/gates"] == "failed"  # min_f1 of 0.999
    html = report_of(project, 2, tmp_path) / "report.html"
    assert second.tags["review/sha256"] == hashlib.sha256(html.read_bytes()).hexdigest()
    assert second.description.startswith("# Review")
    assert "| min_f1 | failed |" in second.description
    assert "## Data" in second.description  # the card is still there
    run = project.client().get_run(second.tags["review/run_id"])
    assert run.info.status == "FINISHED"
    assert "review/challenger/accuracy" in run.data.metrics


def test_no_ledger_text_is_in_what_a_review_leaves(reviewed, tmp_path):
    project, finished = reviewed
    folder = report_of(project, 2, tmp_path)
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.md", "review.json"}
    marker = MARKER.lower().encode()
    for file in (*folder.iterdir(), project.folder / "mlflow.db"):
        assert marker not in file.read_bytes().lower(), file.name
    assert MARKER.lower() not in finished.output.lower()


def test_a_decision_needs_its_gates(reviewed):
    project, _ = reviewed
    finished = review(
        project, "--decision", "approve", *REVIEWER, "--registry.gates.min_f1", "0.999"
    )
    assert finished.returncode == 2
    assert "min_f1" in finished.output
    assert project.client().get_model_version_by_alias(NAME, "champion").version in (1, "1")


def test_what_the_state_forbids_is_refused_before_the_review(reviewed):
    finished = review(reviewed[0], "--version", "1", "--decision", "reject", *REVIEWER)
    assert finished.returncode == 2
    assert "version 1 is approved. Allowed from there: " in finished.output
    assert "review: " not in finished.output
    assert "Nothing was changed." in finished.output


TAMPERED = (
    *("adapter_model.safetensors", "config.json", "classifier.json"),
    *("manifest.json", "classifier.py"),
)


@pytest.fixture
def stranger(reviewed, monkeypatch):
    """Load version 2 from the registry as a review does, in this process."""
    project, _ = reviewed
    monkeypatch.chdir(project.folder)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(project.store)
    client = project.client()
    yield lambda folder: load_contender(client, version(client, 2), folder)
    mlflow.set_tracking_uri(before)


@pytest.mark.parametrize("name", TAMPERED)
def test_a_changed_byte_is_found(reviewed, stranger, tmp_path, name):
    with changed(classifier_file(reviewed[0], 2, name)), pytest.raises(Refused) as refused:
        stranger(tmp_path)
    assert "account-tax version 2 can't be reviewed" in str(refused.value)
    assert name in str(refused.value)
    assert stranger(tmp_path / "again").title == "account-tax version 2"


def test_a_base_that_is_another_or_gone_is_refused(reviewed, stranger, tiny_base, tmp_path):
    weights = tiny_base / "model.safetensors"
    with changed(weights):
        finished = review(reviewed[0])
        assert finished.returncode == 2, finished.output
        assert re.search(r"sha256 \w{64}, expected \w{64}", finished.output)
        weights.unlink()
        with pytest.raises(Refused, match=r"no \*\.safetensors weights"):
            stranger(tmp_path)


@contextmanager
def changed(file: Path) -> Iterator[None]:
    """Change a file's last byte, and put back what there was."""
    before = file.read_bytes()
    file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        yield
    finally:
        file.write_bytes(before)


def test_what_there_is_not_is_refused_with_what_there_is(reviewed):
    project, _ = reviewed
    finished = review(project, "--version", "champoin")
    assert finished.returncode == 2
    assert "There are the versions 1, 2" in finished.output
    away = review(project, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    assert away.returncode == 2
    assert "Start the server" in away.output
