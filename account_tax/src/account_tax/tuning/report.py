"""What a study leaves behind: its table, the curves, what mattered, and the best recipe."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from account_tax.faults import in_a_line
from account_tax.parameters.config import (
    RECIPE_SECTIONS,
    Pair,
    Resolved,
    merge_trees,
    parse_command_line,
    resolve,
)
from account_tax.reporting.markdown import format_number, markdown_table
from account_tax.tracking.owned_run import OwnedRun

from .space import override, shown, typed
from .study import Study, Trial

COLUMNS = ("trial", "state", "value")


def write_report(project: Path, pairs: Sequence[Pair], study: Study, run: OwnedRun) -> None:
    """Store table, importance, curves and the best recipe as artifacts of the study's run."""
    trials = study.trials()
    best = study.best(trials)
    assert best is not None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(_rows(study, trials, typed))
    run.log_text(text.getvalue(), "trials.csv")
    run.log_text(_draw_curves(study, trials, best), "learning_curves.svg")
    run.log_text(best_recipe(project, pairs, study, best), "best_recipe.yml")
    run.log_text(_page(study, trials, best), "tuning.md")


def _rows(study: Study, trials: Sequence[Trial], say: Callable[[Any], str]) -> list[list[str]]:
    keys = [each.key for each in study.space.ranges]
    return [
        [*COLUMNS, *keys, "seconds", "reason"],
        *(
            [
                str(trial.number),
                trial.state,
                "" if trial.value is None else say(trial.value),
                *(say(trial.values[key]) if key in trial.values else "" for key in keys),
                f"{trial.seconds:.1f}",
                in_a_line(trial.reason),
            ]
            for trial in trials
        ),
    ]


def importance(study: Study, trials: Sequence[Trial]) -> dict[str, float]:
    """Return how much of the metric each key explains; empty where that can't be said.

    Too few trials can't, nor can choices that are mappings: Optuna (5.0) wants to hash them.
    """
    import optuna

    try:
        return optuna.importance.get_param_importances(study.in_optuna(trials))
    except (ValueError, RuntimeError, TypeError):
        return {}


def _page(study: Study, trials: Sequence[Trial], best: Trial) -> str:
    metric, base, importances = study.search["metric"], study.space.base, importance(study, trials)
    found = [
        (key, shown(base[key]), shown(value), format_number(importances.get(key), ".2f"))
        for key, value in best.values.items()
    ]
    header, *lines = _rows(study, trials, shown)
    parts = (
        f"# Tuning: {metric}, {study.search['direction']}",
        f"Best: trial {best.number} with {format_number(best.value)} on validation, run "
        f"`{best.run_id}`. No trial saw the test split.",
        markdown_table(["parameter", "recipe", "best", "importance"], found),
        "## Trials",
        markdown_table(header, lines),
        "![learning curves](learning_curves.svg)",
    )
    return "\n\n".join(parts) + "\n"


def best_recipe(project: Path, pairs: Sequence[Pair], study: Study, best: Trial) -> str:
    """Return the recipe's file with the best values, and what else the command line has set.

    `kedro train --recipe` resolves it to the configuration that the best trial had.
    """
    words = [f"--{key}={text}" for key, text in override(pairs, best.values)]
    resolved = resolve(project, parse_command_line(words), all_serve=False)
    name = resolved.launch.recipe
    tree = yaml.safe_load((project / "recipes" / f"{name}.yml").read_text(encoding="utf-8"))
    changes = _given({name: resolved.values[name] for name in RECIPE_SECTIONS}, resolved)
    said = f"# {name} with the best values of a study: trial {best.number}, run {best.run_id},\n"
    said += f"# {study.search['metric']} {format_number(best.value)} on validation.\n"
    merged = merge_trees(tree, changes)
    return said + yaml.safe_dump(merged, sort_keys=False, allow_unicode=True)


def _given(tree: dict[str, Any], resolved: Resolved, prefix: str = "") -> dict[str, Any]:
    """Return the part of a tree that the command line has set; a name in it may hold dots."""
    found = dict[str, Any]()
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            if below := _given(value, resolved, f"{key}."):
                found[name] = below
        elif resolved.given(key):
            found[name] = value
    return found


def _draw_curves(study: Study, trials: Sequence[Trial], best: Trial) -> str:
    """Return the metric by step as an SVG: a line a trial, the best one in blue."""
    from account_tax.reporting.svg import BLUE, GREY, sized_figure, svg_style

    with svg_style():
        figure, axes = sized_figure(6, 3, left=0.8, right=0.4, bottom=0.6, top=0.5)
        for trial in sorted(trials, key=lambda each: each.number == best.number):
            color = BLUE if trial.number == best.number else GREY
            steps, values = zip(*trial.curve, strict=True) if trial.curve else ((), ())
            axes.plot(steps, values, color=color, marker="o", markersize=3)
        axes.set(xlabel="step", ylabel=study.search["metric"], title="Learning curves")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
