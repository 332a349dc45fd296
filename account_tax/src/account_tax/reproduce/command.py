"""`kedro reproduce`: what is asked for, and the exit status of finding out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from account_tax.commands import run_in_mlflow
from account_tax.tracking.owned_run import OwnedRun

from .request import parse_request


def reproduce(project: Path, options: Mapping[str, str]) -> int:
    """Climb the ladder and return the exit status: 0 the same, 1 different, 2 refused.

    Args:
        project: The project's root.
        options: version, registered_model_name, rungs, seeds, data and verify_key, as text.
    """

    def work(run: OwnedRun | None) -> None:
        assert run is not None
        request = parse_request(project, options)
        from .ladder import reproduce_version  # torch and all, once it is known what for

        reproduce_version(project, request, run)

    return run_in_mlflow(project, work)
