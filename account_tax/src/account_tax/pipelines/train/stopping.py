"""When training stops early: told to, with a checkpoint; or at a loss that is no number."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from account_tax.processes.guard import Stopped, saves_before_it_ends, told_to_end
from account_tax.processes.ranks import is_rank0
from account_tax.storage.files import write_json
from account_tax.storage.names import FAULT_FILE, INTERRUPTED_FILE
from account_tax.tracking.metric_sender import close_metrics


class NotFiniteError(ArithmeticError):
    """The loss or its gradients are no numbers any more."""


class StopCallback(TrainerCallback):
    """Makes all ranks save at the same step and stop, once one of them was told to end.

    It has to come after any other callback that acts on a save.
    """

    def __init__(self, artifacts_root: Path) -> None:
        self._file = artifacts_root / INTERRUPTED_FILE
        self._signum = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take SIGTERM as a notice from now on."""
        saves_before_it_ends(True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End at SIGTERM: what is left to do begins anew from the last checkpoint."""
        saves_before_it_ends(False)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint if a rank was told to end.

        Not at the last step, after which training ends anyway, and not at the last of an epoch:
        the epoch's end comes first, with its evaluation, which a resumed run would not repeat.
        """
        if state.global_step >= state.max_steps:
            return
        self._signum = self._signum or _highest_of_ranks(told_to_end() or 0, args)
        control.should_save |= bool(self._signum) and not (state.epoch or 0.0).is_integer()

    def on_epoch_end(
        self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint after the epoch's evaluation."""
        control.should_save |= bool(self._signum)

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Leave the training once every rank has saved; rank 0 says so in a file.

        Raises:
            Stopped: If a rank was told to end.
        """
        if not self._signum:
            return
        if dist.is_initialized():
            dist.barrier()
        name = signal.Signals(self._signum).name
        if is_rank0():
            write_json(self._file, {"step": state.global_step, "signal": name})
        close_metrics()
        raise Stopped(f"{name}: saved at step {state.global_step}, and stopped")


def _highest_of_ranks(number: int, args: TrainingArguments) -> int:
    """Return the highest of the ranks' numbers; one rank needs no exchange."""
    if args.world_size == 1:
        return number
    # Trainer (5.23) has waited for this step's gradient norm just now, so this waits for little.
    highest = torch.tensor(number, device=args.device)
    dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return int(highest.item())


class NotFiniteCallback(TrainerCallback):
    """Stops a training whose loss or gradient norm is no number, before anything is saved."""

    def __init__(self, artifacts_root: Path) -> None:
        self._file = artifacts_root / FAULT_FILE

    def check(self, what: str, value: float, step: int, args: TrainingArguments) -> None:
        """Rank 0 writes the reason; every rank raises, as all see the same number.

        Raises:
            NotFiniteError: With the step and the last good checkpoint. DeepSpeed gives -1 for the
                norm of gradients that are not finite.
        """
        if math.isfinite(value) and value >= 0:
            return
        folder = args.output_dir or ""
        last = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        kept = f"The last good checkpoint is {last}." if last else "There is no checkpoint yet."
        reason = (
            f"the {what} of step {step} is {value}, no finite number. {kept} Nothing was saved "
            "after it. Lower train.training.learning_rate, set "
            "train.deepspeed.gradient_clipping, or use precision=fp32"
        )
        if is_rank0():
            write_json(self._file, {"step": step, "reason": reason})
        raise NotFiniteError(reason)

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        """Check the loss of all ranks where Trainer fetches it anyway."""
        self.check("loss", (logs or {}).get("loss", 0.0), state.global_step, args)
