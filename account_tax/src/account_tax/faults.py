"""Many faults in one message, and the known name that a wrong one most likely stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

SHOWN_LABELS, SHOWN_CHARACTERS = 10, 80


def tell(faults: Sequence[str], where: str) -> str:
    """Return all faults, one a line, below their count: `2 problems in the data`."""
    return "\n  ".join([f"{len(faults)} problem{'s' * (len(faults) != 1)} {where}", *faults])


def in_a_line(message: str) -> str:
    """Return what a message says first: its first line, or of several faults the first one."""
    first, _, rest = message.partition("\n")
    if not (told := re.match(r"(\d+) problems? ", first)) or not rest:
        return first
    more = int(told[1]) - 1
    return rest.partition("\n")[0].strip() + (f" ({more} more)" if more else "")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name closest to another one, if any is close."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def hint(name: str, known: Iterable[str]) -> str:
    """Return a sentence that helps with an unknown name: the nearest one, else all there are."""
    known = list(known)
    near = nearest(name, known)
    return f"Did you mean {near}?" if near else f"There are: {', '.join(known)}."


def shorten(items: Sequence[str]) -> str:
    """Return the first of some labels in a line, and how many more there are."""
    more = len(items) - SHOWN_LABELS
    return ", ".join([*map(short, items[:SHOWN_LABELS]), *[f"{more} more"] * (more > 0)])


def short(label: str) -> str:
    """Return a label as it fits into a line: a long one without its middle."""
    return label if len(label) <= SHOWN_CHARACTERS else f"{label[:57]}...{label[-20:]}"


def with_rows(rows: Mapping[str, int]) -> list[str]:
    """Return labels, each with its number of rows."""
    return [short(f"{label} ({count:,})") for label, count in rows.items()]
