"""`kedro tune` with real trials: killed and resumed, pruned and failed, two workers."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import yaml

from account_tax.parameters.config import resolve
from account_tax.storage.names import STUDY_VARIABLE
from account_tax.tracking.owned_run import KIND_TAG
from account_tax.tuning.space import plain
from account_tax.tuning.study import STATE_TAG, TRIAL_TAG
from tests.integration.conftest import kedro_words
from tests.integration.launched import Launched, override
from tests.test_docs import blocks

REASON = "account_tax.reason"
SPACE = """
train.training.learning_rate: {type: float, low: 1.0e-4, high: 5.0e-2, log: true}
train.lora.target_modules: {type: categorical, choices: [[query, value], %s]}
"""
EVALUATED = [
    *("train.training.eval_strategy=steps", "train.training.eval_steps=2"),
    *("train.training.save_strategy=steps", "train.training.save_steps=2", "num_gpus=1"),
    "train.lora.target_modules=query,value",
]


def tune_words(project, tiny, *options, other="[query, key]"):
    (project.folder / "space.yml").write_text(SPACE % other)
    return ["kedro", "tune", *kedro_words([*kept(tiny), *EVALUATED, "space=space.yml", *options])]


def kept(tiny):
    """Return what makes a run small, less what a study sets by itself."""
    searched = ("num_gpus", "max_steps", "train.lora.target_modules")
    return [option for option in tiny if not option.startswith(searched)]


def trials_of(project):
    runs = [run for run in project.runs() if TRIAL_TAG in run.data.tags]
    return {json.loads(run.data.tags[TRIAL_TAG])["number"]: run for run in runs}, len(runs)


def scored_on_test(project):
    return [
        run.info.run_id
        for run in project.runs()
        if any(name.startswith("test/") for name in run.data.metrics)
    ]


def given_the_test_split(project):
    runs = [project.client().get_run(run.info.run_id) for run in project.runs()]
    return [
        run.info.run_id
        for run in runs
        if any(given.tags[0].value == "test" for given in run.inputs.dataset_inputs)
    ]


@pytest.mark.integration
def test_a_killed_study_goes_on_and_no_trial_is_lost_or_run_twice(project, tiny, tmp_path):
    words = tune_words(project, tiny, "trials=3", "max_steps=8")
    project.client().search_experiments()  # makes the store, which two can't at once
    for _ in range(2):
        left = kill_in_second_trial(project, Launched(project, tmp_path / "out", *words))
    before = {n: run for n, run in left.items() if STATE_TAG in run.data.tags}
    finished = project.run(*words)
    assert finished.returncode == 0, finished.output
    assert "of its trials have ended" in finished.output
    trials, count = trials_of(project)
    assert (sorted(trials), count) == ([0, 1, 2], 3)
    assert {run.info.status for run in trials.values()} == {"FINISHED"}
    for number, run in before.items():  # what had ended was left alone, but for the best
        again = trials[number]
        assert again.data.metrics.items() >= run.data.metrics.items()
    for number, run in left.items():
        assert trials[number].info.run_id == run.info.run_id
    (parent,) = [run for run in project.runs() if run.data.tags.get(KIND_TAG) == "tune"]
    best = parent.data.tags["account_tax.best_run"]
    assert (parent.info.status, scored_on_test(project)) == ("FINISHED", [best])
    assert given_the_test_split(project) == [best]
    assert len(project.client().search_model_versions()) == 1
    assert_best_recipe(project, parent.info.run_id, trials, best)
    adapters = project.folder.glob("data/06_models/*/adapter")
    assert [path.parent.name for path in adapters] == [best]
    assert "has its 3 trials" in project.run(*words).output
    project.client().set_tag(parent.info.run_id, "account_tax.study", "mine")
    other = project.run(*words, "--study=mine", "--tuning.seed=1")
    assert (other.returncode, "its space or search differs" in other.output) == (2, True), (
        other.output
    )
    assert_another_lock_is_no_worker(project, parent.info.run_id, words)


def assert_another_lock_is_no_worker(project, study, words):
    lock = project.folder / "conda.yaml"
    kept, count = lock.read_text(), trials_of(project)[1]
    lock.write_text(kept.replace("click==", "click==1"))
    refused = project.run(*words, env={STUDY_VARIABLE: study})
    lock.write_text(kept)
    assert (refused.returncode, trials_of(project)[1]) == (2, count), refused.output
    assert f"its environment differs from the study's (run {study})" in refused.output


def kill_in_second_trial(project, running):
    """Kill the tuner while ranks train the second trial; return the trials' runs there are."""
    running.wait_for(lambda: len(trials_of(project)[0]) > 1 and running.ranks())
    running.process.kill()
    running.end(30)
    return trials_of(project)[0]


