"""Markdown that cannot be broken by what stands in it."""

import html
import math
from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, each cell escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(escape_cell, line)) + " |" for line in lines)


def escape_cell(text: object) -> str:
    """Return a text that stays within one cell and shows as it is."""
    line = html.escape(" ".join(str(text).split()), quote=False)
    return line.replace("\\", "\\\\").replace("|", "\\|")


def format_number(value: float | None, form: str = ".4f") -> str:
    """Return a number as a reader is shown it: NaN as such, one that was not measured as n/a."""
    if value is None:
        return "n/a"
    return "NaN" if math.isnan(value) else format(value, form)
