"""Runs side by side: on the same rows or not at all, each number with its interval."""

import json
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from account_tax.errors import Refused
from account_tax.review.compare import (
    FOLDER,
    Request,
    answers_of,
    compare,
    compare_runs,
    find_runs,
    show,
)
from account_tax.review.report import render_comparison
from account_tax.review.statistics import score_model
from account_tax.tracking.owned_run import OwnedRun

NAMED: Any = {"registry": {"name": "account-tax"}}
GOOD, BAD = [[50, 0], [2, 48]], [[30, 20], [22, 28]]


@pytest.fixture
def client(tmp_path, monkeypatch):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return MlflowClient(uri)


@pytest.fixture
def trained(client):
    def make(matrix, digest="a", kind="train", recipe="starter", scored=True):
        tags = {"account_tax.kind": kind, "account_tax.recipe": recipe}
        run = client.create_run("0", tags=tags, run_name=f"train {recipe}")
        run_id = run.info.run_id
        split = {"rows": 100, "sha256": digest * 64}
        client.log_dict(
            run_id, {"source": "it", "splits": {"test": split}}, "dataset_metadata.json"
        )
        if matrix:
            answers = {"labels": ["rent", "<b>"], "confusion_matrix": matrix}
            client.log_dict(run_id, answers, "test_answers.json")
        if scored:
            client.log_metric(run_id, "test/f1", 0.5)
        client.set_terminated(run_id)
        return run_id

    return make


def test_answers_are_those_of_the_matrix():
    truth, predicted = answers_of(BAD)
    assert np.array_equal(np.histogram2d(truth, predicted, bins=2)[0], BAD)
    assert float(score_model(truth, predicted, 2).accuracy) == 0.58


def test_the_report_has_each_trained_run_with_its_interval(client, trained, tmp_path, capsys):
    run_ids = [trained(BAD), trained(GOOD, recipe="english"), trained(GOOD, kind="trial")]
    compare(Request(), run := OwnedRun.open(tmp_path))
    said = capsys.readouterr().out
    assert said.index("train english") < said.index("train starter")
    assert "0.9800 (0." in said
    folder = client.download_artifacts(run.run_id, FOLDER)
    findings = json.loads((tmp_path / folder / "compare.json").read_text())
    assert [each["run_id"] for each in findings["runs"]] == run_ids[:2]
    assert findings["best"] == "train english"
    low, high = (findings["runs"][0]["accuracy"][end] for end in ("low", "high"))
    assert 0.45 < low < 0.58 < high < 0.7
    page = (tmp_path / folder / "report.html").read_text()
    assert "train english has the highest macro-F1." in page
    assert "No other&#39;s interval reaches its own." in page
    assert "| train english | 0.98" in (tmp_path / folder / "report.md").read_text()
    assert client.get_run(run.run_id).info.run_name == "compare 2 runs"


def test_runs_that_can_not_be_told_apart_are_named(client, trained):
    _, other = [trained(matrix) for matrix in (GOOD, [[49, 1], [2, 48]])]
    findings = compare_runs(client, find_runs(client, Request()))
    assert all(each["as_good"] for each in findings["runs"])
    show(findings)
    report = render_comparison(findings | {"date": "today"})["report.md"]
    assert f"Too close to tell from it on these rows: train starter ({other[:8]})." in report


def test_a_filter_chooses(client, trained):
    wanted = trained(GOOD, recipe="english")
    trained(GOOD)
    request = Request(filter="tags.`account_tax.recipe` = 'english'")
    assert [run.info.run_id for run, _ in find_runs(client, request)] == [wanted]


def test_more_runs_than_are_compared_are_said(client, trained, monkeypatch, capsys):
    monkeypatch.setattr("account_tax.review.compare.MOST_RUNS", 1)
    for _ in range(2):
        trained(GOOD)
    assert len(find_runs(client, Request())) == 1
    assert "The newest 1 runs of more" in capsys.readouterr().out


def test_a_training_that_left_the_test_split_alone_is_passed_over(client, trained):
    wanted = [trained(GOOD), trained(BAD)]
    trained(None, scored=False)
    request = Request(filter="metrics.`test/f1` < 0.9")
    assert [run.info.run_id for run, _ in find_runs(client, request)] == wanted


def test_a_version_stands_there_once(client, trained):
    client.create_registered_model("account-tax")
    for number in (1, 2):
        client.create_model_version("account-tax", "runs:/it/model", trained(GOOD))
        client.set_registered_model_alias("account-tax", "champion", str(number))
    request = Request(versions=["1", "2", "champion", "1"], **NAMED)
    assert [words for _, words in find_runs(client, request)] == ["version 1", "version 2"]
    with pytest.raises(Refused, match=r"versions = 1,1 \(-P versions\): only version 1\. Expected"):
        find_runs(client, Request(versions=["1", "1"], **NAMED))


def test_runs_of_different_test_splits_are_refused_with_those_not_scored(client, trained):
    for matrix, digest in ((GOOD, "a"), (BAD, "b"), (None, "a")):
        trained(matrix, digest)
    with pytest.raises(Refused) as refused:
        compare_runs(client, find_runs(client, Request()))
    assert "no test_answers.json" in str(refused.value)
    assert "their test splits differ: aaaaaaaaaaaa of " in str(refused.value)


def test_a_version_whose_run_keeps_other_answers_is_refused(client, trained):
    run_id = trained(GOOD)
    client.create_registered_model("account-tax")
    tags = {"provenance_sha256": "0" * 64}
    client.create_model_version("account-tax", f"runs:/{run_id}/model", run_id, tags=tags)
    request = Request(versions=["1"], **NAMED)
    with pytest.raises(Refused, match=r"version 1: provenance\.json: missing instead of sha256 0"):
        find_runs(client, request)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(filter="bad ="), "filter = bad ="),
        (Request(experiment="Defalt"), "Did you mean Default?"),
        (Request(experiment="nothing-like-it"), "There are: Default."),
        (Request(versions=["7", "x"], filter="a", **NAMED), "3 problems with the versions"),
        (
            Request(versions=["1"], experiment="e", **NAMED),
            r"experiment \(-P experiment\): it chooses",
        ),
        (Request(filter="metrics.f1 > 2"), "0 trained runs with a test score found"),
        (Request(versions=["7"], **NAMED), "account-tax"),
    ],
)
def test_what_can_not_be_found_is_refused(client, request_, message):
    with pytest.raises(Refused, match=message.replace("?", r"\?")):
        compare_runs(client, find_runs(client, request_))
