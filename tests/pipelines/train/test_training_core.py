"""The specification's functions, each on a two-layer base."""

from __future__ import annotations

import json
import os
import re
import time

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from mlflow import MlflowClient
from transformers import AutoTokenizer, EvalPrediction, TrainingArguments

from account_tax.pipelines.train import training_core
from account_tax.pipelines.train.callbacks import EngineTimeCallback
from account_tax.pipelines.train.engine import EngineCallback
from account_tax.pipelines.train.training_core import (
    _build_trainer,
    _summarize,
    apply_lora_adapters,
    build_deepspeed_config,
    build_training_arguments,
    compute_metrics,
    instantiate_model,
    run_training_pipeline,
)
from account_tax.storage.names import METRICS_FOLDER
from account_tax.tracking.metric_journal import journal_file, read_points
from account_tax.tracking.metric_sender import close_metrics, open_metrics
from tests.bases import make_base
from tests.conftest import make_splits, train_params

MICRO = "train_micro_batch_size_per_gpu"

LORA = {"r": 4, "alpha": 8, "target_modules": ["query", "value"], "dropout": 0.0, "bias": "none"}


@pytest.fixture
def model(tiny_base):
    config = {"name": str(tiny_base), "num_labels": 3}
    return instantiate_model(config, AutoTokenizer.from_pretrained(tiny_base))


