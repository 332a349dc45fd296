"""The lower layers that a training changes nothing of: computed once, then left out of its steps.

With adapters in the upper layers alone, what enters the first of these is the same for a row in
every epoch. It is kept on disk, token by token, and the layers below answer with it.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from account_tax.processes.ranks import is_rank0

from .batches import Rows, place_states

log = logging.getLogger(__name__)

# Of the largest logit, between the whole network and the one that is fed. Padding moves it by some
# 1e-6 in float32; what goes around a layer, or counts positions from the padding, by far more.
TOLERANCE = {torch.float32: 1e-4}
HALF_TOLERANCE = 5e-2


class FrozenLayers(TrainerCallback):
    """Leaves the layers below the first trained one out of a training, where that is exact.

    Only between its begin and its end: modules and names stay, so checkpoints hold what they
    always do, and what comes after runs through the whole network.

    Attributes:
        count: How many layers were left out.
    """

    def __init__(self, trainer: Trainer):
        self._trainer, self.count = trainer, 0
        self._layers: list[nn.Module] = []
        self._states: Tensor | None = None
        self._beside: tuple[None, ...] | None = None  # some answer with more; see `_answer`

    def feed(self, states: Tensor | None) -> None:
        """Take what the layers are to answer for the next micro-batch, (B, T, H)."""
        self._states = states

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Compute and keep the states; DeepSpeed has cast the network by now."""
        layers = frozen_layers(self._trainer.model)
        if not layers:
            return
        started = time.monotonic()
        why_not = self._why_not(layers, args, state) or self._keep(layers)
        said = f"layers 0 to {len(layers) - 1} are the same in every epoch"
        if not why_not:
            self._cut(layers)
            self.count = len(layers)
            took = time.monotonic() - started
            said += f": computed once ({took:.0f} s), and left out of each step"
        if is_rank0():
            log.info("%s%s", said, f", but computed in each step: {why_not}" if why_not else "")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the whole network answer again, and give the disk back."""
        self._restore()
        for rows in self._splits():
            rows.states = None

    def _splits(self) -> list[Rows]:
        found: Any = [self._trainer.train_dataset, self._trainer.eval_dataset]
        return [rows for rows in found if rows is not None]

    def _cut(self, layers: list[nn.Module]) -> None:
        self._layers = layers
        for layer in layers:
            layer.forward = self._answer_fed

    def _answer_fed(self, *args: Any, **kwargs: Any) -> Any:
        return self._states if self._beside is None else (self._states, *self._beside)

    def _restore(self) -> None:
        for layer in self._layers:
            del layer.forward
        self._layers, self._states = [], None

    # --- whether it is exact, and pays ------------------------------------------------------------

    def _why_not(self, layers: list[nn.Module], args: Any, state: Any) -> str:
        """Return why the layers are not left out, or ""; the same for all ranks."""
        sampler: Any = self._trainer.row_sampler  # type: ignore[attr-defined]
        if state.max_steps * sampler.global_batch_size <= len(sampler):
            return "there is no second epoch"
        if is_deepspeed_zero3_enabled():
            return "ZeRO-3 has no rank hold a whole layer"
        if args.torch_compile:
            return "train.training.torch_compile"
        # With nothing given transformers (5.23) says false; where other words are, torch says true.
        words = args.gradient_checkpointing_kwargs
        if args.gradient_checkpointing and words is not None and words.get("use_reentrant", True):
            return "gradient_checkpointing with use_reentrant, which needs a gradient from below"
        found = _of_all_ranks(self._find_obstacle(layers))
        return next(filter(None, found), "")

    def _find_obstacle(self, layers: list[nn.Module]) -> str:
        """Return what makes the layers' answer to a row more than a function of the row, or ""."""
        model: Any = self._trainer.model
        rows = self._splits()[0]
        few = np.argsort(rows.lengths, kind="stable")[[0, -1]]
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices), _in_mode(model, training=True):
            before = _random_state()
            alone = [self._answer(layers[-1], self._batch(rows, [row])) for row in few]
            drawn = not torch.equal(before, _random_state())
        shapes = [tuple(each.shape[:2]) for each in alone]
        if shapes != [(1, rows.lengths[row]) for row in few]:
            return "they answer with more than a vector for each token"
        if drawn:
            return "dropout or noise is active in them or below"
        if _depends_on_trained(alone, model):
            return "something below them is trained"
        states = torch.cat([each[0].detach() for each in alone])
        if not self._answers_alike(layers, self._batch(rows, few), states):
            return "what is above them needs more than they answer"
        return ""

    @torch.no_grad()
    def _answers_alike(
        self, layers: list[nn.Module], batch: dict[str, Any], states: Tensor
    ) -> bool:
        """Return whether a padded batch gets the same logits when fed the states of rows alone."""
        model: Any = self._trainer.model
        with _in_mode(model, training=False):
            expected = model(**batch)["logits"].float()
            self._cut(layers)
            self.feed(place_states(states, batch["attention_mask"]))
            try:
                found = model(**batch)["logits"].float()
            except Exception:  # whatever a network may raise: it trains as a whole
                return False
            finally:
                self._restore()
        tolerance = TOLERANCE.get(states.dtype, HALF_TOLERANCE) * float(expected.abs().max())
        return float((found - expected).abs().max()) <= tolerance

    # --- computing the states ---------------------------------------------------------------------

    def _batch(self, rows: Rows, numbers: Any) -> dict[str, Any]:
        batch = self._trainer.data_collator([rows[number] for number in numbers])
        batch = self._trainer._prepare_inputs(batch)
        return {key: value for key, value in batch.items() if key != "labels"}

    def _answer(self, layer: nn.Module, batch: dict[str, Any]) -> Any:
        """Return what a layer answers for a batch; the rest of the network is not computed."""
        model: Any = self._trainer.model
        found = torch.empty(0)  # where a network goes around it

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            raise _Answered(output)

        hook = layer.register_forward_hook(leave)
        try:
            model(**batch)
        except _Answered as answered:
            found = answered.args[0]
        finally:
            hook.remove()
        if isinstance(found, tuple):  # attention weights are beside it, which nobody asked for
            self._beside = (None,) * (len(found) - 1)
            found = found[0]
        return found

    @torch.no_grad()
    def _keep(self, layers: list[nn.Module]) -> str:
        """Fill the splits' states, each rank its share of the batches; or return why not."""
        splits = self._splits()
        counts = [rows.tokens for rows in splits]
        with _in_mode(self._trainer.model, training=False):
            like = self._answer(layers[-1], self._batch(splits[0], [0]))
            width, size = like.shape[-1], sum(counts) * like.shape[-1] * like.element_size()
            file, ranks = open_shared(size)
            if file is None:
                folder = tempfile.gettempdir()
                return f"TMPDIR = {folder} has no {2 * size / 2**20:.0f} MiB free for them"
            mapped = torch.from_numpy(np.memmap(file, np.uint8)).view(like.dtype).view(-1, width)
            states = mapped.split(counts)
            for part, numbers in list(self._parts())[ranks.index(_rank()) :: len(ranks)]:
                self._fill(layers[-1], splits[part], states[part], numbers)
        _of_all_ranks(True)  # has filled its share
        for rows, its_states in zip(splits, states, strict=True):
            rows.states = its_states
        return ""

    def _parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield batches, a split's number and rows of it: the same for any number of ranks."""
        size = self._trainer.args.per_device_eval_batch_size
        for number, rows in enumerate(self._splits()):
            order = np.argsort(-rows.lengths, kind="stable")
            for start in range(0, len(order), size):
                yield number, order[start : start + size]

    def _fill(self, layer: nn.Module, rows: Rows, states: Tensor, numbers: np.ndarray) -> None:
        trainer, batch = self._trainer, self._batch(rows, numbers)
        answers, mask = self._answer(layer, batch).cpu(), batch["attention_mask"].bool().cpu()
        for number, answer, real in zip(numbers, answers, mask, strict=True):
            states[rows.span(number)] = answer[real]
        # A sign of life, see `ProgressCallback`.
        trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)


