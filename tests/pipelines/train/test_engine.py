"""A step of DeepSpeed's optimizer by lists of tensors against DeepSpeed's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16 import unfused_optimizer
from deepspeed.runtime.fp16.loss_scaler import LossScaleConfig, LossScaleProfile

from account_tax.pipelines.train.engine import EngineCallback, step_of_lists

SHAPES = [(8, 64), (64, 8), (10,), (8, 32), (3, 64)]


def make_optimizer(dtype: torch.dtype) -> Any:
    """Return DeepSpeed's optimizer over two groups, of which one decays."""
    draw = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(s, generator=draw).to(dtype)) for s in SHAPES]
    groups = [
        {"params": weights[:3], "weight_decay": 0.1},
        {"params": weights[3:], "weight_decay": 0.0},
    ]
    scale = LossScaleConfig(
        low_precision_dtype=dtype,
        dynamic_loss_scale=dtype == torch.float16,
        static_loss_scale=1.0,
        dynamic_loss_args=None,
        profile=LossScaleProfile.UNFUSED,
    )
    return unfused_optimizer.FP16_UnfusedOptimizer(
        torch.optim.AdamW(groups, lr=0.05),
        loss_scale_config=scale,
        low_precision_dtype=dtype,
        clip_grad=1.0,
    )


def give_gradients(optimizer: Any, step: int, dtype: torch.dtype) -> None:
    """Set gradients of a size that clips at odd steps; one has none, and step 3 an infinity."""
    draw = torch.Generator().manual_seed(step)
    weights = [weight for group in optimizer.fp16_groups for weight in group]
    for weight in weights:
        size = 5.0 if step % 2 else 0.001
        weight.grad = (torch.randn(weight.shape, generator=draw) * size).to(dtype)
    if step == 2:
        weights[1].grad = None
    if step == 3:
        weights[4].grad[0, 0] = float("inf")
    if step == 4:
        for weight in weights[3:]:  # all of a group
            weight.grad = None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_step_by_lists_leaves_deepspeeds_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfused_optimizer.dist, "get_rank", lambda: 0)  # it only logs at rank 0
    theirs, ours = make_optimizer(dtype), make_optimizer(dtype)
    for step in range(6):
        for optimizer in (theirs, ours):
            give_gradients(optimizer, step, dtype)
        assert step_of_lists(ours) == theirs.step() == (step == 3)
        assert ours._global_grad_norm == theirs._global_grad_norm
        assert ours.loss_scale == theirs.loss_scale
        for groups in ("fp16_groups", "fp32_groups"):
            for mine, their in zip(getattr(ours, groups), getattr(theirs, groups), strict=True):
                for a, b in zip(mine, their, strict=True):
                    assert torch.equal(a, b), (step, groups)
                    assert groups == "fp16_groups" or a.grad is None
        for optimizer in (theirs, ours):
            optimizer.zero_grad()


def test_a_base_that_evaluates_trains_and_again_after_an_evaluation() -> None:
    base = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout()).eval()
    engine: Any = SimpleNamespace(module=torch.nn.Sequential(base), optimizer=None)
    engine.train = DeepSpeedEngine.train.__get__(engine)
    trainer: Any = SimpleNamespace(deepspeed=engine)
    assert engine.module.training  # as PEFT leaves the model around a loaded base
    assert not base.training
    EngineCallback(trainer).on_train_begin(None, None, None)
    assert all(module.training for module in engine.module.modules())
    engine.module.eval()
    engine.train()
    assert all(module.training for module in engine.module.modules())
