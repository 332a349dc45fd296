"""Layers below the first trained one are left out where that is exact, and nowhere else."""

from __future__ import annotations

import os
import tempfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import TrainingArguments, set_seed
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.bert import modeling_bert

from account_tax.model.classifier import load_tokenizer, resolve_base
from account_tax.pipelines.train import frozen
from account_tax.pipelines.train import training_core as core
from account_tax.pipelines.train.callbacks import EngineTimeCallback
from account_tax.pipelines.train.engine import EngineCallback
from account_tax.pipelines.train.frozen import FrozenLayers, _open_that, frozen_layers, open_shared
from account_tax.pipelines.train.saving import answer_probe
from tests.bases import FAMILIES, make_base
from tests.conftest import make_splits, train_params

UPPER = {"lora.layers_to_transform": [1]}
KINDS = [(family, "cls") for family in FAMILIES if family != "albert"]  # whose layers are one


@pytest.fixture
def train(tiny_base, tmp_path):
    """Return what trains the tiny base, without DeepSpeed, and tells what became of it."""

    def train(base=tiny_base, whole=False, training=None, **changed):
        set_seed(42)
        params = train_params(base, **{"training.report_to": [], **changed})
        tokenizer = load_tokenizer(resolve_base(str(base)))
        model = core.instantiate_model({**params["model"], "num_labels": 3}, tokenizer)
        model = core.apply_lora_adapters(model, params["lora"])
        given = {"max_steps": 8, "per_device_eval_batch_size": 4, "eval_strategy": "steps"}
        given |= {"learning_rate": 1e-2, "logging_steps": 1, "eval_steps": 4}
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "checkpoints"),
            label_names=["labels"],
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            **given | (training or {}),
        )
        splits = make_splits({"train": 21, "validation": 7})
        trainer = core._build_trainer(model, tokenizer, arguments, splits, params, tmp_path)
        for of_engine in (EngineTimeCallback, EngineCallback):  # there is no DeepSpeed here
            trainer.remove_callback(of_engine)
        if whole:
            trainer.remove_callback(FrozenLayers)
        trainer.train()
        history = [
            entry.get("loss", entry.get("eval_loss")) for entry in trainer.state.log_history[:-1]
        ]
        weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
        probe = answer_probe(trainer, tokenizer)["logits"]
        return SimpleNamespace(count=trainer.frozen.count, history=history, weights=weights,
                               probe=np.array(probe), trainer=trainer)  # fmt: skip

    return train


@pytest.mark.parametrize(("family", "pooling"), [*KINDS, ("bert", "mean"), ("qwen2", "mean")])
def test_a_training_without_the_lower_layers_is_the_same(train, tmp_path, family, pooling):
    base = make_base(tmp_path / "base", family)
    changed = {**UPPER, "lora.target_modules": FAMILIES[family][2], "model.pooling": pooling}
    left_out, whole = (train(base, each, **changed) for each in (False, True))
    assert (left_out.count, whole.count) == (1, 0)
    assert len(set(left_out.history)) == len(left_out.history) == 10  # it learns
    np.testing.assert_allclose(left_out.history, whole.history, rtol=1e-5)
    np.testing.assert_allclose(left_out.probe, whole.probe, rtol=1e-3, atol=1e-4)
    for name, weight in whole.weights.items():
        torch.testing.assert_close(left_out.weights[name], weight, rtol=1e-3, atol=1e-4)


def test_two_trainings_have_the_same_bits(train):
    first, second = (train(**UPPER) for _ in range(2))
    assert first.count == 1
    assert first.history == second.history
    assert np.array_equal(first.probe, second.probe)


NOISE = "dropout or noise is active in them or below"
REENTRANT = {"gradient_checkpointing": True}  # torch's default, where the words are others
REENTRANT |= {"gradient_checkpointing_kwargs": {"preserve_rng_state": True}}


