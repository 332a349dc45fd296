"""What a run tells while it trains: metrics to MLflow, progress to the launcher."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from account_tax.processes.ranks import is_rank0
from account_tax.storage.files import write_whole
from account_tax.storage.names import PROGRESS_VARIABLE
from account_tax.tracking.metric_sender import log_metrics

MEBIBYTE = 2**20
FINISHING = "finishing"
EVALUATED = ("loss", "accuracy", "f1", "precision", "recall")


class MLflowMetricsCallback(TrainerCallback):
    """Logs losses and evaluation metrics under the specification's names.

    transformers' own callback starts and ends runs and logs bare names (`loss`, `eval_loss`); the
    run is the launcher's here.
    """

    def __init__(self) -> None:
        self._trained = False

    NAMES: ClassVar[dict[str, str]] = {
        "loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "grad_norm": "train/grad_norm",
        "train_runtime": "train/runtime_seconds",
        **{f"eval_{name}": f"eval/{name}" for name in EVALUATED},
    }

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        """Log one entry of Trainer's history."""
        found = (logs or {}).items()
        metrics = {self.NAMES[key]: value for key, value in found if key in self.NAMES}
        if metrics:
            position = {"train/epoch": state.epoch or 0.0, "train/global_step": state.global_step}
            log_metrics(metrics | position, state.global_step, final=self._trained)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Know that what is evaluated from here on is the best model."""
        self._trained = True


class LastStepCallback(TrainerCallback):
    """Makes Trainer log the last step too: it does so at multiples of `logging_steps` alone."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a log; Trainer logs a step once, whoever asks."""
        if args.logging_strategy == IntervalStrategy.STEPS:
            control.should_log |= state.global_step >= state.max_steps


class SpeedCallback(TrainerCallback):
    """Logs `speed/tokens_per_sec`: useful tokens (no padding) of all ranks, while training.

    The trainer reports each micro-batch with `count`; time spent evaluating or saving is left out.
    """

    def __init__(self) -> None:
        self.tokens_per_sec = 0.0
        self.total_tokens, self.total_seconds = 0, 0.0
        self._tokens: torch.Tensor | int = 0  # of this rank since the last log
        self._seconds = 0.0
        self._since: float | None = None

    def count(self, attention_mask: torch.Tensor) -> None:
        """Add a micro-batch, (B, T). The sum stays on the device, so nothing waits for it."""
        if self._since is None:
            self._since = time.perf_counter()
        self._tokens = self._tokens + attention_mask.sum()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the time since the last step ended."""
        now = time.perf_counter()
        self._seconds += now - (self._since or now)
        self._since = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget the time since the last step ended: it was not training."""
        self._since = None

    on_save = on_evaluate

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        """Log the speed since the last log; every rank takes part in the sum."""
        if self._seconds == 0 or "loss" not in (logs or {}):
            return
        tokens = torch.as_tensor(self._tokens, dtype=torch.float64, device=args.device)
        if dist.is_initialized():
            dist.all_reduce(tokens)
        self.total_tokens += int(tokens.item())
        self.total_seconds += self._seconds
        self.tokens_per_sec = tokens.item() / self._seconds
        self._tokens, self._seconds = 0, 0.0
        log_metrics({"speed/tokens_per_sec": self.tokens_per_sec}, state.global_step)


