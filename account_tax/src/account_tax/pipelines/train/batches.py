"""Which rows make a step: the same rows for any split into ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler
from transformers import DataCollatorWithPadding

IGNORED_LABEL = -100  # torch's cross_entropy leaves such a row out of the loss
STATES = "states"

# Rows drawn at random and then sorted by length together, in global batches. Large enough to pad
# little, small enough to leave the order random.
GROUPED_BATCHES = 50


class Rows(torch.utils.data.Dataset):
    """A split held in memory as flat arrays: one list of token ids and a label for each row.

    Index `len(self)` is no row: a single token without a label. It fills the last global batch, so
    that every rank gets as many micro-batches as the others and no row counts twice.

    Attributes:
        states: A vector for each token, (N, H), which goes with its row; see `frozen.py`.
    """

    states: Tensor | None = None

    def __init__(self, tokens: np.ndarray, lengths: np.ndarray, labels: np.ndarray):
        self.lengths, self.labels = lengths.astype(np.int64), labels.astype(np.int64)
        self._tokens, self._starts = tokens, np.cumsum(self.lengths) - self.lengths

    @classmethod
    def from_lists(cls, input_ids: Sequence[Sequence[int]], labels: Sequence[int]) -> Rows:
        """Return rows of token id lists."""
        lengths = np.fromiter(map(len, input_ids), np.int64, len(input_ids))
        tokens = np.fromiter(chain.from_iterable(input_ids), np.int32, lengths.sum())
        return cls(tokens, lengths, np.asarray(labels))

    @classmethod
    def from_dataset(cls, split: Dataset, longest_first: bool = False) -> Rows:
        """Return a tokenized split's rows, by length where the order is free (evaluation)."""
        table: Any = split.with_format("arrow")[:]
        input_ids = table["input_ids"].combine_chunks()
        lengths, tokens = input_ids.value_lengths().to_numpy(), input_ids.flatten().to_numpy()
        rows = cls(tokens, lengths, table["labels"].to_numpy())
        if longest_first:
            order = np.argsort(-rows.lengths, kind="stable")
            rows._starts, rows.lengths = rows._starts[order], rows.lengths[order]
            rows.labels = rows.labels[order]
        return rows

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.__getitem__, range(len(self)))  # without the filling row

    def __getitem__(self, row: int) -> dict[str, Any]:
        is_row = row != len(self)
        span = self.span(row) if is_row else slice(0, 1)
        label = int(self.labels[row]) if is_row else IGNORED_LABEL
        item = {"input_ids": self._tokens[span].tolist(), "labels": label}
        return item if self.states is None else {**item, STATES: self.states[span]}

    @property
    def tokens(self) -> int:
        """How many there are in all rows."""
        return len(self._tokens)

    def span(self, row: int) -> slice:
        """Return where a row's tokens are among all."""
        return slice(self._starts[row], self._starts[row] + self.lengths[row])


class RowCollator(DataCollatorWithPadding):
    """Pads rows to a batch, and their states, if they have any, likewise."""

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return token ids and mask, (B, T), labels, (B,), and states, (B, T, H)."""
        states = [row.pop(STATES) for row in features if STATES in row]
        batch = super().__call__(features)
        if states:
            batch[STATES] = place_states(torch.cat(states), batch["attention_mask"])
        return batch


def place_states(states: Tensor, mask: Tensor) -> Tensor:
    """Return the states, (N, H), of a batch's N tokens where they stand, (B, T, H); else nought."""
    placed = states.new_zeros(*mask.shape, states.shape[-1])
    placed[mask.bool()] = states
    return placed


class GlobalBatchSampler(Sampler[int]):
    """Row indices, global batch after global batch, in an order that only the seed decides.

    Inside a global batch rows go by length, so micro-batches pad little. accelerate deals
    consecutive micro-batches to the ranks in turn, so each global batch is one step whatever
    (micro-batch, accumulation, ranks) it is split into.

    Args:
        rows: The split.
        global_batch_size: Rows a step.
        seed: Of the order; each epoch adds its number.
        group_by_length: Fill global batches with rows of like length, in random order of batches.
    """

    def __init__(self, rows: Rows, global_batch_size: int, seed: int, group_by_length: bool):
        self.rows, self.global_batch_size = rows, global_batch_size
        self.seed, self.group_by_length = seed, group_by_length
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Draw the next order for this epoch; Trainer calls it, also when it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.global_batch_size) * self.global_batch_size

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng([self.seed, self.epoch])
        order = draw.permutation(len(self.rows))
        if self.group_by_length:
            order = self._group(order, draw)
        for start in range(0, len(order), self.global_batch_size):
            batch = self._longest_first(order[start : start + self.global_batch_size])
            yield from batch.tolist()
            yield from [len(self.rows)] * (self.global_batch_size - len(batch))

    def _group(self, order: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        size = self.global_batch_size
        full, rest = np.split(order, [len(order) // size * size])  # the partial batch stays last
        pools = [
            self._longest_first(full[start : start + size * GROUPED_BATCHES])
            for start in range(0, len(full), size * GROUPED_BATCHES)
        ]
        batches = np.concatenate([*pools, full[:0]]).reshape(-1, size)
        return np.concatenate([draw.permutation(batches).ravel(), rest])

    def _longest_first(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(-self.rows.lengths[rows], kind="stable")]


def class_weights(labels: np.ndarray, num_labels: int, kind: str) -> torch.Tensor | None:
    """Return a weight for each class, (C,), float32, or None where all weigh the same.

    `balanced` is rows / (C * rows of the class), `sqrt` in proportion to its root. Averaged over
    the rows they are 1, so the weighted loss keeps its scale.
    Source: scikit-learn, compute_class_weight("balanced").
    """
    if kind == "none":
        return None
    counts = np.bincount(labels, minlength=num_labels)
    weights = len(labels) / (num_labels * counts)
    if kind == "sqrt":
        weights = np.sqrt(weights)
        weights *= len(labels) / (counts @ weights)
    return torch.from_numpy(weights.astype(np.float32))