@pytest.mark.parametrize(
    ("changed", "training", "why"),
    [
        ({"lora.layers_to_transform": None}, {}, None),  # adapters in the first layer, too
        ({"lora.bias": "all"}, {}, None),
        ({"lora.modules_to_save": ["word_embeddings"]}, {}, "something below them is trained"),
        ({"model.config": {"hidden_dropout_prob": 0.1}}, {}, NOISE),
        ({"model.config": {"attention_probs_dropout_prob": 0.1}}, {}, NOISE),
        ({}, {"neftune_noise_alpha": 5.0}, NOISE),
        ({}, {"max_steps": 3}, "there is no second epoch"),
        ({}, REENTRANT, "use_reentrant, which needs a gradient from below"),
    ],
)
def test_where_the_lower_layers_are_not_the_same_in_every_epoch_they_are_computed(
    train, caplog, changed, training, why
):
    with caplog.at_level("INFO"):
        assert train(training=training, **UPPER | changed).count == 0
    assert ("computed in each step" in caplog.text) == bool(why)
    assert (why or "") in caplog.text


def test_a_network_that_goes_around_its_layers_is_trained_whole(
    train, tmp_path, monkeypatch, caplog
):
    def around(self, hidden_states, attention_mask=None, **kwargs):
        first = self.layer[0](hidden_states, attention_mask)
        upper = self.layer[2](self.layer[1](first, attention_mask), attention_mask)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=upper + first)

    base = make_base(tmp_path / "base", "bert", num_hidden_layers=3)
    top = {"lora.layers_to_transform": [2]}
    assert train(base, **top).count == 2
    monkeypatch.setattr(modeling_bert.BertEncoder, "forward", around)
    with caplog.at_level("INFO"):
        assert train(base, **top).count == 0
    assert "what is above them needs more than they answer" in caplog.text


def test_dropout_above_and_gradient_checkpointing_are_no_obstacle(train):
    adapters = {"lora.dropout": 0.1, "model.gradient_checkpointing": True}
    found = train(training={"gradient_checkpointing": True}, **UPPER, **adapters)
    assert found.count == 1


def test_workers_load_the_states_too(train):
    alone, workers = (train(training={"dataloader_num_workers": n}, **UPPER) for n in (0, 2))
    assert workers.count == 1
    assert workers.history == alone.history


def test_a_disk_that_is_too_full_is_said_and_the_training_goes_on(train, monkeypatch, caplog):
    usage = SimpleNamespace(free=10_000)
    monkeypatch.setattr(frozen.shutil, "disk_usage", lambda path: usage)
    with caplog.at_level("INFO"):
        found = train(**UPPER)
    assert found.count == 0
    assert f"computed in each step: TMPDIR = {tempfile.gettempdir()} has no" in caplog.text


def test_after_the_training_the_whole_network_answers_and_the_disk_is_free(train):
    trainer = train(**UPPER).trainer
    assert not any("forward" in vars(layer) for layer in trainer.model.modules())
    assert trainer.train_dataset.states is trainer.eval_dataset.states is None


def test_layers_that_are_left_out_never_answer_with_what_was_fed_before(train):
    trainer = train(**UPPER).trainer
    trainer.frozen._cut(frozen_layers(trainer.model))
    with pytest.raises((TypeError, AttributeError)):
        trainer.predict(trainer.eval_dataset)


def test_the_file_has_no_name_and_its_bytes_are_reserved(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file, ranks = open_shared(1 << 20)
    assert ranks == [0]
    assert os.fstat(file.fileno()).st_size == 1 << 20
    assert os.fstat(file.fileno()).st_blocks * 512 >= 1 << 20
    assert list(tmp_path.iterdir()) == []
    path, inode = f"/proc/{os.getpid()}/fd/{file.fileno()}", os.fstat(file.fileno()).st_ino
    assert _open_that(path, inode) is not None
    assert _open_that(path, inode + 1) is None  # another container's, by the same number
