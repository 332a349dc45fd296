"""What DeepSpeed 0.19.8's engine throws away, or does anew or tensor by tensor in each step."""

from __future__ import annotations

from math import sqrt
from types import MethodType
from typing import Any

import numpy as np
import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.utils import clip_grad_norm_
from transformers import Trainer, TrainerCallback


class EngineCallback(TrainerCallback):
    """Takes idle work out of a step, and keeps the gradient norm of fp32, which is thrown away.

    A device waits for all of it: between two steps it has nothing to do. The norm's part can go
    when `DeepSpeedEngine.clip_fp32_gradients` keeps what `clip_grad_norm_` returns, the step's
    when `FP16_UnfusedOptimizer.step` works on lists of tensors.
    """

    def __init__(self, trainer: Trainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Give the engine, which is there by now, its shorter ways."""
        engine: Any = self._trainer.deepspeed
        set_mode = engine.train

        def clip_fp32_gradients() -> None:
            engine._global_grad_norm = clip_grad_norm_(
                parameters=engine.module.parameters(),
                max_norm=engine.gradient_clipping(),
                mpu=engine.mpu,
            )

        def train(mode: bool = True) -> None:
            if engine.module.training != mode:  # Trainer asks for it before every micro-batch
                set_mode(mode)

        set_mode(True)  # a loaded base evaluates, whatever the model around it says of itself
        engine.clip_fp32_gradients, engine.train = clip_fp32_gradients, train
        if type(engine.optimizer) is FP16_UnfusedOptimizer and engine.mpu is None:
            engine.optimizer.step = MethodType(step_of_lists, engine.optimizer)


@torch.no_grad()
def step_of_lists(optimizer: Any, closure: Any = None) -> bool:
    """Take the step of `FP16_UnfusedOptimizer`: the same bits, in a tenth of the operations.

    DeepSpeed's own looks for infinities, adds up norms, copies and scales tensor by tensor, and
    waits for the device after each: 1,200 kernels and 56 waits a step for the adapters of
    bert-base. A norm that is no number tells of the same infinities.

    Args:
        optimizer: DeepSpeed's, with `fp16_groups` and `fp32_groups` of tensors.
        closure: None, as in DeepSpeed's.

    Returns:
        True if the step was left out, since a gradient is no number.
    """
    lists: Any = torch  # no public names for what its own optimizers are written with
    norms, masters = [], []
    for halves, wholes in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        for half, whole in zip(halves, wholes, strict=True):
            whole.grad = torch.zeros_like(whole) if half.grad is None else torch.empty_like(whole)
        with_gradient = [(h, w) for h, w in zip(halves, wholes, strict=True) if h.grad is not None]
        if not with_gradient:
            continue
        gradients = [whole.grad for _, whole in with_gradient]
        lists._foreach_copy_(gradients, [half.grad for half, _ in with_gradient])
        norms.append(torch.stack(lists._foreach_norm(gradients)))
        masters += gradients
    # One wait. Squares in float32, added up in this order, are DeepSpeed's bits.
    squares = [norm.cpu().numpy() ** 2 for norm in norms]
    by_group = [sqrt(np.cumsum(square, dtype=np.float32)[-1]) for square in squares]
    total = optimizer._global_grad_norm = sqrt(sum(norm**2.0 for norm in by_group))
    optimizer.overflow = not np.isfinite(total)
    if optimizer.overflow:
        return bool(optimizer._skip_invalid_grad_norm())
    optimizer._update_scale(False)
    scale = optimizer.unscale_and_clip_grads(total, apply_scale=False)
    if scale != 1.0:
        lists._foreach_mul_(masters, 1.0 / scale)
    optimizer.optimizer.step()
    for halves, wholes in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        lists._foreach_copy_([half.data for half in halves], [whole.data for whole in wholes])
        for whole in wholes:
            whole.grad = None
    return False
