"""The look of every figure: colours, fonts and sizes of an SVG that repeats byte by byte."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .markdown import ems

BLUE, GREY, INK = "#2f5d8a", "#b8bec6", "#30343a"


STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "account-tax",  # element ids would be random
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same layout on every machine
    "text.parse_math": False,  # a $ in a label is a dollar
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def svg_style() -> Iterator[None]:
    """Draw within it in the project's style, Hangul included."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # The font has no Hangul; the viewer's has, and the text stays text.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def sized_figure(
    width: float, height: float, *, left: float, right: float, bottom: float, top: float
) -> tuple[Figure, Axes]:
    """Return a figure whose plotting area has the size, with these margins, all in inches."""
    total_width, total_height = left + width + right, bottom + height + top
    figure = Figure(figsize=(total_width, total_height))
    axes = figure.add_axes(
        (left / total_width, bottom / total_height, width / total_width, height / total_height)
    )
    return figure, axes


def name_cells(axes: Axes, labels: Sequence[str], font_size: float) -> None:
    """Write class names beside the rows and columns of a matrix of cells of size 1, (C, C)."""
    centers = [place + 0.5 for place in range(len(labels))]
    # Anchored text keeps its end at the axis, however wide the viewer's font is.
    axes.set_xticks(
        centers, labels, rotation=90, rotation_mode="anchor", ha="right", va="center",
        fontsize=font_size,
    )  # fmt: skip
    axes.set_yticks(centers, labels, fontsize=font_size)
    axes.set(xlim=(0, len(labels)), ylim=(len(labels), 0), xlabel="predicted", ylabel="true")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def text_inches(labels: Sequence[str], font_size: float) -> float:
    """Return the width of the longest label."""
    return max(map(ems, labels)) * font_size / 72
