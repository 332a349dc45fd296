"""The order of rows: complete, seeded, and the same global batches for any split."""

from __future__ import annotations

import numpy as np
import pytest

from account_tax.pipelines.train.batches import (
    IGNORED_LABEL,
    GlobalBatchSampler,
    Rows,
    class_weights,
)
from tests.conftest import make_splits


def make_rows(count: int, seed: int = 0) -> Rows:
    draw = np.random.default_rng(seed)
    ids = [draw.integers(5, 99, draw.integers(1, 30)).tolist() for _ in range(count)]
    return Rows.from_lists(ids, (np.arange(count) % 3).tolist())


def global_batches(sampler: GlobalBatchSampler) -> list[list[int]]:
    order = list(sampler)
    size = sampler.global_batch_size
    return [order[start : start + size] for start in range(0, len(order), size)]


def test_a_row_comes_back_as_it_was_given():
    rows = Rows.from_lists([[2, 7, 3], [2, 3]], [1, 0])
    assert rows[0] == {"input_ids": [2, 7, 3], "labels": 1}
    assert rows[1] == {"input_ids": [2, 3], "labels": 0}


def test_a_split_gives_its_rows_and_by_length_where_asked():
    split = make_splits({"train": 9})["train"]
    rows = Rows.from_dataset(split)
    assert [row["input_ids"] for row in rows] == split["input_ids"][:]
    assert [row["labels"] for row in rows] == split["labels"][:]
    longest = list(Rows.from_dataset(split, longest_first=True))
    lengths = [len(row["input_ids"]) for row in longest]
    assert lengths == sorted(lengths, reverse=True)
    pairs = [(row["input_ids"], row["labels"]) for row in longest]
    expected = list(zip(split["input_ids"], split["labels"], strict=True))
    assert sorted(pairs) == sorted(expected)


def test_the_index_after_the_last_row_has_no_label():
    rows = make_rows(4)
    assert rows[4]["labels"] == IGNORED_LABEL
    assert len(rows[4]["input_ids"]) == 1


@pytest.mark.parametrize("group_by_length", [False, True])
def test_every_row_comes_once_an_epoch(group_by_length):
    rows = make_rows(1003)
    order = [row for row in GlobalBatchSampler(rows, 16, 7, group_by_length) if row < len(rows)]
    assert sorted(order) == list(range(1003))


def test_only_the_last_global_batch_is_filled_up():
    rows = make_rows(37)
    *full, last = global_batches(GlobalBatchSampler(rows, 16, 7, group_by_length=True))
    assert all(row < 37 for batch in full for row in batch)
    assert sum(row == 37 for row in last) == 48 - 37


def test_the_order_repeats_with_the_seed_and_changes_with_the_epoch():
    rows = make_rows(100)
    first, again = (GlobalBatchSampler(rows, 8, 7, True) for _ in range(2))
    assert list(first) == list(again)
    again.set_epoch(1)
    assert list(first) != list(again)
    again.set_epoch(0)
    assert list(first) == list(again)


def test_grouping_pads_less():
    rows = make_rows(2000)

    def padded_tokens(group_by_length: bool) -> int:
        sampler = GlobalBatchSampler(rows, 16, 7, group_by_length)
        batches = [[row for row in b if row < len(rows)] for b in global_batches(sampler)]
        return sum(int(rows.lengths[batch].max()) * len(batch) for batch in batches)

    useful = int(rows.lengths.sum())
    assert padded_tokens(True) < 1.1 * useful < padded_tokens(False)


@pytest.mark.parametrize(("kind", "expected"), [("balanced", 4), ("sqrt", 2)])
def test_weights_average_to_one_over_the_rows(kind, expected):
    labels = np.array([0] * 8 + [1] * 2)
    weights = class_weights(labels, 2, kind)
    assert (weights[1] / weights[0]).item() == pytest.approx(expected)  # rows 8 : 2
    assert weights[labels].mean().item() == pytest.approx(1.0)
    assert class_weights(labels, 2, "none") is None
