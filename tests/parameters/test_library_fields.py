import ast
import dataclasses
from typing import Any, Literal, Union, get_args

import pytest

from account_tax.parameters.library_fields import class_fields, to_type

TRAINING = ("transformers", "training_args.py", "TrainingArguments")
LORA = ("peft", "tuners/lora/config.py", "LoraConfig")
ZERO = ("deepspeed", "runtime/zero/config.py", "DeepSpeedZeroConfig")


def test_training_arguments_are_read_completely():
    from transformers import TrainingArguments

    assert set(class_fields(*TRAINING)) == {f.name for f in dataclasses.fields(TrainingArguments)}


def test_lora_fields_are_read_completely():
    from peft import LoraConfig, PeftConfig

    inherited = {field.name for field in dataclasses.fields(PeftConfig)}
    own = {field.name for field in dataclasses.fields(LoraConfig)} - inherited
    assert set(class_fields(*LORA)) == own


def test_zero_fields_go_by_their_documented_names():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def current(info):
        return not (isinstance(info.json_schema_extra, dict) and info.json_schema_extra)

    fields = DeepSpeedZeroConfig.model_fields
    assert set(class_fields(*ZERO)) == {i.alias or n for n, i in fields.items() if current(i)}
    assert "stage3_max_live_parameters" in class_fields(*ZERO)


def test_an_enum_becomes_the_names_it_allows():
    from transformers.trainer_utils import SchedulerType

    kind = class_fields(*TRAINING)["lr_scheduler_type"]
    assert set(get_args(kind)) == {member.value for member in SchedulerType}


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        ("int", int),
        ("Optional[float]", float | None),
        ("str | None", str | None),
        ("Union[list[str], str]", Union[list[str], str]),  # noqa: UP007
        ("Color | str", Literal["red", "blue"]),
        ("Literal['a', False]", Literal["a", False]),
        ("Optional[dict]", Union[dict[str, Any], None]),  # noqa: UP007
        ("EvaConfig", dict[str, Any]),
    ],
)
def test_an_annotation_becomes_a_rough_type(annotation, kind):
    node = ast.parse(annotation, mode="eval").body
    assert to_type(node, {"Color": ("red", "blue")}) == kind


def test_a_class_that_is_gone_is_an_error():
    with pytest.raises(LookupError, match="has no class Gone"):
        class_fields("transformers", "training_args.py", "Gone")


def test_a_package_that_is_not_installed_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="no_such_package is not installed"):
        class_fields("no_such_package", "x.py", "X")
