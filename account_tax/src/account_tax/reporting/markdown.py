"""Markdown that cannot be broken by what stands in it."""

import html
import math
import re
from collections.abc import Iterable, Sequence

# MLflow's pages show tables without any space between columns, and trim it as a character.
EM_SPACE = "&emsp;"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, each cell escaped."""
    cells = [list(map(escape_cell, row)) for row in rows]
    columns = list(zip(header, *cells, strict=True))
    # A letter is about half as wide as an em; so each name but the last is its column's widest.
    wider = [max(map(len, column)) - len(column[0]) for column in columns[:-1]]
    spaces = ["\u2003" * (more // 2) for more in wider] + [""]
    padded = [
        f"{escape_cell(name)}{space}{EM_SPACE}" for name, space in zip(header, spaces, strict=True)
    ]
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
