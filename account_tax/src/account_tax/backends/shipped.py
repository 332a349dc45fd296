"""What MLflow would pack if it were told to ship this folder."""

from __future__ import annotations

import os
from pathlib import Path

from account_tax.provenance.code import git

from .findings import Findings

MEBIBYTE = 2**20
LEFT_OUT = {"mlruns"}  # by MLflow itself, at any depth (mlflow/projects/databricks.py, 3.17)
HARMLESS = {"__pycache__", ".pytest_cache", ".ruff_cache"}  # made by running; nothing in them


def find_shipped(project: Path) -> Findings:
    """Return how much would leave this machine, and a fault if git does not keep all of it.

    MLflow's Databricks backend packs the whole folder: ledgers, stores, environments and settings
    of this machine too. What git keeps is meant to be seen by others; the rest is not.
    """
    done = git(project, "ls-files", "--others", "--directory", "-z")
    if done.returncode != 0:
        why = "no git repository, or no git, so nothing tells what may leave this machine"
        return Findings([f"{project}: {why}. {CLONE}"])
    strays = {
        name: size
        for name in filter(None, os.fsdecode(done.stdout).split("\0"))
        if not {*LEFT_OUT, *HARMLESS} & set(Path(name).parts) and (size := _size(project / name))
    }
    findings = Findings()
    findings.facts["shipped"] = f"{_size(project) / MEBIBYTE:,.1f} MiB before compression"
    if strays:
        listed = ", ".join(f"{name} ({size / MEBIBYTE:,.1f} MiB)" for name, size in strays.items())
        findings.faults.append(
            f"{project.name}/: would be packed whole and sent, and git does not keep {listed}. "
            f"{CLONE}"
        )
    return findings


CLONE = (
    "Commit what is to be sent and submit from a clone: "
    "git clone . ../account-tax-clean && cd ../account-tax-clean"
)


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder that MLflow packs."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(_size(each) for each in path.iterdir() if each.name not in LEFT_OUT)
