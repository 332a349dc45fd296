"""The space of a search: what it may hold, and every fault of it at once."""

import optuna
import pytest

from account_tax.parameters.config import parse_command_line, resolve
from account_tax.tuning.space import override, read_space
from tests.test_mlproject import REPOSITORY

LR = "train.training.learning_rate"
FLOAT = "{type: float, low: 1.0e-4, high: 5.0e-3, log: true}"
ALPHA_IF_R = (
    "train.lora.alpha: {type: int, low: 8, high: 64, if: {train.lora.r: 8}}\n"
    "train.lora.r: {type: categorical, choices: [4, 8]}\n"
)


@pytest.fixture
def read(tmp_path):
    """Return what reads a space: read(text, "--lora_r=4") gives the space and its faults."""

    def from_text(text, *words):
        (tmp_path / "space.yml").write_text(text)
        resolved = resolve(REPOSITORY, parse_command_line(words))
        return read_space(REPOSITORY, str(tmp_path / "space.yml"), resolved)

    return from_text


def test_the_shipped_space_holds_its_recipe():
    space, faults = read_space(REPOSITORY, "recipes/spaces/starter.yml", resolve(REPOSITORY, []))
    assert faults == []
    assert space.start()[LR] == 0.002
    assert all(each.holds(space.base[each.key]) for each in space.ranges)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train.lora.rr: {type: int, low: 1, high: 9}", "Did you mean train.lora.r?"),
        ("train.training.learing_rate: {type: float}", "Did you mean train.training.learning_rate"),
        ("data.max_length: {type: int, low: 8, high: 64}", "below train"),
        ("train.lora: {type: categorical, choices: [a]}", "below train"),
        ("train.lora.lora_alpha: {type: int, low: 8, high: 64}", "set train.lora.alpha instead"),
        (f"{LR}: {{type: flaot, low: 1, high: 2}}", "Did you mean float?"),
        (f"{LR}: {{type: [float], low: 1, high: 2}}", "type = [float]: unknown"),
        (f"{LR}: {{type: null, low: 1, high: 2}}", "type = null: unknown"),
        ("3", "YAML with keys"),
        ("", "expected dotted keys"),
        (f"{LR}: {FLOAT}\n{LR}: {FLOAT}", "found duplicate key"),
        (f"{LR}: 3", "expected a mapping with type"),
        (f"{LR}: {{type: float, low: 1, high: 2, logg: true}}", "Did you mean log?"),
        (f"{LR}: {{type: float, low: 2, high: 1}}", "an empty range, low = 2"),
        (f"{LR}: {{type: float, low: 1, high: 1}}", "an empty range"),
        (f"{LR}: {{type: float, low: 0, high: 1, log: true}}", "low = 0: expected a number above"),
        (f"{LR}: {{type: float, low: abc, high: 1}}", "low = abc: expected a number"),
        (f"{LR}: {{type: float, low: 1, high: 2, log: true, step: 1}}", "and log false"),
        ("train.lora.r: {type: int, low: 1, high: 10, step: 7}", "the last is 8"),
        (f"{LR}: {{type: float, low: -1, high: 1}}", "low = -1.0: expected a number above 0"),
        ("train.lora.r: {type: float, low: 1, high: 9}", "it is a whole number"),
        ("train.lora.r: {type: int, low: 0, high: 9}", "low = 0: expected a whole number of at"),
        ("train.lora.r: {type: categorical, choices: []}", "expected a list of values"),
        ("train.lora.r: {type: categorical, choices: [8]}", "expected several values"),
        ("train.lora.r: {type: categorical, choices: [8, 16, 8]}", "each once"),
        ("train.lora.r: {type: categorical, choices: [8, x]}", "choices = x: expected a whole"),
        ("train.lora.bias: {type: categorical, choices: [none, al]}", "expected one of none, all"),
        (f"{LR}: {{type: float, low: 1, high: 2, if: {{train.lora.r: 8}}}}", "not in the space"),
        (ALPHA_IF_R.replace("r: 8}}", "r: 7}}"), "train.lora.r is never 7"),
        (f"{LR}: {{type: float, low: 1.0e-4, high: 1.0e-3}}", "first trial, outside its range"),
        ("- a", "YAML with keys: it is a list"),
    ],
)
def test_a_fault_is_said(read, text, said):
    _, faults = read(text)
    assert len(faults) == 1
    assert said in faults[0]


def test_a_step_that_reaches_the_end_but_for_rounding_is_no_fault(read):
    _, faults = read("train.training.warmup_ratio: {type: float, low: 0.0, high: 0.3, step: 0.1}")
    assert faults == []  # 0.3 / 0.1 is 2.9999999999999996


def test_all_faults_are_said_together(read):
    _, faults = read("train.lora.rr: {type: int}\ntrain.lora.r: {type: int, low: 9, high: 1}\nx: 1")
    assert len(faults) == 3


def test_a_missing_file_names_those_there_are():
    _, (fault,) = read_space(REPOSITORY, "recipes/spaces/startr.yml", resolve(REPOSITORY, []))
    assert "Did you mean recipes/spaces/starter.yml?" in fault


def test_a_condition_leaves_a_key_out(read):
    space, faults = read(ALPHA_IF_R)
    assert faults == []
    assert space.suggest(optuna.trial.FixedTrial({"train.lora.r": 4})) == {"train.lora.r": 4}
    both = {"train.lora.r": 8, "train.lora.alpha": 9}
    assert space.suggest(optuna.trial.FixedTrial(both)) == both
    assert space.start() == {"train.lora.r": 8, "train.lora.alpha": 16}


def test_a_list_is_one_choice(read):
    key = "train.lora.target_modules"
    space, faults = read(
        f"{key}: {{type: categorical, choices: [[query, value], all-linear]}}",
    )
    assert faults == []
    assert space.ranges[0].choices == ("[query,value]", "all-linear")
    words = [f"--{name}={text}" for name, text in override([], {key: "[query,value]"})]
    lora = resolve(REPOSITORY, parse_command_line(words)).values["train"]["lora"]
    assert lora["target_modules"] == ["query", "value"]


def test_a_trial_has_every_digit(read):
    value = 0.0018346271233459871
    words = [f"--{name}={text}" for name, text in override([(LR, "1")], {LR: value})]
    resolved = resolve(REPOSITORY, parse_command_line(words))
    assert resolved.values["train"]["training"]["learning_rate"] == value
