"""The sign of life that rank 0 gives."""

from __future__ import annotations

import json
import math

import pytest
from transformers import TrainerControl, TrainerState

from account_tax.pipelines.train.callbacks import ProgressCallback, SpeedCallback

SAVE = TrainerControl(should_save=True)


@pytest.fixture
def rank0(tmp_path, monkeypatch):
    """Return what calls a callback's method and returns what the launcher then reads."""
    file = tmp_path / "progress.json"
    monkeypatch.setenv("ACCOUNT_TAX_PROGRESS_FILE", str(file))
    callback = ProgressCallback(SpeedCallback())

    def call(event, step, control=None):
        state = TrainerState(global_step=step, max_steps=9)
        getattr(callback, event)(None, state, control or TrainerControl())
        return json.loads(file.read_text())

    return call


def test_it_says_where_silence_is_no_wonder(rank0):
    assert rank0("on_train_begin", 0)["doing"] == "training"
    assert rank0("on_step_end", 1)["doing"] == "training"
    assert rank0("on_step_end", 2, SAVE)["doing"] == "saving"
    assert rank0("on_save", 2)["doing"] == "training"
    assert rank0("on_prediction_step", 3)["doing"] == "evaluating"
    assert rank0("on_evaluate", 3)["doing"] == "saving"
    assert rank0("on_step_end", 9)["doing"] == "saving"
    assert rank0("on_save", 9)["doing"] == "saving"


def test_the_last_evaluation_is_not_taken_for_one_that_goes_on(rank0):
    # What follows it, the metrics' last upload for one, may be silent for long.
    rank0("on_train_begin", 0)
    assert rank0("on_train_end", 9)["doing"] == "finishing"
    assert rank0("on_prediction_step", 9)["doing"] == "finishing"


def test_the_time_left_is_reckoned_from_the_step_it_went_on_from(rank0, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    assert math.isnan(rank0("on_train_begin", 4)["eta_seconds"])
    now[0] += 2.0
    assert rank0("on_step_end", 5)["eta_seconds"] == 8.0


def test_the_file_changes_with_every_second_of_work(rank0, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    seen = []
    for _ in range(3):
        now[0] += 1.0
        seen.append(rank0("on_substep_end", 4)["beats"])  # one step of very many micro-batches
    assert seen[0] < seen[1] < seen[2]
