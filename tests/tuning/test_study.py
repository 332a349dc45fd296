"""A study read from its runs: what is next, what is pruned, what is best."""

import json
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Metric

from account_tax.processes.identity import identify
from account_tax.tracking.metric_journal import MetricJournal
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.ownership import OWNER_TAG, REASON_TAG
from account_tax.tuning.report import best_recipe, write_report
from account_tax.tuning.space import Range, Space
from account_tax.tuning.study import ENDS, STATE_TAG, TRIAL_TAG, Study
from account_tax.tuning.trial import Judge, Pruned
from tests.test_mlproject import REPOSITORY

KEY, METRIC = "train.training.learning_rate", "eval/f1"
GONE = identify().replace("started=", "started=9")
SEARCH = {
    **{"trials": 8, "seed": 1, "sampler": "tpe", "pruner": "median"},
    **{"metric": METRIC, "direction": "maximize"},
}


@pytest.fixture
def study(tmp_path):
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("tune", artifact_location=str(tmp_path / "artifacts"))
    parent = client.create_run(experiment).info.run_id
    space = Space((Range(KEY, "float", 1e-4, 1e-2, log=True),), {KEY: 2e-3})
    return Study(client, parent, experiment, space, SEARCH)


def log(study, trial, *values):
    points = [Metric(METRIC, value, step, step) for step, value in enumerate(values, 1)]
    study.client.log_batch(trial.run_id, metrics=points)


def end(study, trial, state, *values):
    log(study, trial, *values)
    study.client.set_tag(trial.run_id, STATE_TAG, state)
    study.client.set_terminated(trial.run_id, ENDS[state])


def take(study):
    trial = study.take()
    assert trial is not None
    return trial


def test_the_first_trial_is_the_recipes(study):
    assert take(study).values == {KEY: 2e-3}


def test_what_runs_is_not_taken_twice(study):
    assert [take(study).number for _ in range(3)] == [0, 1, 2]
    assert {trial.state for trial in study.trials()} == {"running"}


def test_there_are_no_more_than_asked_for(study):
    for _ in range(8):
        end(study, take(study), "complete", 0.5)
    assert study.take() is None


def test_what_a_dead_process_left_is_taken_again_in_its_own_run(study):
    end(study, take(study), "complete", 0.5)
    lost = take(study)
    study.client.set_tag(lost.run_id, OWNER_TAG, GONE)
    again = take(study)
    assert (again.run_id, again.number, again.values) == (lost.run_id, 1, lost.values)
    assert again.state == "lost"


def test_what_a_worker_of_another_node_left_is_taken_when_the_study_begins_anew(study):
    mine, elsewhere = take(study), take(study)
    owner = identify().replace("host=", "host=another-")
    study.client.set_tag(elsewhere.run_id, OWNER_TAG, owner)
    assert [trial.state for trial in study.trials()] == ["running", "running"]
    study.release()
    assert [trial.state for trial in study.trials()] == ["running", "lost"]
    assert take(study).run_id == elsewhere.run_id != mine.run_id


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_was_closed_without_an_end_is_lost(study, status):
    trial = take(study)
    study.client.set_terminated(trial.run_id, status)
    assert take(study).run_id == trial.run_id


def test_an_end_written_before_a_kill_stands(study):
    trial = take(study)
    log(study, trial, 0.7)
    study.client.set_tag(trial.run_id, STATE_TAG, "complete")
    study.client.set_tag(trial.run_id, OWNER_TAG, GONE)
    study.client.set_tag(trial.run_id, REASON_TAG, "the process that owned this run is gone")
    study.client.set_terminated(trial.run_id, "FAILED")  # as close_dead_runs does
    (read,) = study.trials()
    assert (read.state, read.value, read.reason) == ("complete", 0.7, "")
    assert study.client.get_run(trial.run_id).info.status == "FINISHED"
    assert take(study).number == 1


def test_a_study_read_anew_proposes_the_same(study):
    for value in (0.5, 0.6, 0.4):
        end(study, take(study), "complete", value)
    anew = Study(study.client, study.run_id, study.experiment_id, study.space, SEARCH)
    assert study.propose(study.trials(), 3) == anew.propose(anew.trials(), 3)
    assert study.propose(study.trials(), 3) != study.propose(study.trials(), 4)


