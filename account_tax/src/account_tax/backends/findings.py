"""What a check returns: each fault as one line, and the facts that a person may want to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from account_tax.faults import hint


@dataclass
class Findings:
    """Faults, one line each, and facts by name."""

    faults: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def unknown_keys(given: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return a fault for each key that nobody reads."""
    known = list(known)
    return [f"{key}: unknown key. {hint(key, known)}" for key in sorted(given.keys() - known)]
