"""The mean of the weights at the evaluations, in the place of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from deepspeed.runtime.zero import GatheredParameters
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

MEAN_FILE = "mean_weights.safetensors"  # in a checkpoint, beside the weights it goes on from


class MeanWeights:
    """The mean of the trained weights at the evaluations so far; float32, on the CPU.

    The k-th evaluation counts k times: the first ones are far from where training ends. Where the
    weights alone have a lower loss on validation, the mean begins anew with them: while a training
    is still far from its end, a mean lags behind. What is evaluated and saved is the mean, what is
    trained never sees it. So the best model, an early stop and a search's pruning are all of the
    mean. Every rank keeps a whole one.

    Source: Izmailov et al. 2018, Averaging Weights Leads to Wider Optima and Better Generalization;
    the weights: Lacoste-Julien et al. 2012, A simpler approach to obtaining an O(1/t) rate.

    Args:
        model: Its trained weights; ZeRO-3 may have sharded them.
        enabled: False: nothing is kept, and nothing changes.
    """

    def __init__(self, model: nn.Module, enabled: bool):
        self._model = model
        self._enabled = enabled
        self._count = 0
        self._means: dict[str, Tensor] = {}

    def add(self) -> bool:
        """Take in the weights as they are now; return whether there is a mean of several."""
        if not self._enabled:
            return False
        self._count += 1
        share = 2 / (self._count + 1)  # k of 1 + 2 + ... + k
        for name, weight in self._trained():
            mean = self._means.setdefault(name, torch.zeros(weight.shape))
            mean += (weight.cpu().float() - mean) * share
        return self._count > 1

    def begin_anew(self) -> None:
        """Forget all weights but those of now."""
        self._count, self._means = 0, {}
        self.add()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the mean, if there is one, in the place of the weights for a while."""
        if not self._count:
            yield
            return
        weights = {name: weight.cpu().clone() for name, weight in self._trained()}
        self._put(self._means)
        try:
            yield
        finally:
            self._put(weights)

    def settle(self) -> None:
        """Leave the mean, if there is one, in the place of the weights for good."""
        self._put(self._means)
        self._enabled, self._count, self._means = False, 0, {}

    def save(self, checkpoint: Path) -> None:
        """Write the mean, if there is one, into a checkpoint; one rank does."""
        if self._count:
            save_file(self._means, checkpoint / MEAN_FILE, {"evaluations": str(self._count)})

    def load(self, checkpoint: Path) -> None:
        """Go on from the mean of a checkpoint; from none where none had been taken."""
        self._count, self._means = 0, {}
        if (checkpoint / MEAN_FILE).exists():
            with safe_open(checkpoint / MEAN_FILE, "pt") as file:
                self._count = int(file.metadata()["evaluations"])
                self._means = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def _put(self, values: dict[str, Tensor]) -> None:
        if values:
            for name, weight in self._trained():
                weight.copy_(values[name])

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each trained weight, whole for as long as it is looked at; changes stay."""
        for name, weight in self._model.named_parameters():
            if weight.requires_grad:
                with GatheredParameters([weight], modifier_rank=0):
                    yield name, weight.data
