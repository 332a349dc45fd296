"""What a check returns: each fault as one line, and the facts that a person may want to see."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from account_tax.faults import hint
from account_tax.provenance.signing import VERIFY_VARIABLE


@dataclass
class Findings:
    """Faults, one line each, and facts by name."""

    faults: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def unknown_keys(given: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Return a fault for each key that nobody reads."""
    known = list(known)
    return [f"{key}: unknown key. {hint(key, known)}" for key in sorted(given.keys() - known)]


def key_faults_of(names: Iterable[Any], where: str) -> list[str]:
    """Return the fault of a job that would ask for no signatures where this shell does."""
    if not os.environ.get(VERIFY_VARIABLE) or VERIFY_VARIABLE in names:
        return []
    return [
        f"{VERIFY_VARIABLE}: set here and not in {where}, so the job would take versions that "
        "nobody signed. Set it there to where the key's file lies in the job."
    ]
