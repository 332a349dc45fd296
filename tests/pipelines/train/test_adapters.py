"""LoRA within a layer's products against PEFT's own operations."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import Linear
from transformers import set_seed

from account_tax.model.classifier import load_tokenizer, resolve_base
from account_tax.pipelines.train import adapters
from account_tax.pipelines.train import training_core as core
from account_tax.pipelines.train.adapters import AdapterProducts, is_plain
from tests.bases import FAMILIES, make_base
from tests.conftest import train_params

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 9, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def build(base, **changed):
    """Return a training model with adapters that already say something."""
    set_seed(1)
    params = train_params(base, **changed)
    tokenizer = load_tokenizer(resolve_base(str(base)))
    model = core.instantiate_model({**params["model"], "num_labels": 3}, tokenizer)
    model = core.apply_lora_adapters(model, params["lora"])
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def begin(model, **arguments):
    """Return the callback that has begun, and how many layers it has taken."""
    callback = AdapterProducts(SimpleNamespace(model=model))
    callback.on_train_begin(SimpleNamespace(**{"torch_compile": False, **arguments}), None, None)
    return callback, sum("forward" in layer.__dict__ for layer in model.modules())


def step(model):
    """Return the loss of a step and each trained weight's gradient."""
    model.zero_grad()
    set_seed(7)  # of the bases' dropout
    loss = model(input_ids=IDS, attention_mask=MASK, labels=torch.tensor([0, 2])).loss
    loss.backward()
    return loss, {name: w.grad for name, w in model.named_parameters() if w.requires_grad}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_those_of_peft(tmp_path, family, checkpointing):
    targets = FAMILIES[family][2]
    changed = {"lora.target_modules": targets, "lora.r": 3, "lora.alpha": 7, "lora.dropout": 0.0}
    model = build(make_base(tmp_path / "base", family), **changed)
    if checkpointing and model.supports_gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, gradients = step(model)
    callback, count = begin(model)
    assert count == sum(isinstance(layer, Linear) for layer in model.modules()) > 0
    found, of_products = step(model)
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(of_products[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
    callback.on_train_end(None, None, None)
    assert not any("forward" in layer.__dict__ for layer in model.modules())
    again, _ = step(model)
    assert torch.equal(again, loss)


def test_an_evaluation_and_autocast_are_left_to_peft(tiny_base, monkeypatch):
    model = build(tiny_base, **{"lora.dropout": 0.0})
    begin(model)
    monkeypatch.setattr(adapters._Products, "apply", None)  # whoever calls it fails
    model.eval()
    model(input_ids=IDS, attention_mask=MASK)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        step(model)
    with pytest.raises(TypeError):
        step(model)


@pytest.mark.parametrize(
    "changed",
    [
        {"lora.dropout": 0.1},
        {"lora.use_dora": True},
        {"lora.bias": "all"},
        {"lora.lora_bias": True},
    ],
)
def test_a_layer_that_does_more_is_left_to_peft(tiny_base, changed):
    model = build(tiny_base, **{"lora.dropout": 0.0, **changed})
    assert begin(model)[1] == 0


def test_what_is_trained_whole_compiled_merged_or_of_two_adapters_is_left_alone(tiny_base):
    model = build(tiny_base, **{"lora.dropout": 0.0})
    assert begin(model, torch_compile=True)[1] == 0
    layer = next(layer for layer in model.modules() if is_plain(layer))
    layer.base_layer.weight.requires_grad = True
    assert not is_plain(layer)
    layer.base_layer.weight.requires_grad = False
    layer.update_layer("other", r=2, lora_alpha=2, config=model.peft_config["default"])
    layer.set_adapter(["default", "other"])
    assert not is_plain(layer)
    layer.set_adapter("default")
    assert is_plain(layer)
    with model.disable_adapter():
        assert not is_plain(layer)
    layer.merge()
    assert not is_plain(layer)
    assert not is_plain(layer.base_layer)


def test_an_answer_may_be_changed_in_place_and_be_of_no_rows(tiny_base):
    model = build(tiny_base, **{"lora.dropout": 0.0})
    layer = next(layer for layer in model.modules() if is_plain(layer))
    width = layer.base_layer.in_features
    for shape in ((2, 3, width), (0, 3, width), (0, width), (width,)):
        x = torch.randn(shape, requires_grad=True)
        expected = layer(x) / 2
        (of_peft,) = torch.autograd.grad(expected.sum(), x)
        callback, _ = begin(model)
        found = layer(x).div_(2)  # as Longformer and DeBERTa do
        (of_products,) = torch.autograd.grad(found.sum(), x)
        callback.on_train_end(None, None, None)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(of_products, of_peft)


def test_a_layer_that_is_switched_meanwhile_answers_as_in_peft(tiny_base):
    model = build(tiny_base, **{"lora.dropout": 0.0})
    layer = next(layer for layer in model.modules() if is_plain(layer))
    layer.update_layer("other", r=2, lora_alpha=2, config=model.peft_config["default"])
    torch.nn.init.normal_(layer.lora_B["other"].weight)
    x = torch.randn(2, layer.base_layer.in_features)

    def answers():
        with model.disable_adapter():
            yield layer(x)
        layer.set_adapter("other")
        yield layer(x)
        layer.set_adapter("default")
        layer.merge()
        yield layer(x)
        layer.unmerge()

    expected = list(answers())
    begin(model)
    assert "forward" in layer.__dict__
    torch.testing.assert_close(list(answers()), expected)


def test_a_second_derivative_is_refused(tiny_base):
    model = build(tiny_base, **{"lora.dropout": 0.0})
    layer = next(layer for layer in model.modules() if is_plain(layer))
    begin(model)
    x = torch.randn(2, layer.base_layer.in_features, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
