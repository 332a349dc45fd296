"""The mean of the weights, and that training never sees it; in ranks: tests/integration."""

from __future__ import annotations

import torch
from torch import nn

from account_tax.pipelines.train.averaging import MEAN_FILE, MeanWeights


def make(enabled: bool = True, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, MeanWeights]:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False)).to(dtype)
    model[1].requires_grad_(False)
    return model, MeanWeights(model, enabled)


def fill(model: nn.Module, value: float) -> None:
    model[0].weight.data.fill_(value)


def test_the_mean_stands_in_for_a_while_and_the_weights_come_back_bit_by_bit():
    model, means = make()
    for value in (0.1, 0.4, 0.6):
        fill(model, value)
        means.add()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with means.in_place():
        torch.testing.assert_close(model[0].weight, torch.full((2, 3), 0.45))
        assert torch.equal(model[1].weight, before["1.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    means.settle()
    torch.testing.assert_close(model[0].weight, torch.full((2, 3), 0.45))


def test_a_mean_of_half_precision_is_taken_in_float32():
    model, means = make(dtype=torch.bfloat16)
    for value in (1.0, 1.0078125, 1.0078125):
        fill(model, value)
        means.add()
    assert torch.allclose(means._means["0.weight"], torch.tensor(1.0065104), atol=1e-6)
    means.settle()
    assert model[0].weight.dtype == torch.bfloat16
    assert (model[0].weight == 1.0078125).all(), "the nearest there is"


def test_it_goes_on_from_a_checkpoint_to_the_same_bits(tmp_path):
    values = [0.1, 0.30000001, 0.7, 0.2]
    model, whole = make()
    _, again = make()
    again._model = model
    for place, value in enumerate(values):
        fill(model, value)
        whole.add()
        if place == 1:
            whole.save(tmp_path)
            again.load(tmp_path)
        elif place > 1:
            again.add()
    assert torch.equal(again._means["0.weight"], whole._means["0.weight"])


def test_it_begins_anew_with_the_weights_of_now():
    model, means = make()
    for value in (0.1, 0.4):
        fill(model, value)
        several = means.add()
    assert several
    means.begin_anew()
    assert means._count == 1
    assert torch.equal(means._means["0.weight"], model[0].weight.detach())
    fill(model, 0.7)
    assert means.add()
    torch.testing.assert_close(means._means["0.weight"], torch.full((2, 3), 0.6))


def test_before_the_first_evaluation_and_without_it_nothing_changes(tmp_path):
    for enabled in (True, False):
        model, means = make(enabled)
        fill(model, 0.5)
        if not enabled:
            means.add()
            fill(model, 0.6)
        before = model[0].weight.clone()
        with means.in_place():
            assert torch.equal(model[0].weight, before)
        means.save(tmp_path)
        assert not (tmp_path / MEAN_FILE).exists()
        means.load(tmp_path)
        means.settle()
        assert torch.equal(model[0].weight, before)
