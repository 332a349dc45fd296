"""Trainer, with the loss of this project and its order of rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from account_tax.storage.checkpoints import step_of

from .adapters import AdapterProducts
from .batches import IGNORED_LABEL, STATES, GlobalBatchSampler, Rows
from .callbacks import SpeedCallback
from .checkpointing import CheckpointedTrainer
from .engine import EngineCallback
from .frozen import FrozenLayers
from .stopping import NotFiniteCallback


def global_batch_cross_entropy(
    outputs: Any,
    labels: Tensor,
    num_items_in_batch: Tensor | int,
    *,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return this micro-batch's share of the global batch's mean loss, in nats.

    The sum over the rows is divided by the rows of the whole global batch, not of the micro-batch,
    so the shares of all ranks and micro-batches add up to the same number for any split. Weights
    scale a row's loss and not the divisor: a mean of weights would depend on the split.

    Args:
        outputs: The model's output with logits, (B, C).
        labels: Class ids in [0, C) or -100 for no row, (B,).
        num_items_in_batch: Rows of the global batch; Trainer counts them over the ranks.
        class_weights: Positive weights, (C,), or None.
        label_smoothing: Share of a row's target that is spread over all classes; below 1.
    """
    logits = outputs["logits"].float()
    weights = None if class_weights is None else class_weights.to(logits.device)
    total = nn.functional.cross_entropy(
        logits,
        labels,
        weight=weights,
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return total / num_items_in_batch


def rows_a_step(args: TrainingArguments) -> int:
    """Return the rows of a global batch: those of all ranks' micro-batches in a step."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


class LedgerTrainer(CheckpointedTrainer):
    """Trainer whose loss and order of rows do not depend on the split into ranks and micro-batches.

    Args:
        speed: Told the attention mask of every micro-batch.
        finite: Told the gradient norm of every step.
        class_weights: See `global_batch_cross_entropy`.
        kwargs: CheckpointedTrainer's own; both datasets are `Rows`.
    """

    def __init__(
        self,
        *,
        speed: SpeedCallback,
        finite: NotFiniteCallback,
        class_weights: Tensor | None = None,
        **kwargs: Any,
    ):
        loss = partial(
            global_batch_cross_entropy,
            class_weights=class_weights,
            label_smoothing=kwargs["args"].label_smoothing_factor,
        )
        super().__init__(compute_loss_func=loss, **kwargs)
        self.speed, self.finite = speed, finite
        self.frozen = FrozenLayers(self)
        self._parameters: int | None = None
        self.add_callback(EngineCallback(self))
        self.add_callback(self.frozen)
        self.add_callback(AdapterProducts(self))

    def _get_collator_with_removed_columns(
        self, data_collator: Any, description: Any = None
    ) -> Any:
        return data_collator  # `Rows` have none, and states are no word of the model's forward

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared = super()._prepare_inputs(inputs)
        self.frozen.feed(prepared.pop(STATES, None))
        return prepared

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args = self.args
        self.row_sampler = GlobalBatchSampler(
            cast(Rows, train_dataset or self.train_dataset),
            rows_a_step(args),
            seed=args.data_seed if args.data_seed is not None else args.seed,
            group_by_length=args.train_sampling_strategy == "group_by_length",
        )
        return self.row_sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        # Trainer's own would shuffle under group_by_length, and answers belong to their rows.
        return SequentialSampler(eval_dataset)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule; polynomial and cosine with a least rate read the peak rate.

        They look for it in the optimizer's `defaults`, which DeepSpeed 0.19.8 does not hand on.
        """
        wrapper: Any = self.optimizer
        while hasattr(wrapper := getattr(wrapper, "optimizer", None), "optimizer"):
            if not hasattr(wrapper, "defaults"):
                wrapper.defaults = {"lr": self.args.learning_rate}
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return the operations of a micro-batch as Trainer does, counting the weights once."""
        if self._parameters is None:
            model: Any = self.model
            self._parameters = int(model.num_parameters(exclude_embeddings=True))
        return 6 * inputs["input_ids"].numel() * self._parameters

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the loss of a micro-batch after its backward pass."""
        self.speed.count(inputs["attention_mask"])
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the norm that Trainer has fetched, after a check; with fp16 too large is no fault.

        DeepSpeed then leaves the step out and lowers its loss scale.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not self.args.fp16:
            self.finite.check("gradient norm", float(norm), self.state.global_step + 1, self.args)
        return norm

    def evaluate_kept(self) -> dict[str, float]:
        """Return the evaluation of the weights that the training left.

        They were evaluated when they were chosen. It is made now where the history has none, as
        without an `eval_strategy`, or one that took the lower layers' answers from a file.
        """
        if self.frozen.count:
            return self.evaluate()
        state = self.state
        best = state.best_model_checkpoint if self.args.load_best_model_at_end else None
        kept = step_of(Path(best)) if best else state.global_step
        for entry in reversed(state.log_history):
            if entry["step"] == kept and "eval_loss" in entry:
                found = {key: value for key, value in entry.items() if key.startswith("eval_")}
                self.log(found)
                return found
        return self.evaluate()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Return the answers of the weights or, while training, of their mean: the better ones."""
        own = self._answer(*args, **kwargs)
        if not self.state.global_step or not self.means.add():
            return own
        with self.means.in_place():
            mean = self._answer(*args, **kwargs)
        losses = [cast(Any, each.metrics)["eval_loss"] for each in (own, mean)]
        if losses[1] <= losses[0]:
            return mean
        self.means.begin_anew()
        return own

    def _answer(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Return Trainer's evaluation, its loss computed from the gathered logits.

        Trainer averages the ranks' batch means, which are not means over the rows: batches differ
        in size, and the last one is filled with repeated rows. The loss here is neither weighted
        nor smoothed, so that runs with and without can be compared.
        """
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        if output.metrics is not None and output.label_ids is not None:
            logits = torch.from_numpy(output.predictions).float()  # (N, C)
            labels = torch.from_numpy(output.label_ids)  # (N,)
            output.metrics[f"{prefix}_loss"] = nn.functional.cross_entropy(logits, labels).item()
        return output