class _Answered(Exception):
    """Leaves a forward pass with what a layer has answered."""


def frozen_layers(model: Any) -> list[nn.Module]:
    """Return the layers of the stack below the first that is trained; none are where it is 0."""
    depth = getattr(model.config, "num_hidden_layers", 0)
    stacks = (each for each in model.modules() if isinstance(each, nn.ModuleList))
    stack = next((list(each) for each in stacks if len(each) == depth), [])
    trained = [any(weight.requires_grad for weight in layer.parameters()) for layer in stack]
    return stack[: trained.index(True)] if True in trained else []


def open_shared(size: int) -> tuple[IO[bytes] | None, list[int]]:
    """Return a file without a name that this host's ranks share, or None; and these ranks.

    Its bytes are reserved, and half of what the disk has free stays so. All ranks get one, or none.
    """
    hosts = _of_all_ranks(socket.gethostname())
    ranks = [rank for rank, host in enumerate(hosts) if host == hosts[_rank()]]
    file: IO[bytes] | None = None
    place = None
    if _rank() == ranks[0]:
        try:
            if 2 * size <= shutil.disk_usage(tempfile.gettempdir()).free:
                file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as its mapping
                os.posix_fallocate(file.fileno(), 0, size)
                place = (f"/proc/{os.getpid()}/fd/{file.fileno()}", os.fstat(file.fileno()).st_ino)
        except OSError:
            file = None
    place = _of_all_ranks(place)[ranks[0]]
    if place and file is None:
        file = _open_that(*place)
    return (file if all(_of_all_ranks(file is not None)) else None), ranks


def _open_that(path: str, inode: int) -> IO[bytes] | None:
    """Return a file of another process, None if it can't be opened or is not the one that is meant.

    Ranks in containers of their own may share a host's name, and not its processes.
    """
    try:
        file = open(path, "r+b")  # noqa: SIM115
    except OSError:
        return None
    return file if os.fstat(file.fileno()).st_ino == inode else None


def _depends_on_trained(states: list[Tensor], model: nn.Module) -> bool:
    """Return whether a gradient of the states would reach a weight that is trained."""
    total = sum(each.sum() for each in states)
    if not isinstance(total, Tensor) or not total.requires_grad:
        return False
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.autograd.grad(total, trained, allow_unused=True)
    return any(each is not None for each in found)


@contextmanager
def _in_mode(model: Any, training: bool) -> Iterator[None]:
    before = model.training
    model.train(training)
    try:
        yield
    finally:
        model.train(before)


def _random_state() -> Tensor:
    """Return the state of torch's random numbers: where nothing is drawn, it stays."""
    states = [torch.get_rng_state()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state())
    return torch.cat(states)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _of_all_ranks(value: Any) -> list[Any]:
    """Return what each rank gives; all of them wait for it."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
