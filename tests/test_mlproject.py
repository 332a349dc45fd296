import re
import shlex
from pathlib import Path

import pytest
import yaml

from account_tax.export import request as export_request
from account_tax.launch import register as launch_register
from account_tax.parameters.config import parse_command_line, read_aliases, resolve
from account_tax.parameters.options import options_of, read_options, text_of
from account_tax.parameters.schema import LaunchOptions
from account_tax.predict import options as predict_options
from account_tax.reproduce import request as reproduce_request
from account_tax.review import compare as review_compare
from account_tax.review import request as review_request

REPOSITORY = Path(__file__).parents[1]
ENTRY_POINTS = yaml.safe_load((REPOSITORY / "MLproject").read_text())["entry_points"]
# A value for each -P name that differs from every default, and the key it sets.
EXAMPLES = {
    "recipe": ("bert-base", None, "bert-base"),
    "data": ("my ledger's.csv", "data.source", "my ledger's.csv"),
    "text_columns": ("[memo, shop]", "data.text_columns", ["memo", "shop"]),
    "label_column": ("account", "data.label_column", "account"),
    "model": ("org/base", "train.model.name", "org/base"),
    "lora_r": ("3", "train.lora.r", 3),
    "lora_alpha": ("5", "train.lora.alpha", 5),
    "lora_dropout": ("0.3", "train.lora.dropout", 0.3),
    "lora_target_modules": ("key", "train.lora.target_modules", ["key"]),
    "learning_rate": ("3e-4", "train.training.learning_rate", 3e-4),
    "epochs": ("7", "train.training.num_train_epochs", 7.0),
    "max_steps": ("11", "train.training.max_steps", 11),
    "micro_batch_size": ("6", "train.deepspeed.train_micro_batch_size_per_gpu", 6),
    "grad_accum": ("9", "train.deepspeed.gradient_accumulation_steps", 9),
    "max_length": ("99", "data.max_length", 99),
    "zero_stage": ("1", "train.deepspeed.zero_optimization.stage", 1),
    "precision": ("fp16", "train.training.fp16", True),
    "seed": ("13", "train.training.seed", 13),
    "num_gpus": ("2", None, 2),
    "hostfile": ("hosts", None, "hosts"),
    "registered_model_name": ("other", "registry.name", "other"),
    "register": ("false", None, False),
    "allow_unlocked": ("true", "registry.allow_unlocked", True),
    "sign_key": ("key.pem", "registry.sign_key", "key.pem"),
    "resume": ("never", None, "never"),
    "grace_seconds": ("30", None, 30.0),
    "hang_timeout_seconds": ("null", None, None),
    "dry_run": ("true", None, True),
    "verbose": ("true", None, True),
}


@pytest.fixture(scope="module")
def entry_point():
    """MLflow's own reading of the file."""
    from mlflow.projects._project_spec import load_project

    return load_project(str(REPOSITORY)).get_entry_point


def resolve_command(entry_point, given):
    words = shlex.split(entry_point("train").compute_command(given, storage_dir=None))
    assert words[:2] == ["kedro", "train"]
    return resolve(REPOSITORY, parse_command_line(words[2:]))


def test_the_short_names_are_the_ones_people_change():
    own = {name for name in EXAMPLES if hasattr(LaunchOptions, name)} | {"precision"}
    names = read_aliases(REPOSITORY)
    of_tune = {name for key, name in names.items() if key.startswith("tuning.")}
    assert set(names.values()) - of_tune == EXAMPLES.keys() - own


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_p_name_sets_its_key(entry_point, name, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    text, key, value = EXAMPLES[name]
    resolved = resolve_command(entry_point, {name: text})
    if key is None:
        assert getattr(resolved.launch, name) == value
        key = name
    else:
        assert resolved.flat()[key] == value
    assert resolved.sources[key] == f"-P {name}"


# What each command declares; the defaults stand there.
DECLARED = {
    "register": launch_register.Options,
    "review": review_request.Request,
    "compare": review_compare.Request,
    "predict": predict_options.Options,
    "reproduce": reproduce_request.Request,
    "export": export_request.Request,
}


def test_a_default_of_mlflows_stands_among_no_runs_parameters():
    declared = {name: entry.get("parameters", {}) for name, entry in ENTRY_POINTS.items()}
    del declared["test"]
    assert all("default" not in spec for each in declared.values() for spec in each.values())


@pytest.mark.parametrize("name", DECLARED)
def test_mlproject_declares_what_a_command_can_not_do_without(entry_point, name):
    options = {each.name: each for each in options_of(DECLARED[name])}
    required = [option for option, each in options.items() if each.required]
    assert list(ENTRY_POINTS[name].get("parameters", {})) == required
    needed = {option: "a" * 32 for option in required}
    words = shlex.split(entry_point(name).compute_command(needed, storage_dir=None))
    asked, _ = read_options(DECLARED[name], words[2:])
    for option, each in options.items():
        assert text_of(getattr(asked, option)) == needed.get(option, each.default)


def test_nothing_given_is_the_starter_as_it_stands(entry_point):
    resolved = resolve_command(entry_point, {})
    assert resolved.values == resolve(REPOSITORY, []).values


def test_any_other_key_is_reached_by_its_dotted_name(entry_point, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    resolved = resolve_command(entry_point, {"train.lora.bias": "all"})
    assert resolved.values["train"]["lora"]["bias"] == "all"
    assert resolved.sources["train.lora.bias"] == "-P train.lora.bias"


def test_main_is_train():
    assert ENTRY_POINTS["main"] == ENTRY_POINTS["train"]


def test_the_test_entry_point_runs_pytest_with_markers_that_exist(entry_point, pytestconfig):
    words = shlex.split(entry_point("test").compute_command({}, storage_dir=None))
    *first, markers = words
    assert first[:7] == ["python", "-m", "pytest", "-n", "3", "--dist", "loadfile"]
    known = {line.split(":")[0] for line in pytestconfig.getini("markers")}
    assert set(re.findall(r"\w+", markers)) - {"and", "not", "or"} <= known


def test_the_environment_file_is_named():
    project = yaml.safe_load((REPOSITORY / "MLproject").read_text())
    assert project["conda_env"] == "conda.yaml"
