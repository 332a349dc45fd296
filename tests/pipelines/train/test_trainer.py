"""The loss does not depend on the split into micro-batches."""

from __future__ import annotations

import pytest
import torch

from account_tax.pipelines.train.trainer import global_batch_cross_entropy


def test_the_shares_of_the_micro_batches_add_up_to_the_loss_of_the_global_batch():
    torch.manual_seed(0)
    logits, labels = torch.randn(10, 3), torch.arange(10) % 3
    weights = torch.tensor([0.5, 1.0, 2.0])
    whole = global_batch_cross_entropy({"logits": logits}, labels, 10, class_weights=weights)
    shares = [
        global_batch_cross_entropy(
            {"logits": logits[part]}, labels[part], 10, class_weights=weights
        )
        for part in (slice(0, 4), slice(4, 9), slice(9, 10))
    ]
    by_hand = -(weights[labels] * logits.log_softmax(-1)[torch.arange(10), labels]).sum() / 10
    assert sum(shares).item() == pytest.approx(whole.item(), rel=1e-6)
    assert whole.item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_a_filling_row_adds_nothing_to_the_loss():
    logits, labels = torch.randn(3, 3), torch.tensor([0, 2, -100])
    filled = global_batch_cross_entropy({"logits": logits}, labels, 2)
    alone = global_batch_cross_entropy({"logits": logits[:2]}, labels[:2], 2)
    assert filled.item() == pytest.approx(alone.item(), rel=1e-6)


def test_smoothed_the_target_is_spread_over_all_classes():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, 1, -100])
    found = global_batch_cross_entropy({"logits": logits}, labels, 3, label_smoothing=0.3)
    target = 0.7 * torch.nn.functional.one_hot(labels[:3], 3) + 0.1
    by_hand = -(target * logits[:3].log_softmax(-1)).sum() / 3
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-6)
