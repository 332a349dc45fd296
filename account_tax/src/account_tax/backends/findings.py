"""What a check returns: each fault as one line, and the facts that a person may want to see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Findings:
    """Faults, one line each, and facts by name."""

    faults: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def unknown_keys(given: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return a fault for each key that nobody reads."""
    known = list(known)
    faults = []
    for key in sorted(given.keys() - known):
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
        faults.append(f"{key}: unknown key. {hint}")
    return faults
