"""Markdown that cannot be broken by what stands in it."""

import html
import math
import re
from collections.abc import Iterable, Sequence

EM_SPACE = "&emsp;"  # MLflow's pages show tables without any space between two columns


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, each cell escaped."""
    cells = [list(map(escape_cell, row)) for row in rows]
    longest = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    # A letter is about half as wide as an em; the name is the widest of its column then.
    spaces = [
        EM_SPACE * (1 + (wide - len(name)) // 2) for wide, name in zip(longest, header, strict=True)
    ]
    padded = [escape_cell(name) + space for name, space in zip(header, spaces, strict=True)]
    lines = [padded, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape_cell(text: object) -> str:
    """Return a text that stays within one cell, or line, and shows as it is; so does code."""
    line = " ".join(str(text).split())
    if re.fullmatch(r"`[^`|<>]+`", line):
        return line
    return re.sub(r"([\\`*|\[\]])", r"\\\1", html.escape(line, quote=False))


def code(text: object) -> str:
    """Return a name as code, whatever it is made of."""
    return f"`{re.sub('[`|<>]', '?', ' '.join(str(text).split()))}`"


def format_number(value: float | None, form: str = ".4f") -> str:
    """Return a number as a reader is shown it: NaN as such, one that was not measured as n/a."""
    if value is None:
        return "n/a"
    return "NaN" if math.isnan(value) else format(value, form)
