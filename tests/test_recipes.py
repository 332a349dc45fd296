import re
from pathlib import Path

import pytest
import yaml

from account_tax.model.classifier import resolve_base
from account_tax.parameters.batch import share_batch
from account_tax.parameters.config import resolve

REPOSITORY = Path(__file__).parents[1]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yml"))
each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)


def leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_there_is_the_default_recipe():
    assert "starter" in [path.stem for path in RECIPES]


@each_recipe
def test_a_recipe_resolves(recipe):
    resolved = resolve(REPOSITORY, [("recipe", recipe.stem)])
    given = [key for key, source in resolved.sources.items() if source == f"recipes/{recipe.name}"]
    assert sorted(given) == sorted(key for key, _ in leaves(yaml.safe_load(recipe.read_text())))


@each_recipe
def test_a_recipe_holds_only_what_it_changes(recipe, tmp_path):
    for name in ("conf", "MLproject"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/none.yml").write_text("data: {}")
    base = resolve(tmp_path, [("recipe", "none")]).flat()
    changed = resolve(REPOSITORY, [("recipe", recipe.stem)])
    for key, source in changed.sources.items():
        if source == f"recipes/{recipe.name}":
            assert key not in base or changed.flat()[key] != base[key], key


@each_recipe
def test_a_recipe_says_how_to_run_it(recipe):
    head = recipe.read_text(encoding="utf-8").split("\n\n")[0]
    for word in ("Command", "Hardware", "Time", "Expected"):
        assert re.search(rf"^# {word}: +\S", head, re.M), word
    command = re.search(r"^# Command: +(.*)", head, re.M)
    named = re.search(r"-P recipe=(\S+)", command[1])
    assert (named[1] if named else "starter") == recipe.stem


@each_recipe
def test_a_recipes_base_is_pinned(recipe):
    model = resolve(REPOSITORY, [("recipe", recipe.stem)]).values["train"]["model"]
    if not model["name"].startswith("package://"):
        assert re.fullmatch("[0-9a-f]{40}", model["revision"])
        return
    assert resolve_base(model["name"]).sha256 == model["sha256"]


@each_recipe
def test_a_recipe_builds_real_arguments(recipe, tmp_path, tiny_base):
    from transformers import AutoTokenizer

    from account_tax.pipelines.train.training_core import (
        apply_lora_adapters,
        build_training_arguments,
        instantiate_model,
    )

    train = resolve(REPOSITORY, [("recipe", recipe.stem)]).values["train"]
    # The bases are BERT-like, so a small one has the layers the adapters are put on.
    small = {"name": str(tiny_base), "num_labels": 3, "pooling": train["model"]["pooling"]}
    model = instantiate_model(small, AutoTokenizer.from_pretrained(tiny_base))
    model = apply_lora_adapters(model, train["lora"])
    assert model.get_nb_trainable_parameters()[0] > 0
    arguments = build_training_arguments(train, str(tmp_path))
    rows = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    assert rows == share_batch(train["deepspeed"], ranks=1)
    assert arguments.learning_rate == train["training"]["learning_rate"]
    assert arguments.hf_deepspeed_config.config["zero_optimization"]["stage"] in range(4)
