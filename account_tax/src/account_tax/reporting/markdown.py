"""Markdown that cannot be broken by what stands in it."""

from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, its cells as they are."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def escape_cell(text: str) -> str:
    """Return a text that stays within one cell."""
    return text.replace("|", "\\|").replace("\n", " ")