def test_what_is_behind_the_median_is_pruned_with_the_reason(study):
    for value in (0.5, 0.6, 0.7, 0.8, 0.9):
        end(study, take(study), "complete", value)
    for _ in range(2):
        end(study, take(study), "pruned", 0.1)  # the median is of those that are complete
    trial = take(study)
    assert study.why_prune(trial.run_id, [(40, 0.71)]) is None
    said = study.why_prune(trial.run_id, [(40, 0.69)])
    assert said == "pruned at step 40: eval/f1 0.6900, median 0.7000"
    study.search = {**SEARCH, "pruner": "none"}
    assert study.why_prune(trial.run_id, [(40, 0.1)]) is None


@pytest.mark.parametrize(("direction", "best"), [("maximize", 1), ("minimize", 2)])
def test_the_best_is_the_first_of_equals(study, direction, best):
    study.search = {**SEARCH, "direction": direction}
    for state, value in [("failed", 0.9), ("complete", 0.8), ("complete", 0.2), ("complete", 0.2)]:
        end(study, take(study), state, value)
    end(study, take(study), "complete", 0.8)
    found = study.best(study.trials())
    assert found
    assert found.number == best


def test_number_and_values_are_there_from_the_first_moment(study):
    tags = study.client.get_run(take(study).run_id).data.tags
    assert json.loads(tags[TRIAL_TAG]) == {"number": 0, "values": {KEY: 2e-3}}
    assert tags["mlflow.parentRunId"] == study.run_id


@pytest.mark.parametrize("by_mlflow", [False, True])
def test_the_best_recipe_has_the_best_values_whoever_hands_over_the_words(
    study, monkeypatch, by_mlflow
):
    if by_mlflow:  # whose words are shown as -P, not as --
        monkeypatch.setenv("MLFLOW_RUN_ID", study.run_id)
    take(study)
    end(study, take(study), "complete", 0.5)
    best = study.best(study.trials())
    pattern = "train.lora.rank_pattern", "{layer.0.attention.self.query: 4}"
    pairs = [("recipe", "english"), ("train.lora.alpha", "24"), pattern, ("num_gpus", "1")]
    train = yaml.safe_load(best_recipe(Path(__file__).parents[2], pairs, study, best))["train"]
    assert train["training"]["learning_rate"] == best.values[KEY]
    assert train["lora"]["alpha"] == 24
    assert train["lora"]["rank_pattern"] == {"layer.0.attention.self.query": 4}


def test_a_trial_is_ended_at_any_evaluation_but_the_last(study, tmp_path):
    for _ in range(5):
        end(study, take(study), "complete", 0.7, 0.8)
    journal = MetricJournal(tmp_path / "metrics.jsonl")
    journal.add({METRIC: 0.1}, 1)
    run_id = take(study).run_id
    Judge(study, run_id, evaluations=1)(tmp_path / "metrics.jsonl")
    with pytest.raises(Pruned, match="at step 1"):
        Judge(study, run_id, evaluations=2)(tmp_path / "metrics.jsonl")


def test_a_report_is_written_of_choices_that_are_mappings(study):
    pattern = Range("train.lora.rank_pattern", "categorical", choices=({}, {"query": 4}))
    study.space = Space((*study.space.ranges, pattern), {**study.space.base, pattern.key: {}})
    for value in (0.5, 0.7, 0.6):
        end(study, take(study), "complete", value)
    run = OwnedRun.reopen(study.client, study.run_id, study.client.tracking_uri)
    write_report(REPOSITORY, [], study, run)
    page = Path(study.client.download_artifacts(study.run_id, "tuning.md")).read_text()
    assert "| train.lora.rank_pattern |" in page


def test_a_person_reads_four_digits_and_the_files_keep_every_one(study):
    value = 0.0018346271233459871
    study.space = Space(study.space.ranges, {KEY: value})
    end(study, take(study), "complete", 0.71234567)
    run = OwnedRun.reopen(study.client, study.run_id, study.client.tracking_uri)
    write_report(REPOSITORY, [], study, run)
    page, table = [
        Path(study.client.download_artifacts(study.run_id, name)).read_text()
        for name in ("tuning.md", "trials.csv")
    ]
    assert "| 0 | complete | 0.7123 | 0.001835 |" in page
    assert f",0.71234567,{value}," in table
