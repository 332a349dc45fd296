"""What is refused before a rank starts, all at once, on tiny bases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from account_tax.model import classifier
from account_tax.model.calibration import least_rows
from account_tax.pipelines import check as checks
from account_tax.pipelines.check import check, floors_in_words
from account_tax.pipelines.train import training_core
from account_tax.pipelines.train.rehearsal import find_loading_faults, find_trainer_faults
from tests.bases import FAMILIES, make_base, make_tokenizer
from tests.conftest import train_params

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def two_accounts(tmp_path) -> dict:
    """Return the parameters of a ledger of two accounts of 30 rows, and a rare one."""
    rows = [f"line {i},{'ab'[i % 2]}" for i in range(60)]
    (tmp_path / "x.csv").write_text("\n".join(["text,label", *rows, "once,rare"]))
    data = yaml.safe_load((ROOT / "conf/base/parameters/data.yml").read_text())["data"]
    return data | {"source": str(tmp_path / "x.csv")}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_base(folder / name, name) for name in FAMILIES}


FLOORS = {"min_class_recall": 0.4, "min_class_f1": None, "class_floor_rows": 20}
FLOORS |= {"min_class_rows": 3, "pool_small_accounts": False}


@pytest.mark.parametrize(
    ("rows", "pooled", "said"),
    [
        ({"a": 20, "b": 40}, False, ""),
        (
            {"a": 20, "b": 4, "c": 5},
            False,
            "min_class_recall will leave out 2 of 3 accounts, of fewer than 20 test rows: b (4), "
            "c (5) (registry.gates.pool_small_accounts=true measures them together)",
        ),
        (
            {"a": 2, "b": 4},
            False,
            "min_class_recall will not be measurable: 2 of 2 accounts have fewer than 20 test "
            "rows: a (2), b (4) (registry.gates.pool_small_accounts=true measures them together); "
            "min_class_rows will fail: fewer than 3 test rows of a (2)",
        ),
        (
            {"a": 12, "b": 14, "c": 30},
            True,
            "min_class_recall will measure 2 of 3 accounts together, by 26 test rows: a (12), "
            "b (14)",
        ),
        (
            {"a": 12, "b": 2},
            True,
            "min_class_recall will not be measurable: 2 of 2 accounts have fewer than 20 test "
            "rows: a (12), b (2), together too",
        ),
    ],
)
def test_floors_that_a_review_can_not_measure_are_said_before_the_training(rows, pooled, said):
    assert floors_in_words(FLOORS | {"pool_small_accounts": pooled}, rows) == said


def test_no_floor_asked_for_is_no_word():
    gates = FLOORS | {"min_class_recall": None, "min_class_rows": None}
    assert floors_in_words(gates, {"a": 1}) == ""


def test_the_dry_run_has_the_floors(two_accounts):
    gates = FLOORS | {"min_class_f1": 0.4}
    found = check({"data": two_accounts, "registry": {"gates": gates}})
    assert found["ledger"]["gates"].startswith("min_class_recall and min_class_f1 will not be")
    assert "rare" not in found["ledger"]["gates"]


@pytest.mark.parametrize("more", [-1, 0])
def test_the_dry_run_says_where_no_threshold_can_be_promised(tmp_path, two_accounts, more):
    """At one validation row more there may be one, if all are right."""
    least = least_rows(0.95, 0.95)
    for name, count in {"train": 90, "validation": least + more, "test": 40}.items():
        rows = [f"{name} {i},{'ab'[i % 2]}" for i in range(count)]
        (tmp_path / "ledger").mkdir(exist_ok=True)
        (tmp_path / f"ledger/{name}.csv").write_text("\n".join(["text,label", *rows]))
    data = two_accounts | {"source": str(tmp_path / "ledger")}
    found = check({"data": data, "registry": {"target_precision": 0.95, "guarantee": 0.95}})
    said = found["ledger"].get("threshold", "")
    assert found["rows"]["validation"] == least + more
    assert (f"at least {least} validation rows, and there are {least - 1}" in said) is (more < 0)


def faults(base, **changes) -> list[str]:
    return check({"train": train_params(base, **changes)})["faults"]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_speaks_against_a_base_that_can_be_registered(bases, family):
    changes = {"lora.target_modules": FAMILIES[family][2]}
    for pooling in ("cls", "mean"):
        assert faults(bases[family], **changes, **{"model.pooling": pooling}) == []


def test_the_padding_token_that_is_used_is_reported(bases):
    changes = {"lora.target_modules": ["q_proj"]}
    assert check({"train": train_params(bases["llama"], **changes)})["padding_token"] == "[SEP]"


def test_the_shipped_recipe_of_roberta_shape_passes(bases):
    recipe = yaml.safe_load((ROOT / "recipes/xlm-roberta-large-zero3.yml").read_text())
    own = recipe["train"]["lora"] | {"target_modules": "all-linear"}
    assert faults(bases["xlm-roberta"], **{f"lora.{key}": own[key] for key in own}) == []


def test_a_head_that_is_wrapped_twice_is_found_before_the_training(bases, monkeypatch):
    twice = ["classifier.dense", "classifier.out_proj", "classifier"]
    monkeypatch.setattr(training_core, "_trained_whole", lambda model, given: twice)
    (fault,) = faults(bases["roberta"])
    assert fault.startswith(f"train.model.name = {bases['roberta']}: can't be built")
    assert "classifier.dense.weight" in fault


def test_another_network_when_loaded_back_is_found(bases, monkeypatch):
    build = classifier.build_classifier
    monkeypatch.setattr(
        classifier, "build_classifier", lambda *a, like=None, **options: build(*a, **options)
    )
    (fault,) = faults(bases["bert"], **{"model.config": {"hidden_act": "relu"}})
    assert "what is trained could not be registered" in fault


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"training.optim": "adamw_bnb_8bit"}, "optim"),
        ({"training.lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type"),
        ({"training.dataloader_prefetch_factor": 2}, "dataloader_prefetch_factor"),
        ({"training.tf32": True}, "tf32"),
        ({"training.accelerator_config": {"use_configured_state": True}}, "accelerator_config"),
        # What the evaluation ends with.
        ({"training.batch_eval_metrics": True}, "batch_eval_metrics"),
        ({"training.gradient_checkpointing_kwargs": {"foo": 1}}, "gradient_checkpointing_kwargs"),
        ({"training.eval_do_concat_batches": False}, "eval_do_concat_batches"),
        ({"training.per_device_eval_batch_size": 0}, "per_device_eval_batch_size"),
    ],
)
def test_what_would_end_a_rank_is_named_by_its_key(changes, key):
    params = train_params("any", **{"training.dataloader_num_workers": 0, **changes})
    (fault,) = find_trainer_faults(params)
    assert fault.startswith(f"train.training.{key} = {params['training'][key]}: ")


def test_all_are_said_at_once_and_good_ones_not(bases):
    changes = {"optim": "adamw_bnb_8bit", "tf32": True, "lr_scheduler_type": "cosine_with_min_lr"}
    given = {f"training.{key}": value for key, value in changes.items()}
    found = faults(bases["bert"], **given, **{"lora.target_modules": ["query", "valu"]})
    keys = {fault.partition(" = ")[0] for fault in found}
    assert keys == {"train.lora.target_modules", *(f"train.{key}" for key in given)}
    good = {"training.ddp_backend": "gloo", "training.label_smoothing_factor": 0.1}
    assert find_trainer_faults(train_params("any", **good)) == []


def test_an_error_of_several_lines_is_one_fault_for_each_key_that_begins_one():
    of_a_library = RuntimeError("train.lora.r = 9: no memory\nframe 0\n  frame 1")
    assert checks._model_faults(of_a_library, "b") == [
        "train.lora.r = 9: no memory frame 0 frame 1"
    ]
    two = ValueError("train.lora.r = 0: few.\ntrain.lora.alpha = 0: few.")
    assert checks._model_faults(two, "b") == str(two).splitlines()
    (other,) = checks._model_faults(KeyError("one\ntrain.lora.r"), "b")
    assert other.startswith("train.model.name = b: can't be built as a classifier (KeyError: ")


def test_nothing_is_left_behind(bases, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert faults(bases["bert"], **{"training.output_dir": "data/checkpoints"}) == []
    assert list(tmp_path.iterdir()) == []


def test_positions_that_are_fewer_than_max_length_are_refused(tmp_path):
    for family, positions in (("bert", 32), ("roberta", 34)):
        base = make_base(tmp_path / family, family, max_position_embeddings=positions)
        model = train_params(base)["model"]
        for length, expected in ((33, [f"data.max_length = 33: {base} can't answer"]), (32, [])):
            report = {"faults": []}
            checks._check_model(
                train_params(base) | {"model": model}, {"max_length": length}, report
            )
            assert [fault[: len(expected[0])] for fault in report["faults"]] == expected


@pytest.mark.parametrize("family", ["T5", "Bart"])
def test_an_encoder_with_a_decoder_is_refused(tmp_path, family):
    import transformers

    ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
    small = {"T5": {"d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}}.get(
        family, {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 64}
    )
    config = getattr(transformers, f"{family}Config")(vocab_size=20, d_model=32, **small, **ids)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (fault,) = faults(tmp_path)
    assert "is an encoder with a decoder" in fault


def test_a_tokenizer_without_anything_to_pad_with_is_refused(tmp_path):
    base = make_base(tmp_path / "base", "llama")
    file = base / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("eos_token")
    file.write_text(json.dumps(settings))
    (fault,) = faults(base)
    assert "no end token to pad with" in fault


def test_a_cache_that_cannot_be_written_is_refused(bases, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(checks, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    assert faults(bases["bert"]) == []  # no operator is built
    monkeypatch.setattr(checks, "find_built", lambda train, gpus: ["offload_optimizer"])
    (fault,) = faults(bases["bert"])
    assert fault.startswith(f"TORCH_EXTENSIONS_DIR = {tmp_path}/file/below: it can't be written")
    keys = [fault.partition(" = ")[0] for fault in faults("nobody/nothing")]
    assert keys == ["train.model.name", "TORCH_EXTENSIONS_DIR", "HF_HUB_CACHE"]


def test_a_large_base_is_in_memory_once(bases):
    params = train_params(bases["bert"])
    base = classifier.resolve_base(str(bases["bert"]))
    tokenizer = classifier.load_tokenizer(base)
    labels = ["one", "two"]
    model = training_core.instantiate_model({**params["model"], "labels": labels}, tokenizer)
    settings = {"base": base, "pooling": "cls", "labels": labels, "max_length": 8}
    assert find_loading_faults(model, tokenizer, settings) == []
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_adapters_too_large_for_a_number_are_blamed_themselves(bases):
    (fault,) = faults(bases["bert"], **{"lora.alpha_pattern": {"query": 1e300}})
    assert fault.startswith("train.lora.alpha = ")
    assert "alpha_pattern = {'query': 1e+300}: the adapters' part is so large" in fault


def test_weights_that_only_nearly_come_back_are_found(tmp_path):
    wide = {"hidden_size": 128, "num_hidden_layers": 6, "intermediate_size": 512}
    base = make_base(tmp_path, "bert", **wide)
    # What it takes off the base's weights is drawn anew when it is loaded.
    (fault,) = faults(base, **{"lora.init_lora_weights": "pissa_niter_1"})
    assert "could not be registered" in fault
