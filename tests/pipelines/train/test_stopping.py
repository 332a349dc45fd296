"""When ranks save and stop, and that nothing is saved after a NaN."""

from __future__ import annotations

import json
import signal
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from account_tax.pipelines.train.stopping import NotFiniteCallback, NotFiniteError, StopCallback
from account_tax.processes import guard
from account_tax.processes.guard import Stopped

ARGS = SimpleNamespace(world_size=1, output_dir="nowhere", device="cpu")


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(guard, "_told", signal.SIGTERM)


def state(step, epoch):
    return TrainerState(global_step=step, max_steps=100, epoch=epoch)


def step_end(callback, step, epoch):
    control = TrainerControl()
    callback.on_step_end(ARGS, state(step, epoch), control)
    return control.should_save


def test_nothing_is_saved_unless_told(tmp_path):
    callback = StopCallback(tmp_path)
    assert not step_end(callback, 3, 0.3)
    callback.on_save(ARGS, state(3, 0.3), TrainerControl())
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("told")
def test_told_to_end_it_saves_says_so_and_stops(tmp_path):
    callback = StopCallback(tmp_path)
    assert step_end(callback, 3, 0.3)
    with pytest.raises(Stopped, match="SIGTERM: saved at step 3"):
        callback.on_save(ARGS, state(3, 0.3), TrainerControl())
    said = json.loads((tmp_path / "interrupted.json").read_text())
    assert said == {"step": 3, "signal": "SIGTERM"}


@pytest.mark.usefixtures("told")
def test_at_an_epochs_last_step_it_waits_for_the_epochs_evaluation(tmp_path):
    # A checkpoint before it would make a resumed run begin the next epoch, without the evaluation.
    callback = StopCallback(tmp_path)
    assert not step_end(callback, 10, 1.0)
    control = TrainerControl()
    callback.on_epoch_end(ARGS, state(10, 1.0), control)
    assert control.should_save


@pytest.mark.usefixtures("told")
def test_after_the_last_step_training_ends_anyway(tmp_path):
    callback = StopCallback(tmp_path)
    assert not step_end(callback, 100, 3.5)
    callback.on_save(ARGS, state(100, 3.5), TrainerControl())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_what_is_no_number_stops_training_and_names_step_and_checkpoint(tmp_path, value):
    (tmp_path / "checkpoint-5").mkdir()
    args = SimpleNamespace(output_dir=str(tmp_path))
    with pytest.raises(NotFiniteError, match=r"the gradient norm of step 7 is .*checkpoint-5"):
        NotFiniteCallback(tmp_path).check("gradient norm", value, 7, args)
    assert json.loads((tmp_path / "fault.json").read_text())["step"] == 7


def test_without_a_checkpoint_it_says_so(tmp_path):
    with pytest.raises(NotFiniteError, match="no checkpoint yet"):
        NotFiniteCallback(tmp_path).on_log(ARGS, state(1, 0.1), None, {"loss": float("nan")})


def test_numbers_pass(tmp_path):
    callback = NotFiniteCallback(tmp_path)
    callback.check("gradient norm", 0.0, 7, ARGS)
    callback.on_log(ARGS, state(7, 0.7), None, {"eval_loss": float("nan"), "loss": 3.0})
    assert not list(tmp_path.iterdir())
