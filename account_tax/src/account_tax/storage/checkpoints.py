"""Checkpoints on disk: whole or not there at all, and judged by their digests before any use.

Below a run's folder, `<output_dir>/<configuration sha256>/<run id>/`; no torch here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .files import files_below, is_disk_error, read_json, sha256_of, sync, write_json

MANIFEST_FILE = "checkpoint.json"  # in a checkpoint: the digest of each file, and what made it
ATTEMPT_FILE = "attempt.json"  # in a run's folder: what the launcher tells its ranks
RANKS_LOCK = "ranks.lock"  # in a run's folder: held by rank 0 while it may write there
LAUNCH_LOCK = "launch.lock"  # in a configuration's folder: held by the launcher
PREFIX = "checkpoint-"  # transformers' own
STAGING = ".saving"
REPLACED, REMOVED, DAMAGED = ".replaced-", ".removed-", "damaged-"


class DamagedCheckpoint(RuntimeError):
    """A checkpoint is not what its manifest lists; nothing of it was loaded."""


class DiskFull(RuntimeError):
    """A checkpoint did not fit; the earlier ones are whole."""


# --- writing --------------------------------------------------------------------------------------


def stage(folder: Path) -> Path:
    """Rank 0 only: return an empty hidden folder to save in; what a crash left there goes."""
    staging = folder / STAGING
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def publish(staged: Path, facts: Mapping[str, Any]) -> Path:
    """Rank 0 only: seal a staged checkpoint and move it to its place, which it returns.

    Its bytes are on the disk before its name is: a crash at any instant leaves it whole or hidden.
    An earlier one of that step is replaced; `tidy` puts it back after a crash between the renames.
    """
    folder = staged.parent.parent
    files = {str(path.relative_to(staged)): sha256_of(path) for path in files_below(staged)}
    saved = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(staged / MANIFEST_FILE, {**facts, "saved": saved, "files": files})
    for path in [*files_below(staged), *(p for p in staged.rglob("*") if p.is_dir()), staged]:
        sync(path)
    target, old = folder / staged.name, folder / f"{REPLACED}{staged.name}"
    if target.exists():
        target.rename(old)
    staged.rename(target)
    sync(folder)
    for spent in (staged.parent, old):
        shutil.rmtree(spent, ignore_errors=True)
    return target


def rotate(folder: Path, limit: int | None, best: str | None) -> None:
    """Rank 0 only: remove the oldest checkpoints above the limit; never the newest or the best."""
    found = list_checkpoints(folder)
    kept = {found[0].name, best} if found else set()
    spare = [checkpoint for checkpoint in reversed(found) if checkpoint.name not in kept]
    for checkpoint in spare[: max(0, len(found) - limit) if limit else 0]:
        remove(checkpoint)


def remove(folder: Path) -> None:
    """Remove a folder; interrupted, it leaves nothing that looks like a checkpoint."""
    hidden = folder.with_name(f"{REMOVED}{folder.name}")
    shutil.rmtree(hidden, ignore_errors=True)
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it is kept and never used; return its new place."""
    target, number = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}"), 1
    while target.exists():
        number += 1
        target = checkpoint.with_name(f"{DAMAGED}{checkpoint.name}-{number}")
    return checkpoint.rename(target)


def tidy(folder: Path) -> None:
    """Clear what a crash left half done in a run's folder; nobody may be writing there."""
    for hidden in folder.glob(".*"):
        name = hidden.name.removeprefix(REPLACED)
        if name != hidden.name and not (folder / name).exists():
            hidden.rename(folder / name)
        elif hidden.name.startswith((STAGING, REPLACED, REMOVED)):
            shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def full_disk_said(folder: Path, step: int) -> Iterator[None]:
    """Turn whatever a full disk makes the libraries raise to DiskFull, and free what was begun.

    torch and safetensors raise errors of their own; the text and what is free tell.
    """
    try:
        yield
    except Exception as err:
        free = shutil.disk_usage(folder).free
        if not (is_disk_error(err) or free < 2**20):
            raise
        shutil.rmtree(folder / STAGING, ignore_errors=True)
        kept = [checkpoint.name for checkpoint in list_checkpoints(folder)]
        raise DiskFull(
            f"the disk of {folder} is full ({free // 2**10:,} KiB were free): the checkpoint of "
            f"step {step} was not saved. Kept whole: {', '.join(kept) or 'none'}. Free some space "
            "and run the same command again: it goes on from the newest."
        ) from err


# --- reading --------------------------------------------------------------------------------------


def list_checkpoints(folder: Path) -> list[Path]:
    """Return a run's checkpoints by their step, the newest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name[len(PREFIX) :].isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a checkpoint."""
    return int(checkpoint.name[len(PREFIX) :])


def find_fault(checkpoint: Path) -> str:
    """Return why a checkpoint is not what was saved; empty where every byte is."""
    listed = read_json(checkpoint / MANIFEST_FILE).get("files")
    if not listed:
        return f"its {MANIFEST_FILE} is missing or can't be read"
    there = {str(path.relative_to(checkpoint)): path for path in files_below(checkpoint)}
    del there[MANIFEST_FILE]
    for name in sorted({*listed, *there}):
        if name not in there:
            return f"{name} is missing"
        if name not in listed:
            return f"{name} is not one of its files"
        if (found := sha256_of(there[name])) != listed[name]:
            return f"{name} has sha256 {found[:12]}..., expected {listed[name][:12]}..."
    return ""


def require_whole(checkpoint: Path) -> dict[str, Any]:
    """Return the manifest of a whole checkpoint; it holds pickles, which are read after this only.

    Raises:
        DamagedCheckpoint: If any byte is not what was saved.
    """
    if fault := find_fault(checkpoint):
        raise DamagedCheckpoint(f"{checkpoint}: {fault}. Run the same command again.")
    return read_json(checkpoint / MANIFEST_FILE)


def size_of(folder: Path) -> int:
    """Return the bytes of all checkpoints below a folder, whichever run's they are."""
    return sum(p.stat().st_size for p in folder.glob(f"*/{PREFIX}*/**/*") if p.is_file())