def assert_best_recipe(project, parent, trials, best):
    artifacts = project.client().download_artifacts(parent, "")
    files = {path.path for path in project.client().list_artifacts(parent)}
    assert files >= {"trials.csv", "tuning.md", "learning_curves.svg", "best_recipe.yml"}
    shutil.copy(f"{artifacts}/best_recipe.yml", project.folder / "recipes" / "best.yml")
    (run,) = [run for run in trials.values() if run.info.run_id == best]
    resolved = resolve(project.folder, [("recipe", "best"), ("registry.allow_unlocked", "true")])
    there = yaml.safe_load((project.folder / "recipes" / "best.yml").read_text())
    assert there["train"]["training"]["max_steps"] == 8
    for key, value in json.loads(run.data.tags[TRIAL_TAG])["values"].items():
        now = resolved.flat()[key]
        assert plain(now) == value
    pinned = {"artifacts_root", "train.training.output_dir", "train.model.sha256"}
    for key, value in resolved.flat().items():
        if key not in pinned and not key.startswith("registry."):
            assert run.data.params[key] == str(value), key


@pytest.mark.integration
def test_two_workers_prune_and_fail_and_share_a_study(project, tiny):
    words = tune_words(
        *(project, tiny, "trials=12", "max_steps=6", "workers=2", "register=false"),
        *("tuning.sampler=random", "metric=eval/loss"),
        other="[query], [value], [no_such_layer]",
    )
    finished = project.run(*words, timeout=400)
    assert finished.returncode == 0, finished.output
    trials, count = trials_of(project)
    assert (sorted(trials), count) == (list(range(12)), 12)
    states = {number: run.data.tags[STATE_TAG] for number, run in trials.items()}
    assert {"complete", "failed", "pruned"} == set(states.values()), states
    for number, state in states.items():
        run, status = trials[number], trials[number].info.status
        assert status == {"complete": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}[state]
        said = {"complete": "", "failed": "no_such_layer", "pruned": "pruned at step "}[state]
        assert said in run.data.tags.get(REASON, "")
    assert scored_on_test(project) == []
    assert list(project.folder.glob("data/06_models/checkpoints/*/*/checkpoint-*")) == []


@pytest.mark.integration
def test_the_pages_study_on_spark_runs(project, tiny):
    sql = pytest.importorskip(
        "pyspark.sql", reason="pyspark is no dependency of the project; install it beside a JDK"
    )
    (code,) = blocks((project.folder / "docs/tuning.md").read_text(), "python")
    words = kedro_words(override(tiny, ["num_gpus=1"]))
    assert '"--register=false"]' in code
    code = code.replace('"--register=false"]', f'"--register=false", *{words!r}]')
    session = (
        "from pyspark.sql import SparkSession\n"
        "builder = SparkSession.builder.master('local[2]').config('spark.ui.enabled', 'false')\n"
        "builder.config('spark.driver.host', '127.0.0.1').getOrCreate()\n"
    )
    env = {
        **{"MLFLOW_TRACKING_URI": project.store, "SPARK_LOCAL_IP": "127.0.0.1"},
        **dict.fromkeys(("PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON"), sys.executable),
        "PYTHONPATH": str(Path(sql.__file__).parents[2]),
    }
    done = project.run(sys.executable, "-c", session + code, env=env, timeout=400)
    assert done.returncode == 0, done.output
    trained = [run for run in project.runs() if run.data.tags.get(KIND_TAG) == "train"]
    rates = {run.data.params["train.training.learning_rate"] for run in trained}
    assert (len(trained), len(rates)) == (4, 4)
    assert {run.info.status for run in trained} == {"FINISHED"}
    assert scored_on_test(project) == []


@pytest.mark.slow
def test_three_first_trials_that_fail_alike_end_the_study(project, tiny):
    words = tune_words(project, tiny, "trials=9", "max_steps=4", "learning_rate=1e30")
    space = SPACE.splitlines()[1].replace("1.0e-4", "1.0e29").replace("5.0e-2", "1.0e31")
    (project.folder / "space.yml").write_text(space)
    finished = project.run(*words, timeout=400)
    assert finished.returncode == 1, finished.output
    assert "the first 3 trials failed for one reason: training failed: " in finished.output
    trials, count = trials_of(project)
    assert ([run.info.status for run in trials.values()], count) == (["FAILED"] * 3, 3)
    (parent,) = [run for run in project.runs() if run.data.tags.get(KIND_TAG) == "tune"]
    assert parent.info.status == "FAILED"


@pytest.mark.slow
def test_after_a_sigterm_a_study_goes_on_and_prunes(project, tiny, tmp_path):
    words = tune_words(project, tiny, "trials=8", "max_steps=16")
    project.client().search_experiments()  # makes the store, which two can't at once
    running = Launched(project, tmp_path / "out", *words)
    running.wait_for(lambda: len(trials_of(project)[0]) > 1 and running.ranks())
    running.process.send_signal(signal.SIGTERM)
    assert running.end(60) == 143
    (parent,) = [run for run in project.runs() if run.data.tags.get(KIND_TAG) == "tune"]
    assert parent.info.status == "KILLED"
    assert parent.data.tags[REASON].startswith("ended by SIGTERM")  # and what was saved of a rank
    assert project.run(*words, timeout=400).returncode == 0
    trials, count = trials_of(project)
    assert (sorted(trials), count) == (list(range(8)), 8)
    states = {run.data.tags[STATE_TAG] for run in trials.values()}
    assert states == {"complete", "pruned"}