def test_everything_the_specification_names_is_there():
    for name in training_core.__all__:
        assert callable(getattr(training_core, name))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_instantiate_model_sets_labels_and_float32(tiny_base, pooling):
    config = {"name": str(tiny_base), "labels": ["rent", "fees"], "pooling": pooling}
    model = instantiate_model(config, AutoTokenizer.from_pretrained(tiny_base))
    assert model.config.id2label == {0: "rent", 1: "fees"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.accepts_loss_kwargs is False


def test_instantiate_model_turns_gradient_checkpointing_on(tiny_base):
    config = {"name": str(tiny_base), "num_labels": 3, "gradient_checkpointing": True}
    model = instantiate_model(config, AutoTokenizer.from_pretrained(tiny_base))
    assert model.is_activation_checkpointing


def test_lora_trains_adapters_head_and_what_the_base_lacks(model):
    peft_model = apply_lora_adapters(model, LORA | {"task_type": "SEQ_CLS"})
    trained = {name for name, p in peft_model.named_parameters() if p.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any("classifier" in name for name in trained)
    assert any("pooler" in name for name in trained)  # the base was saved without one
    assert not any("embeddings" in name for name in trained)


def test_target_modules_that_match_nothing_are_refused_with_those_there_are(model):
    with pytest.raises(ValueError, match=r"called q_proj. There are: .*query.*value"):
        apply_lora_adapters(model, LORA | {"target_modules": ["q_proj"]})


def test_every_name_of_target_modules_must_match_and_the_head_is_none_of_them(model):
    for wrong, hint in (("valu", "Did you mean value?"), ("x", "dense, key, query, value.")):
        with pytest.raises(ValueError, match="no layer for it") as refused:
            apply_lora_adapters(model, LORA | {"target_modules": ["query", wrong]})
        assert f"is called {wrong}. " in str(refused.value)
        assert str(refused.value).endswith(hint)


@pytest.mark.parametrize(
    ("name", "changed"), [("classifier", {}), ("query", {"modules_to_save": ["query"]})]
)
def test_what_is_trained_whole_has_no_adapter(model, name, changed):
    with pytest.raises(ValueError, match=rf"target_modules = .*: {name} is trained whole"):
        apply_lora_adapters(model, LORA | {"target_modules": ["value", name], **changed})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("modules_to_save", ["poler"], "called poler. Did you mean pooler?"),
        ("exclude_modules", ["pooler", "ky"], "called ky. Did you mean key?"),
        ("rank_pattern", {"query": 2, "valu": 2}, "called valu. Did you mean value?"),
        ("modules_to_save", ["ooler"], "called ooler. Did you mean pooler?"),
        ("modules_to_save", ["1"], "called 1. There are: "),
        ("modules_to_save", [".*dense"], "called .*dense. Did you mean dense?"),
        ("target_modules", [".*query"], "called .*query. Did you mean query?"),
        ("target_modules", ["("], "There are: dense"),
        ("alpha_pattern", {r"layer\.[0-9]+\..*query": 2, r"layer\.7\..*query": 2}, "There are: "),
    ],
)
def test_every_other_name_of_a_module_must_match_too(model, key, value, said):
    with pytest.raises(ValueError, match=rf"train\.lora\.{key} = .*no layer for it is .*{said}"):
        apply_lora_adapters(model, LORA | {key: value})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"target_modules": ["attention"]},
            "target_modules = .*no layer for it is called attention",
        ),
        ({"exclude_modules": ["attention"]}, "exclude_modules = .*no layer for it is called atten"),
        ({"rank_pattern": {"layer.0": 2}}, "rank_pattern = .*no layer for it is called layer.0"),
        (
            {"target_modules": ["value"], "rank_pattern": {"query": 2}},
            "rank_pattern = {'query': 2}: no layer is changed by query. Adapted are: value.",
        ),
        (
            {"target_modules": ["value"], "alpha_pattern": {"query": 2}},
            "alpha_pattern = {'query': 2}: no layer is changed by query. Adapted are: value.",
        ),
        (
            {"target_modules": ["query"], "exclude_modules": ["value"]},
            "exclude_modules = .*: value is no part of target_modules",
        ),
        (
            {"target_modules": ["query"], "exclude_modules": ["query", "value"]},
            "exclude_modules = .*: nothing is left of target_modules",
        ),
        (
            {"target_modules": "all-linear", "exclude_modules": ["query", "value", "key", "dense"]},
            "exclude_modules = .*: nothing is left of target_modules",
        ),
        (
            {"target_modules": ["query"], "exclude_modules": ".*query"},
            "exclude_modules = .*: nothing is left of target_modules",
        ),
        (
            {"target_modules": "all-linear", "exclude_modules": ".*LayerNorm"},
            "exclude_modules = .*: .*LayerNorm is no part of target_modules",
        ),
        (
            {"target_modules": ["query", "word_embeddings"], "layers_to_transform": [0]},
            "target_modules = .*: no layer is changed by word_embeddings. Adapted are: query.",
        ),
    ],
)
def test_a_name_that_would_change_nothing_is_a_fault(model, changed, said):
    with pytest.raises(ValueError, match=rf"train\.lora\.{said}"):
        apply_lora_adapters(model, LORA | changed)


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("other", ["layer.0.attention.self.query", "q.*"])
def test_a_layer_that_fits_two_keys_of_two_values_is_a_fault(model, key, other):
    said = rf"{key} = .*: \S+\.query fits query and {re.escape(other)}, whose values differ"
    with pytest.raises(ValueError, match=said):
        apply_lora_adapters(model, LORA | {key: {"query": 2, other: 4}})


def test_a_layer_may_fit_two_keys_of_one_value(model):
    assert apply_lora_adapters(model, LORA | {"rank_pattern": {"query": 2, "q.*": 2}})


