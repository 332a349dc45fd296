"""What a user may ask of `predict`: each option read as its type, every fault at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_type_hints

from account_tax.parameters.kinds import cast_text, convert, describe
from account_tax.parameters.schema import Count, Name, UpToOne

NOT_GIVEN = "none"  # MLproject needs a default, and this one means none was typed
# Rows read, sorted by length, answered and stored at once: what is held in memory, and what a
# killed run loses.
BATCH_ROWS = 8192


class Asked(TypedDict):
    """The options by name, as they are typed."""

    model: Name
    input: Name
    output: Name
    top_k: Count
    threshold: UpToOne | None
    on_error: Literal["fail", "skip"]
    batch_rows: Count | None
    overwrite: bool


@dataclass(frozen=True)
class Options:
    """What was asked; `threshold` None takes the version's own."""

    model: str
    input: Path
    output: Path
    top_k: int
    threshold: float | None
    on_error: str
    batch_rows: int
    overwrite: bool

    @property
    def rejects(self) -> Path:
        """Where the rows that can't be read are listed."""
        return rejects_file(self.output)


def rejects_file(output: Path) -> Path:
    """Return the file beside an output that lists the rows that can't be read."""
    return output.with_name(f"{output.name}.rejects.jsonl")


def read_words(words: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of the options that are good, by name, and a fault for each other one."""
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, kind in get_type_hints(Asked, include_extras=True).items():
        text = words[name]
        missing = text == NOT_GIVEN and kind == Name
        try:
            values[name] = convert("" if missing else cast_text(text, kind), kind)
        except ValueError:
            shown = "not given" if missing else f"= {text}"
            faults.append(f"{name} {shown} (-P {name}): expected {describe(kind)}.")
    for name in {"input", "output"} & values.keys():
        values[name] = Path(values[name])
    return values, faults


def make_options(values: Mapping[str, Any]) -> Options:
    """Return the options of `read_words`, where all are good."""
    return Options(**{**values, "batch_rows": values["batch_rows"] or BATCH_ROWS})
