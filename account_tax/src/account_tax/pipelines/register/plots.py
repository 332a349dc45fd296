"""The run's plots, as SVG: confusion matrix, F1 of each class, learning curve.

Text stays text, so that the viewer's own fonts draw Hangul, and the bytes depend on the numbers
alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from account_tax.reporting.markdown import format_number
from account_tax.reporting.svg import (
    BLUE,
    GREY,
    INK,
    name_cells,
    sized_figure,
    svg_style,
    text_inches,
)

# Above it, numbers in the cells can't be read any more.
MOST_NUMBERED_CLASSES = 20


def save_plots(
    folder: Path, evaluation: dict[str, Any], log_history: Sequence[dict[str, Any]]
) -> list[Path]:
    """Write the three plots into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "confusion_matrix.svg": lambda: plot_confusion_matrix(
            np.asarray(evaluation["confusion_matrix"]), evaluation["labels"]
        ),
        "per_class_f1.svg": lambda: plot_per_class_f1(evaluation["per_class"]),
        "learning_curve.svg": lambda: plot_learning_curve(log_history),
    }
    for name, draw in figures.items():
        with svg_style():
            draw().savefig(folder / name, format="svg", metadata={"Date": None, "Creator": None})
    return [folder / name for name in figures]


def plot_confusion_matrix(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """Draw counts (C, C), true classes as rows, shaded by their share of the true class."""
    size, numbered = len(labels), len(labels) <= MOST_NUMBERED_CLASSES
    cell, font = (0.48, 9.0) if numbered else (0.17, 6.0)
    margin = text_inches(labels, font) + 0.35
    figure, axes = sized_figure(
        cell * size, cell * size, left=margin, bottom=margin, top=0.45, right=0.3
    )
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # One square for each pair that occurs: vector shapes, and few of them with many classes.
    cells = np.argwhere(counts)
    squares = [Rectangle((column, row), 1, 1) for row, column in cells]
    axes.add_collection(
        PatchCollection(
            squares,
            array=shares[tuple(cells.T)],
            cmap="Blues",
            clim=(0, 1),
            edgecolor="white",
            linewidth=0.5,
        )
    )
    name_cells(axes, labels, font)
    axes.set(facecolor="#f7fafd", title="Confusion matrix, test split")
    for row, column in cells if numbered else ():
        color = "white" if shares[row, column] > 0.5 else INK
        axes.text(
            column + 0.5, row + 0.5, str(counts[row, column]),
            ha="center", va="center", fontsize=8, color=color,
        )  # fmt: skip
    return figure


def plot_per_class_f1(per_class: Sequence[dict[str, Any]]) -> Figure:
    """Draw the F1 of each class, best first, with the number of its test rows."""
    rows = sorted(per_class, key=lambda row: (row["f1"] or 0.0, row["support"]))
    few = len(rows) <= MOST_NUMBERED_CLASSES
    height, font = (0.32, 9.0) if few else (0.16, 6.5)
    labels = [row["label"] for row in rows]
    left = text_inches(labels, font) + 0.2
    figure, axes = sized_figure(4.2, height * len(rows), left=left, bottom=0.5, top=0.45, right=1.3)
    positions = range(len(rows))
    axes.barh(positions, [row["f1"] or 0.0 for row in rows], height=0.7, color=BLUE)
    axes.set_yticks(positions, labels, fontsize=font)
    axes.set(xlim=(0, 1), ylim=(-0.6, len(rows) - 0.4))
    axes.set(xlabel="F1", title="F1 of each class, test split")
    axes.tick_params(axis="y", length=0)
    for position, row in enumerate(rows):
        axes.text(1.02, position, format_number(row["f1"], ".2f"), va="center", fontsize=font)
        axes.text(
            1.13, position, f"{row['support']} rows", va="center", fontsize=font, color="#7a828c"
        )
    return figure


def plot_learning_curve(log_history: Sequence[dict[str, Any]]) -> Figure:
    """Draw the losses and, below, the validation F1 by optimizer step."""
    figure = Figure(figsize=(6.0, 4.6))
    losses, scores = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    figure.subplots_adjust(left=0.11, right=0.84, bottom=0.11, top=0.92, hspace=0.12)
    _draw_series(losses, log_history, "loss", "training", GREY)
    _draw_series(losses, log_history, "eval_loss", "validation", BLUE)
    _draw_series(scores, log_history, "eval_f1", "validation", BLUE)
    losses.set(ylabel="loss (nats)", title="Learning curve")
    losses.set_ylim(bottom=0)
    scores.set(ylabel="F1", xlabel="step")
    scores.set_ylim(top=1)
    return figure


def _draw_series(
    axes: Axes, log_history: Sequence[dict[str, Any]], key: str, name: str, color: str
) -> None:
    # The last evaluation of a run repeats a step: the later value stands.
    points = {entry["step"]: entry[key] for entry in log_history if key in entry}
    if not points:
        return
    steps = sorted(points)
    marker = "o" if key.startswith("eval_") else None
    axes.plot(steps, [points[step] for step in steps], color=color, marker=marker, markersize=3)
    axes.annotate(
        name, (steps[-1], points[steps[-1]]), xytext=(6, 0), textcoords="offset points",
        va="center", fontsize=9, color=INK if color == GREY else color, annotation_clip=False,
    )  # fmt: skip
