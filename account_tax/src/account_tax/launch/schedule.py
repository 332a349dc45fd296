"""How long a training is and how often it saves, counted from its parameters and its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from account_tax.parameters.batch import batch_faults, count_epochs, share_batch


@dataclass(frozen=True)
class Schedule:
    """A training's length.

    Attributes:
        training: The section of the parameters.
        rows: Of the train split.
        global_batch_size: Rows a step.
    """

    training: Mapping[str, Any]
    rows: int
    global_batch_size: int

    @classmethod
    def read(
        cls, values: Mapping[str, Any], report: Mapping[str, Any], world_size: int
    ) -> Schedule | None:
        """Return the schedule of parameters and checked data; None where either has a fault."""
        block, training = (values["train"].get(name) for name in ("deepspeed", "training"))
        rows = (report.get("rows") or {}).get("train")
        if not (block and training and rows) or batch_faults(block, world_size):
            return None
        micro, steps = share_batch(block, world_size)
        return cls(training, rows, micro * steps * world_size)

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        return self.training.get("max_steps") or math.ceil(self._an_epoch * self.epochs)

    @property
    def epochs(self) -> float:
        """Passes over the split, if no number of steps is given."""
        given = self.training.get("num_train_epochs", 3)
        return count_epochs(given, self.rows, self.global_batch_size)

    def in_words(self) -> str:
        """Return the steps, and the epochs that they come from."""
        epochs = "" if self.training.get("max_steps") else f" in {self.epochs:g} epochs"
        return f"{self.steps}{epochs}"

    @property
    def checkpoints(self) -> int:
        """Checkpoints that the whole training writes, at most."""
        when = self.training.get("save_strategy", "steps")
        every = self.training.get("save_steps", 500)
        if when == "best":  # an evaluation may always find a better one
            when = self.training.get("eval_strategy", "no")
            every = self.training.get("eval_steps", every)
        if when == "no":
            return 0
        if when == "epoch":
            every = self._an_epoch
        return math.ceil(self.steps / (every if every >= 1 else math.ceil(self.steps * every)))

    @property
    def evaluations(self) -> int:
        """Evaluations of the whole training, the last one of the best model left out."""
        when, every = self.training.get("eval_strategy", "no"), self.training.get("eval_steps", 500)
        if when == "no":
            return 0
        every = self._an_epoch if when == "epoch" else every
        return math.ceil(self.steps / (every if every >= 1 else math.ceil(self.steps * every)))

    @property
    def _an_epoch(self) -> int:
        return math.ceil(self.rows / self.global_batch_size)
