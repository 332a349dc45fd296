"""When a step is saved, and what is never loaded; the rest needs ranks: tests/integration."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy

from account_tax.pipelines.train.checkpointing import CheckpointedTrainer, _SaveFlow
from account_tax.storage.checkpoints import DamagedCheckpoint

EPOCH, STEPS = IntervalStrategy.EPOCH, IntervalStrategy.STEPS


def saved_when(epoch: float, evaluate: IntervalStrategy, step: int = 10) -> list[str]:
    """Return after what a step that is to be saved is saved."""
    flow, control = _SaveFlow(SimpleNamespace()), TrainerControl(should_save=True)  # type: ignore[arg-type]
    state = TrainerState(epoch=epoch, global_step=step, max_steps=100)
    args: Any = SimpleNamespace(eval_strategy=evaluate, logging_strategy=STEPS)
    saved = []
    for after, event in (("step", flow.on_step_end), ("epoch", flow.on_epoch_end)):
        event(args, state, control)
        saved += [after] * control.should_save
        control.should_save = False
    return saved


def test_a_step_inside_an_epoch_is_saved_at_once():
    assert saved_when(1.5, EPOCH) == ["step"]


def test_a_step_that_ends_an_epoch_is_saved_once_after_the_epochs_evaluation():
    assert saved_when(2.0, EPOCH) == ["epoch"]
    assert saved_when(2.0, STEPS) == ["step"], "nothing more comes"


def test_the_last_step_ends_its_epoch_wherever_it_is():
    assert saved_when(1.5, EPOCH, step=100) == ["epoch"]


def test_a_damaged_checkpoint_is_refused_before_anything_is_loaded(tmp_path):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    (checkpoint / "rng_state.pth").write_bytes(b"a pickle of somebody else")
    trainer = object.__new__(CheckpointedTrainer)
    with pytest.raises(DamagedCheckpoint, match=r"checkpoint\.json is missing"):
        trainer.train(str(checkpoint))
    trainer.state = TrainerState(best_model_checkpoint=str(checkpoint))
    with pytest.raises(DamagedCheckpoint):
        trainer._load_best_model()
