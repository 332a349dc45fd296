"""What speaks against a run on this machine: all that `kedro train` checks before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from account_tax.config import ConfigError
from account_tax.errors import Failed
from account_tax.launch.plan import make_plan

from .findings import Findings


def checks(project: Path, words: Sequence[str]) -> Findings:
    """Return the faults of parameters, data, base model and machine, and what a run would do."""
    try:
        return Findings(facts=make_plan(project, words).facts())
    except ConfigError as err:
        return Findings(err.faults)
    except Failed as err:
        return Findings([str(err)])
