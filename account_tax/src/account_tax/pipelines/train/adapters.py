"""LoRA's part of a layer, added within its products instead of by operations of its own.

PEFT makes the adapter's answer, scales it and adds it up, forward and backward: on short ledger
lines these read and write as much as the base's own product. Here a product takes what is there and
adds to it, and what is scaled is the adapter's few columns: a fifth more steps a second on a CPU
(docs/results.md).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import Trainer, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


class AdapterProducts(TrainerCallback):
    """Gives plain LoRA layers the shorter way between a training's begin and its end."""

    def __init__(self, trainer: Trainer):
        self._trainer, self._layers = trainer, list[nn.Module]()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take every layer that is no more than two products; DeepSpeed has cast them by now."""
        model: Any = self._trainer.model
        if args.torch_compile or is_deepspeed_zero3_enabled():
            return  # the one fuses by itself, the other has no rank hold a whole weight
        self._layers = [layer for layer in model.modules() if is_plain(layer)]
        for layer in self._layers:
            layer.forward = partial(_answer, layer, _only_adapter(layer), layer.forward)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let PEFT compute them again."""
        for layer in self._layers:
            del layer.forward
        self._layers = []


def is_plain(layer: Any) -> bool:
    """Return whether a layer adds one LoRA adapter to a frozen linear one, and does nothing else.

    Source: peft 0.21, tuners/lora/layer.py (`Linear.forward`).
    """
    if type(layer) is not Linear or type(layer.base_layer) is not nn.Linear:
        return False
    adapter = _only_adapter(layer)
    if adapter is None or layer.lora_variant:
        return False
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    base = list(layer.base_layer.parameters())
    return (
        isinstance(layer.lora_dropout[adapter], nn.Identity)
        and up.bias is None
        and not any(weight.requires_grad for weight in base)
        and len({weight.dtype for weight in (*base, down.weight, up.weight)}) == 1
    )


def _only_adapter(layer: Any) -> str | None:
    """Return the one adapter that a layer adds now; None if none, several or a merged one."""
    if layer.disable_adapters or layer.merged:
        return None
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return names[0] if len(names) == 1 else None


def _answer(
    layer: Any, adapter: str | None, of_peft: Any, x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """Return what the layer answers to (..., I): (..., O)."""
    weight = layer.base_layer.weight
    simple = layer.training and x.dtype == weight.dtype and not (args or kwargs)
    if not simple or _only_adapter(layer) != adapter or torch.is_autocast_enabled(x.device.type):
        return of_peft(x, *args, **kwargs)
    down, up = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    scale = layer.scaling[adapter]
    return _Products.apply(x, weight, layer.base_layer.bias, down, up, scale)


class _Products(torch.autograd.Function):
    """x W^T + bias + scale (x A^T) B^T, with gradients for x, A and B."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor,
        scale: float,
    ) -> Tensor:  # fmt: skip
        """Return (..., O) for x (..., I), weight (O, I), down (R, I) and up (O, R)."""
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ down.t()  # (N, R)
        # Not a view, which nobody might change in place, as Longformer does with its queries.
        answer = x.new_empty(*x.shape[:-1], len(weight))
        flat = answer.view(-1, len(weight))
        if bias is None:
            torch.mm(rows, weight.t(), out=flat)
        else:
            torch.addmm(bias, rows, weight.t(), out=flat)
        flat.addmm_(low, up.t(), alpha=scale)
        ctx.save_for_backward(rows, low, weight, down, up)
        ctx.scale = scale
        return answer

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]  # the decorator's ctx has no name
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, down and up; the base is frozen."""
        rows, low, weight, down, up = ctx.saved_tensors
        (*shape, width) = gradients[0].shape
        gradient = gradients[0].reshape(-1, width)  # (N, O)
        of_low = (gradient @ up) * ctx.scale  # (N, R)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ weight
            of_x.addmm_(of_low, down)
            of_x = of_x.view(*shape, rows.shape[1])
        return of_x, None, None, of_low.t() @ rows, (gradient.t() @ low) * ctx.scale, None
