"""The report's figures as SVG that stands in the page: its fonts, and its colours by theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from account_tax.reporting.svg import (
    BLUE,
    GREY,
    INK,
    name_cells,
    sized_figure,
    svg_style,
    text_inches,
)

ORANGE = "#c4622d"
# A browser draws what the page's style says; a file on its own would keep the first of each pair.
THEMED = {INK: "var(--ink)", GREY: "var(--line)", BLUE: "var(--ours)", ORANGE: "var(--theirs)"}
MOST_CONFUSED = 30  # accounts; with more the cells can't be told apart
# matplotlib numbers its groups anew in every figure, and a page may have an id once.
NUMBERED_ID = re.compile(r' id="(?:[a-z0-9]+|[A-Za-z]+_?Collection|matplotlib\.axis)_\d+"')


def draw_figures(findings: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures by name, each an <svg> element."""
    change = np.asarray(findings["confusion_change"])
    with svg_style():
        figures = {
            "scores": plot_scores(findings["models"], findings["titles"]),
            "reliability": plot_reliability(findings["calibration"]),
            "coverage": plot_coverage(findings["calibration"]),
            "confusion": plot_confusion_change(change, findings["names"]),
        }
        return {name: _draw(figure) for name, figure in figures.items()}


def draw_history(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the macro-F1 of runs from the oldest to the newest, with their intervals."""
    names = [run["title"] for run in runs]
    bottom = text_inches(names, 9.0) + 0.2
    with svg_style():
        figure, axes = sized_figure(
            max(4.6, 0.5 * len(runs)), 3.0, left=0.7, right=0.2, bottom=bottom, top=0.3
        )
        for place, run in enumerate(runs):
            each = run["f1"]
            axes.plot([place] * 2, [each["low"], each["high"]], color=BLUE, linewidth=3,
                      alpha=0.45, solid_capstyle="butt")  # fmt: skip
        axes.plot([run["f1"]["value"] for run in runs], "o-", color=BLUE, linewidth=1)
        axes.set_xticks(range(len(runs)), names, rotation=90, fontsize=9)
        axes.set(ylabel="macro-F1", xlim=(-0.5, len(runs) - 0.5))
        return _draw(figure)


def plot_scores(models: Mapping[str, Any], titles: Mapping[str, str]) -> Figure:
    """Draw accuracy and macro-F1 of every model with their intervals."""
    names = [titles[role] for role in models]
    left, height = text_inches(names, 9.0) + 0.2, 0.42 * len(names) + 0.2
    figure, axes = sized_figure(4.6, height, left=left, right=0.3, bottom=0.5, top=0.4)
    for offset, metric, color in ((-0.14, "accuracy", BLUE), (0.14, "f1", ORANGE)):
        for place, scores in enumerate(models.values()):
            each = scores[metric]
            axes.plot([each["low"], each["high"]], [place + offset] * 2, color=color, linewidth=3,
                      alpha=0.45, solid_capstyle="butt")  # fmt: skip
            axes.plot(each["value"], place + offset, "o", color=color, markersize=5)
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5), xlabel="share of the test rows")
    axes.tick_params(axis="y", length=0)
    axes.set_title("accuracy", color=BLUE, loc="left", fontsize=10)
    axes.set_title("macro-F1", color=ORANGE, loc="center", fontsize=10)
    return figure


def plot_reliability(calibration: Mapping[str, Any]) -> Figure:
    """Draw how often predictions of about the same score are right."""
    figure, axes = sized_figure(3.4, 3.0, left=0.7, right=0.2, bottom=0.55, top=0.4)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    for role, color in (("champion", ORANGE), ("challenger", BLUE)):
        bins = [each for each in calibration.get(role, {"bins": []})["bins"] if each["rows"]]
        if not bins:
            continue
        scores, right, rows = (
            [each[key] for each in bins] for key in ("score", "accuracy", "rows")
        )
        axes.plot(scores, right, color=color, linewidth=1.2)
        axes.scatter(scores, right, s=12 + 90 * np.sqrt(np.array(rows) / sum(rows)), color=color,
                     alpha=0.75)  # fmt: skip
    axes.set(xlim=(0, 1.04), ylim=(0, 1.04), xlabel="score", ylabel="share that is right")
    axes.set_title("Is the score what it says?", fontsize=10)
    return figure


def plot_coverage(calibration: Mapping[str, Any]) -> Figure:
    """Draw how precise the surest lines are, by how many of them are taken."""
    figure, axes = sized_figure(3.4, 3.0, left=0.75, right=0.2, bottom=0.55, top=0.4)
    lowest = 1.0
    for role, color in (("champion", ORANGE), ("challenger", BLUE)):
        if role not in calibration:
            continue
        points = calibration[role]["curve"]
        coverage, precision = ([p[key] for p in points] for key in ("coverage", "precision"))
        axes.plot(coverage, precision, color=color, linewidth=1.6)
        lowest = min(lowest, precision[-1])
        if calibration[role]["precision"] is not None:
            at = (calibration[role]["coverage"], calibration[role]["precision"])
            axes.plot(*at, "o", color=color, markersize=6)
    axes.axhline(calibration["challenger"]["target_precision"], color=GREY, linewidth=1)
    axes.set(xlim=(0, 1.02), ylim=(max(0.0, lowest - 0.05), 1.005))
    axes.set(xlabel="share filed without a person", ylabel="share of those that is right")
    axes.set_title("What the surest lines are worth", fontsize=10)
    return figure


def plot_confusion_change(change: np.ndarray, names: Sequence[str]) -> Figure:
    """Draw the confusions that became more (orange) or fewer (blue), true accounts as rows.

    Right answers are the diagonal, where more is blue. Of many accounts, those with most changes.
    """
    kept = np.sort(np.argsort(-_changes(change), kind="stable")[:MOST_CONFUSED])
    change, labels = change[np.ix_(kept, kept)], [names[int(index)] for index in kept]
    margin, cell = text_inches(labels, 8.0) + 0.35, 0.34 if len(labels) <= 15 else 0.24
    side = cell * len(labels)
    figure, axes = sized_figure(side, side, left=margin, bottom=margin, top=0.4, right=0.3)
    cells = np.argwhere(change)
    better = np.where(np.eye(len(change), dtype=bool), change, -change)
    largest = max(1, np.abs(change).max())
    for sign, color in ((1, BLUE), (-1, ORANGE)):
        for row, column in cells[better[tuple(cells.T)] * sign > 0]:
            alpha = 0.25 + 0.6 * abs(change[row, column]) / largest
            square = Rectangle((column, row), 1, 1)
            axes.add_collection(PatchCollection([square], facecolor=color, alpha=alpha))
    for row, column in cells:
        axes.text(column + 0.5, row + 0.5, f"{change[row, column]:+d}", ha="center", va="center",
                  fontsize=7)  # fmt: skip
    name_cells(axes, labels, 8)
    axes.grid(color=GREY, linewidth=0.3)
    axes.set_title("Change of the rows in each cell", fontsize=10)
    return figure


def _changes(change: np.ndarray) -> np.ndarray:
    """Return for each account how many rows changed from or to it, (C,)."""
    return np.abs(change).sum(axis=0) + np.abs(change).sum(axis=1)


def _draw(figure: Figure) -> str:
    """Return a figure as one <svg> element in the page's colours."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    element = NUMBERED_ID.sub("", text[text.index("<svg") :])
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    for color, variable in THEMED.items():
        element = element.replace(color, variable)
    return element