@pytest.mark.parametrize(
    ("key", "value"),
    [("rank_pattern", {"(": 2}), ("exclude_modules", "("), ("target_modules", "(")],
)
def test_what_is_no_expression_is_said_of_its_own_key(model, key, value):
    with pytest.raises(ValueError, match=rf"train\.lora\.{key} = .*is no regular expression"):
        apply_lora_adapters(model, LORA | {"exclude_modules": ["key"], key: value})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"r": 100000}, r"\.r = 100000: expected at most 32, the highest rank"),
        ({"rank_pattern": {"query": 64}}, r"\.rank_pattern.query = 64: expected at most 32"),
        ({"layers_to_transform": [0, 99]}, r"layers_to_transform = \[0, 99\]: the base has the l"),
        ({"layers_to_transform": -1}, r"layers_to_transform = -1: the base has the layers 0 to 1"),
        (
            {"layers_to_transform": [0], "target_modules": "all-linear"},
            r"layers_to_transform = \[0\]: set train.lora.target_modules to a list too, as in dens",
        ),
        ({"layers_pattern": "layer"}, r"layers_pattern = layer: no layers_to_transform is given"),
        (
            {"layers_to_transform": [0], "layers_pattern": "nosuch"},
            r"layers_pattern = nosuch: expected names of layer, below which layers are numbered",
        ),
        ({"init_lora_weights": "foo"}, r"init_lora_weights = foo: "),
        ({"use_dora": True, "lora_bias": True}, r"(use_dora|lora_bias) = True: "),
        ({"layer_replication": [[0, 99]]}, r".*Given are .*layer_replication"),
        ({"r": 7, "init_lora_weights": "orthogonal"}, r"init_lora_weights = orthogonal: .*even"),
        ({"target_modules": ["LayerNorm"]}, r"target_modules = \['LayerNorm'\]: "),
        ({"trainable_token_indices": [77777]}, r"trainable_token_indices = \[77777\]: IndexErr"),
        ({"trainable_token_indices": {"nothere": [1]}}, r"trainable_token_indices = \{'noth"),
    ],
)
def test_what_peft_refuses_or_leaves_out_is_said_of_its_own_key(model, changed, said):
    with pytest.raises(ValueError, match=r"^train\.lora.*" + said):
        apply_lora_adapters(model, LORA | {"target_modules": ["query", "value"], **changed})


def test_layers_are_those_that_have_a_number_of_their_own(tmp_path):
    base = make_base(tmp_path, "albert", num_hidden_layers=4)  # four times one layer
    model = instantiate_model(
        {"name": str(base), "num_labels": 2}, AutoTokenizer.from_pretrained(base)
    )
    with pytest.raises(ValueError, match=r"\[0, 3\]: the base has the layers 0 to 0\.$"):
        apply_lora_adapters(model, LORA | {"layers_to_transform": [0, 3]})
    assert apply_lora_adapters(model, LORA | {"layers_to_transform": []})  # all, says PEFT


@pytest.mark.parametrize(("rows", "epochs"), [(64, 12), (160, 9), (2000, 6)])
def test_a_small_split_is_gone_through_more_often(tiny_base, tmp_path, rows, epochs):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    params = train_params(tiny_base, **{"training.num_train_epochs": "auto"})
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, report_to=[], use_cpu=True
    )
    splits = make_splits({"train": rows, "validation": 8})
    model = instantiate_model({"name": str(tiny_base), "num_labels": 3}, tokenizer)
    trainer = _build_trainer(model, tokenizer, arguments, splits, params, tmp_path)
    assert trainer.args.num_train_epochs == epochs  # of 8 rows a step


def test_faults_of_lora_are_said_together(model):
    wrong = {"target_modules": ["foo"], "modules_to_save": ["bar"], "rank_pattern": {"nosuch": 4}}
    with pytest.raises(ValueError, match="called foo") as refused:
        apply_lora_adapters(model, LORA | wrong)
    lines = str(refused.value).splitlines()
    assert [line.partition(" = ")[0].rpartition(".")[2] for line in lines] == [
        "modules_to_save",
        "target_modules",
        "rank_pattern",
    ]
    assert "There are: 0" not in lines[0]


def test_any_other_lora_field_is_accepted(model):
    peft_model = apply_lora_adapters(model, LORA | {"use_rslora": True})
    assert peft_model.peft_config["default"].use_rslora is True


def test_arguments_take_batch_sizes_and_clipping_from_the_deepspeed_block(tiny_base, tmp_path):
    params = train_params(
        tiny_base,
        **{
            "deepspeed.train_micro_batch_size_per_gpu": 6,
            "deepspeed.gradient_accumulation_steps": 5,
            "deepspeed.gradient_clipping": 0.3,
        },
    )
    arguments = build_training_arguments(params, str(tmp_path))
    assert arguments.per_device_train_batch_size == 6
    assert arguments.gradient_accumulation_steps == 5
    assert arguments.max_grad_norm == 0.3
    assert arguments.output_dir == str(tmp_path / "checkpoints")


