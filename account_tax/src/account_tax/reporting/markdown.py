"""Markdown that cannot be broken by what stands in it."""

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

# MLflow's pages show tables without any space between columns, and trim it as a character.
EM_SPACE = "&emsp;"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, each cell escaped."""
    names, *cells = [list(map(escape_cell, row)) for row in (header, *rows)]
    # Each name but the last is its column's widest.
    columns = list(zip(names, *cells, strict=True))[:-1]
    wider = [max(map(ems, column)) - ems(column[0]) for column in columns] + [0]
    padded = [
        name + chr(0x2003) * math.ceil(more) + EM_SPACE
        for name, more in zip(names, wider, strict=True)
    ]
    lines = [padded, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ems(text: str) -> float:
    """Return about how wide a text is, in ems; a Hangul syllable is as wide as its height."""
    return sum(1.0 if unicodedata.east_asian_width(char) in "WF" else 0.62 for char in text)


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
