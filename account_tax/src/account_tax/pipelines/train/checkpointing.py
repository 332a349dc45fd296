"""Trainer that saves checkpoints whole or not at all, and resumes as if it had never stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, TrainOutput

from account_tax.processes.ranks import is_rank0
from account_tax.storage.checkpoints import (
    MANIFEST_FILE,
    PREFIX,
    STAGING,
    full_disk_said,
    list_checkpoints,
    publish,
    remove,
    require_whole,
    rotate,
    stage,
    step_of,
)
from account_tax.storage.files import read_json, write_json

from .averaging import MeanWeights
from .batches import GlobalBatchSampler


class CheckpointedTrainer(Trainer):
    """Trainer whose checkpoints are published by `storage/checkpoints.py`.

    Resumed, it repeats the uninterrupted run: weights, optimizer, schedule, random numbers, order
    of rows, best model, history and running means. Trainer alone loses the running means, the
    order of rows in the ranks of a later epoch, and takes a step too many after the last one.

    Args:
        average: Whether what is evaluated and saved is the mean of `MeanWeights`.
        facts: What else each checkpoint's manifest holds; see `launch/resume.py`.
        kwargs: Trainer's own.
    """

    def __init__(
        self, *, average: bool = False, facts: dict[str, Any] | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.means = MeanWeights(cast(nn.Module, self.model), average)
        self.facts = facts or {}
        self.row_sampler: GlobalBatchSampler | None = None
        self.earlier_seconds = 0.0
        self.resumed_from: Path | None = None
        self._started = 0.0
        self._staging: Path | None = None

    @property
    def folder(self) -> Path:
        """Where the checkpoints are."""
        return Path(self.args.output_dir or "")

    # --- saving -----------------------------------------------------------------------------------

    def save_model(self, *args: Any, **kwargs: Any) -> None:
        """Save the weights, or while training their mean."""
        with self.means.in_place():
            super().save_model(*args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging or self.folder)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        name = f"{PREFIX}{self.state.global_step}"
        with full_disk_said(self.folder, self.state.global_step):
            if is_rank0():
                stage(self.folder)
            _wait_for_all()
            self._staging = self.folder / STAGING
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = str(self.folder / name)
            staged = self.folder / STAGING / name
            self._save_running_means(staged)
            if is_rank0():
                self.means.save(staged)
            _wait_for_all()
            if is_rank0():
                self._publish(staged)
        _wait_for_all()

    def _save_running_means(self, staged: Path) -> None:
        means = {
            "loss_since_last_log": self._tr_loss.item(),
            "loss_before": self._total_loss_scalar,
            "last_log": self._globalstep_last_logged,
            "seconds": self.earlier_seconds + time.monotonic() - self._started,
        }
        write_json(staged / f"running_means_{self.args.process_index}.json", means)

    def _publish(self, staged: Path) -> None:
        """Rank 0 only: name the best one by its final path, publish, then remove old ones."""
        state, best = self.state, self.state.best_model_checkpoint
        state.save_to_json(str(staged / "trainer_state.json"))
        facts = {
            **self.facts,
            "global_step": state.global_step,
            "world_size": self.args.world_size,
            "best": Path(best).name if best else None,
            "model_only": self.args.save_only_model,
        }
        publish(staged, facts)
        rotate(self.folder, self.args.save_total_limit, facts["best"])

    # --- going on ---------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; from a checkpoint, if one is given and its bytes are those that were saved."""
        if resume_from_checkpoint:
            self.resumed_from = Path(resume_from_checkpoint)
            require_whole(self.resumed_from)
        if is_rank0():
            self._clear_what_comes_after()
        if self.resumed_from:
            self.means.load(self.resumed_from)
            self.args.eval_on_start = False  # that was before the first step
        self.add_callback(_SaveFlow(self))  # the last: it corrects what the others ask for
        output = super().train(resume_from_checkpoint, *args, **kwargs)
        self.means.settle()
        return output

    def _clear_what_comes_after(self) -> None:
        """Rank 0 only: remove later checkpoints, such as those of an earlier training by hand."""
        begin = step_of(self.resumed_from) if self.resumed_from else -1
        for checkpoint in list_checkpoints(self.folder):
            if step_of(checkpoint) > begin:
                remove(checkpoint)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        position = super()._init_training_state(*args, **kwargs)
        if self.resumed_from:
            # By its name: the folder may have moved since.
            manifest = read_json(self.resumed_from / MANIFEST_FILE)
            best = manifest.get("best")
            self.state.best_model_checkpoint = str(self.folder / best) if best else None
        return position

    def restore_running_means(self) -> None:
        """Take up the running means of the checkpoint; Trainer starts them at nought."""
        self._started = time.monotonic()
        if self.resumed_from is None:
            return
        name = f"running_means_{self.args.process_index}.json"
        means = read_json(self.resumed_from / name)
        self._tr_loss.fill_(means["loss_since_last_log"])
        self._total_loss_scalar = means["loss_before"]
        self._globalstep_last_logged = means["last_log"]
        self._initial_global_step = 0
        self.earlier_seconds = means["seconds"]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            return  # Trainer would take one more step before it looks
        if self.row_sampler is not None:
            # accelerate (1.15) does not pass the epoch on through the batches it skips and deals.
            self.row_sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> Any:
        return super()._finalize_training(
            trial, num_train_samples, start_time - self.earlier_seconds
        )

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None
        best = Path(self.state.best_model_checkpoint)
        require_whole(best)
        super()._load_best_model()
        self.means.load(best)


class _SaveFlow(TrainerCallback):
    """Saves the state after a step just once, and only when all that belongs to it is done."""

    def __init__(self, trainer: CheckpointedTrainer):
        self._trainer = trainer
        self._postponed = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._trainer.restore_running_means()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let a save wait for the evaluation and the log that the epoch's end brings."""
        at_epoch_end = IntervalStrategy.EPOCH in (args.eval_strategy, args.logging_strategy)
        if control.should_save and at_epoch_end and _ends_epoch(state):
            control.should_save, self._postponed = False, True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up a save that waited."""
        if self._postponed:
            control.should_save, self._postponed = True, False


def _ends_epoch(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer() or state.global_step >= state.max_steps


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