def test_what_transformers_5_dropped_is_mapped(tiny_base, tmp_path):
    params = train_params(tiny_base, **{"training.warmup_ratio": 0.1, "training.max_steps": None})
    arguments = build_training_arguments(params, str(tmp_path))
    assert arguments.max_steps == -1
    assert arguments.get_warmup_steps(200) == 20


def test_any_other_training_field_is_accepted(tiny_base, tmp_path):
    params = train_params(tiny_base, **{"training.lr_scheduler_type": "cosine"})
    assert build_training_arguments(params, str(tmp_path)).lr_scheduler_type == "cosine"


def test_mlflow_is_logged_by_our_callback_and_not_by_transformers(tiny_base, tmp_path):
    arguments = build_training_arguments(train_params(tiny_base), str(tmp_path))
    assert arguments.report_to == []


def test_building_arguments_leaves_the_parameters_alone(tiny_base, tmp_path):
    params = train_params(tiny_base)
    before = json.dumps(params, sort_keys=True)
    build_training_arguments(params, str(tmp_path))
    assert json.dumps(params, sort_keys=True) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to offload from")
def test_nothing_is_offloaded_where_there_is_no_gpu():
    block = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    }
    config = build_deepspeed_config(block, {"bf16": True})
    assert "offload_optimizer" not in config["zero_optimization"]
    assert config["bf16"] == {"enabled": True}
    assert "offload_optimizer" in block["zero_optimization"]


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_compute_metrics_agrees_with_counting_by_hand(average):
    logits = np.array([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0], [3.0, 1.0]])  # predicts 0 0 1 0
    labels = np.array([0, 1, 1, 0])
    found = compute_metrics(EvalPrediction(logits, labels), average=average)
    # class 0: precision 2/3, recall 1, F1 0.8; class 1: precision 1, recall 1/2, F1 2/3
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert found["precision"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["recall"] == pytest.approx(3 / 4)


# --- the metrics of a short training --------------------------------------------------------------


@pytest.fixture
def trainer_of(tiny_base, tmp_path):
    """Return what makes a trainer, without DeepSpeed: trainer_of(averaging, max_steps=4)."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)

    def make(averaging=False, **training):
        params = train_params(tiny_base, **{"averaging.enable": averaging})
        model = instantiate_model({"name": str(tiny_base), "num_labels": 3}, tokenizer)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "checkpoints"),
            per_device_train_batch_size=8,
            label_names=["labels"],
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            **training,
        )
        splits = make_splits({"train": 64, "validation": 8})
        trainer = _build_trainer(model, tokenizer, arguments, splits, params, tmp_path)
        for of_engine in (EngineTimeCallback, EngineCallback):  # there is no DeepSpeed here
            trainer.remove_callback(of_engine)
        return trainer

    return make


@pytest.fixture
def points(trainer_of, tmp_path, monkeypatch):
    """Return what trains and returns the metric points, (step, value), by key, and the summary."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", MlflowClient(uri).create_run("0").info.run_id)

    def train(resume=None, **training):
        trainer = trainer_of(**training)
        open_metrics(tmp_path)
        result = trainer.train(resume and str(tmp_path / "checkpoints" / resume))
        close_metrics()
        found = list(read_points(journal_file(tmp_path, os.environ["MLFLOW_RUN_ID"])))
        summary = _summarize(trainer, result.metrics, dict.fromkeys(EVALUATED, 0.0))
        (tmp_path / METRICS_FOLDER).rename(tmp_path / f"metrics of {time.time()}")
        return {
            key: [(each.step, each.value) for each in found if each.key == key] for key in LOGGED
        }, summary

    return train


LOGGED = ("train/loss", "train/learning_rate", "speed/tokens_per_sec")
EVALUATED = [f"eval_{name}" for name in ("loss", "accuracy", "f1", "precision", "recall")]


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"max_steps": 5, "logging_steps": 10}, [5]),
        ({"max_steps": 5, "logging_steps": 2}, [2, 4, 5]),
        ({"max_steps": 6, "logging_steps": 3}, [3, 6]),
        ({"num_train_epochs": 1, "logging_steps": 100}, [8]),
        ({"max_steps": 5, "logging_strategy": "epoch"}, [5]),
    ],
)
def test_the_last_step_is_logged_and_once(points, training, steps):
    logged, summary = points(**training)
    for key in LOGGED:
        assert [step for step, _ in logged[key]] == steps, key
    assert min(speed for _, speed in logged["speed/tokens_per_sec"]) > 0
    assert summary["speed/tokens_per_sec"] > 0


