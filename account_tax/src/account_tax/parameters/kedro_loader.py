"""Kedro's parameters with a recipe in them, for pipelines run by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from kedro.config import OmegaConfigLoader
from omegaconf import OmegaConf

from .config import LaunchOptions, merge_trees

RESOLVED_KEY = "recipe"


class RecipeConfigLoader(OmegaConfigLoader):
    """Merges the recipe between the parameters' files and `--params`.

    `kedro run --pipeline=train --params recipe=bert-base` takes that recipe, no `recipe` the
    default one. Parameters the launcher resolved say `recipe: null` and stay as they are.
    """

    def __getitem__(self, key: str) -> dict[str, Any]:
        """Return a configuration by type; see OmegaConfigLoader."""
        config = super().__getitem__(key)
        if key != "parameters":
            return config
        recipe = config.pop(RESOLVED_KEY, LaunchOptions.recipe)
        if recipe is None:
            return config
        path = Path(self.conf_source).parent / "recipes" / f"{recipe}.yml"
        if not path.is_file():
            there = ", ".join(sorted(file.stem for file in path.parent.glob("*.yml")))
            raise ValueError(f"recipe = {recipe} (--params): no such recipe. There are: {there}.")
        given = {k: v for k, v in (self.runtime_params or {}).items() if k != RESOLVED_KEY}
        changes = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(path), resolve=True))
        return merge_trees(config, changes, given)