class TorchMemoryCallback(TrainerCallback):
    """Logs `gpu/alloc_mb` and `gpu/max_alloc_mb`, MiB; the process's `cpu/rss_mb` without GPU."""

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Log at the steps that log."""
        if is_rank0():
            log_metrics(memory_mb(), state.global_step)

    on_evaluate = on_log  # where an evaluation ends: it often needs the most


def memory_mb() -> dict[str, float]:
    """Return this process's memory under the specification's metric names, MiB."""
    if torch.cuda.is_available():
        return {
            "gpu/alloc_mb": torch.cuda.memory_allocated() / MEBIBYTE,
            "gpu/max_alloc_mb": torch.cuda.max_memory_allocated() / MEBIBYTE,
        }
    return {"cpu/rss_mb": psutil.Process().memory_info().rss / MEBIBYTE}


class EngineTimeCallback(TrainerCallback):
    """Logs `time/forward_ms`, `time/backward_ms` and `time/step_ms`, means over the logged steps.

    The numbers are DeepSpeed's own, kept where `wall_clock_breakdown` is true; forward and backward
    are sums over the micro-batches of a step.
    """

    TIMERS: ClassVar[dict[str, str]] = {
        "time/forward_ms": "fwd_microstep",
        "time/backward_ms": "bwd_microstep",
        "time/step_ms": "step_microstep",
    }

    def __init__(self, engine: Callable[[], Any]) -> None:
        self._engine = engine  # asked for late: DeepSpeed makes it when training begins
        self._sums = dict.fromkeys(self.TIMERS, 0.0)
        self._steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the step's times; DeepSpeed keeps them for one step."""
        times = self._engine().get_wall_clock_timers()
        if times:
            self._steps += 1
            for metric, timer in self.TIMERS.items():
                self._sums[metric] += times.get(timer, 0.0)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Log the means since the last log."""
        if self._steps:
            means = {metric: total / self._steps for metric, total in self._sums.items()}
            log_metrics(means, state.global_step)
            self._sums, self._steps = dict.fromkeys(self.TIMERS, 0.0), 0


class ProgressCallback(TrainerCallback):
    """Rank 0 only: keeps the file the launcher draws its progress line from, once a second.

    It is the sign of life too: `beats` counts what was computed, `doing` says where silence is no
    wonder. See `launch.hang`.
    """

    def __init__(self, speed: SpeedCallback) -> None:
        self.speed = speed
        self._file = os.environ.get(PROGRESS_VARIABLE) if is_rank0() else None
        self._loss = math.nan
        self._started, self._written, self._first = time.monotonic(), 0.0, 0
        self._beats, self._doing = 0, "starting"

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Start the clock of the remaining time, where this attempt begins."""
        self._started, self._first = time.monotonic(), state.global_step
        self._beat(state, "training")

    def on_log(
        self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any
    ) -> None:
        """Remember the newest loss."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_substep_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Give a sign of life after each micro-batch."""
        self._beat(state, "training")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Write, at most once a second; the last step always."""
        last = state.global_step == state.max_steps
        self._beat(state, "saving" if control.should_save or last else "training")

    def on_prediction_step(
        self, args: Any, state: TrainerState, control: Any, **kwargs: Any
    ) -> None:
        """Give a sign of life after each batch of an evaluation."""
        self._beat(state, "evaluating")

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Expect a checkpoint, or what comes after training."""
        self._beat(state, "saving")

    on_epoch_end = on_evaluate

    def on_save(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Go on, or finish."""
        self._beat(state, "saving" if state.global_step >= state.max_steps else "training")

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Expect what comes after training: evaluation, adapter, the rest of the metrics."""
        self._beat(state, FINISHING)

    def _beat(self, state: TrainerState, doing: str) -> None:
        """Write the file, at once where something else begins, else at most once a second."""
        doing = FINISHING if self._doing == FINISHING else doing
        changed, self._doing = doing != self._doing, doing
        self._beats += 1
        if self._file and (changed or time.monotonic() - self._written >= 1):
            self._write(state)

    def _write(self, state: TrainerState) -> None:
        assert self._file is not None
        self._written = time.monotonic()
        done, here = state.global_step, state.global_step - self._first
        each = (self._written - self._started) / here if here else math.nan
        progress = {
            "step": done,
            "max_steps": state.max_steps,
            "loss": self._loss,
            "tokens_per_sec": self.speed.tokens_per_sec,
            "eta_seconds": each * (state.max_steps - done),
            "beats": self._beats,
            "doing": self._doing,
        }
        # Training waits for no disk: the file is of no use after a power cut.
        write_whole(Path(self._file), json.dumps(progress), synced=False)