def test_a_resumed_training_logs_its_last_step_as_an_uninterrupted_one(points):
    save = {"logging_steps": 10, "save_strategy": "steps", "save_steps": 3}
    whole, _ = points(max_steps=5, **save)
    resumed, summary = points(resume="checkpoint-3", max_steps=5, **save)
    assert resumed["train/loss"] == [(5, pytest.approx(whole["train/loss"][0][1], rel=1e-6))]
    assert resumed["train/learning_rate"] == whole["train/learning_rate"]
    assert summary["speed/tokens_per_sec"] == resumed["speed/tokens_per_sec"][0][1] > 0
    _, nothing_left = points(resume="checkpoint-5", max_steps=5, **save)
    assert "speed/tokens_per_sec" not in nothing_left


EVERY_TWO = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
BEST = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": False}


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.parametrize(
    ("training", "again"),
    [
        (EVERY_TWO | {"max_steps": 6}, False),
        (EVERY_TWO | BEST | {"max_steps": 6, "learning_rate": 1e-3}, False),
        (
            EVERY_TWO | BEST | {"max_steps": 6, "learning_rate": 2.0},
            False,
        ),  # an earlier one is best
        (EVERY_TWO | {"max_steps": 5, "save_strategy": "no"}, False),  # the last step is, always
        ({"max_steps": 2}, True),
    ],
)
def test_weights_that_were_evaluated_are_not_evaluated_again(
    trainer_of, training, again, averaging
):
    trainer, ran = trainer_of(averaging, **training), []
    trainer.train()
    answer = trainer._answer
    trainer._answer = lambda *args, **kwargs: ran.append(1) or answer(*args, **kwargs)
    kept = trainer.evaluate_kept()
    assert len(ran) == again
    assert kept["eval_loss"] == trainer.state.log_history[-1]["eval_loss"]
    anew = trainer.evaluate()
    assert {key: kept[key] for key in EVALUATED} == {key: anew[key] for key in EVALUATED}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("trust_remote_code", True, "not a field that may be set"),
        ("use_safetensors", False, "not a field that may be set"),
        ("use_kernels", True, "not a field that may be set"),
        ("num_labels", 7, "not a field that may be set"),
        ("id2label", {0: "x"}, "not a field that may be set"),
        ("hidden_dropout_prop", 0.0, "Did you mean hidden_dropout_prob?"),
        ("attn_implementation", "kernels-community/flash-attn", "one of eager, sdpa"),
        ("attn_implementation", "flash_attention_2", "one of eager, sdpa"),
    ],
)
def test_only_fields_of_the_bases_own_configuration_are_taken(tiny_base, field, value, said):
    config = {"name": str(tiny_base), "num_labels": 3, "config": {field: value}}
    with pytest.raises(ValueError, match=rf"train\.model\.config\.{field} = .*{said}"):
        instantiate_model(config, AutoTokenizer.from_pretrained(tiny_base))


def test_rows_that_ranks_can_not_share_end_a_training_started_by_hand(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    block = {"train_batch_size": 32}
    with pytest.raises(ValueError, match=r"can't be shared by 3 \(ranks, num_gpus\)"):
        run_training_pipeline(DatasetDict(), None, {"deepspeed": block}, str(tmp_path))


@pytest.mark.parametrize("block", [{"train_batch_size": 32}, {"train_batch_size": 32, MICRO: 48}])
def test_a_check_of_the_arguments_leaves_the_rows_of_a_step_to_the_plan(block):
    config = build_deepspeed_config(block, {})
    assert config.get("train_batch_size") is None
    assert (config[MICRO], config["gradient_accumulation_steps"]) == (block.get(MICRO, 32), 1)
