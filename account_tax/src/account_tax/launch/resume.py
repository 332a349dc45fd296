"""Where a training begins: at its first step, or where an interrupted one of the same kind was."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from account_tax.errors import Refused
from account_tax.provenance.code import BEFORE, code_in_words
from account_tax.storage.checkpoints import (
    ATTEMPT_FILE,
    LAUNCH_LOCK,
    MANIFEST_FILE,
    RANKS_LOCK,
    find_fault,
    list_checkpoints,
    remove,
    set_aside,
    step_of,
    tidy,
)
from account_tax.storage.files import Held, hold, read_json, write_json
from account_tax.storage.names import TAG
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.store import TrackingError

from .plan import Plan, store_of

RANKS_END_SECONDS = 30.0  # for the ranks of a launcher that was killed
ANEW = "resume=never trains anew"
DAMAGED_TAG = f"{TAG}damaged_checkpoints"
RESUMED_TAG = f"{TAG}resumed_from"
CODE_BEFORE_TAG = f"{TAG}{BEFORE}"


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        folder: The run's checkpoints, relative to the project where output_dir is.
        checkpoint: The one it goes on from; None where it begins anew.
        world_size: Ranks.
    """

    folder: Path
    checkpoint: Path | None
    world_size: int

    def say(self, run_id: str) -> None:
        """Print where it goes on, if it does."""
        if self.checkpoint:
            click.echo(
                f"train: going on from step {step_of(self.checkpoint)} of run {run_id}, "
                f"checkpoint {self.checkpoint}"
            )


@contextmanager
def begin(project: Path, plan: Plan, run: OwnedRun) -> Iterator[Start]:
    """Claim the configuration, find the checkpoint to go on from, and let its run go on.

    Args:
        project: The project's root.
        plan: What is to be trained.
        run: The command's run; it becomes the run of the checkpoint.

    Raises:
        Refused: If another launcher trains this configuration here, or what there is can't be
            gone on from.
    """
    store, wanted = store_of(plan.resolved), plan.resolved.launch.resume
    facts = {
        "config_sha256": plan.resolved.sha256,
        "inputs_sha256": plan.report["inputs_sha256"],
        "code": plan.code.identity(),
    }
    with _sole_launcher(project / store) as sign:
        search = Search(project / store, run, facts, plan.world_size, plan.any_ranks)
        try:
            found = search.find(wanted)
        finally:
            for note in search.notes:
                click.echo(f"resume: {note}", err=True)
        if found:
            facts["code_before"] = _other_code(found, facts["code"])
            run.go_on(found.parent.name, f"step {step_of(found)}")
        sign({"run_id": run.run_id, "host": socket.gethostname()})
        _tag(run, search, found, facts.get("code_before"))
        checkpoint = found and store / run.run_id / found.name
        start = Start(store / run.run_id, checkpoint, search.world_size)
        attempt = {
            "facts": facts | {"run_id": run.run_id},
            "resume_from": found.name if found else None,
        }
        (project / start.folder).mkdir(parents=True, exist_ok=True)
        write_json(project / start.folder / ATTEMPT_FILE, attempt)
        yield start
        with suppress(TrackingError):  # the training is done and good; the next one clears
            clear_finished(project / store, run)


def _tag(run: OwnedRun, search: Search, found: Path | None, code_before: str | None) -> None:
    tags: dict[str, str | None] = {CODE_BEFORE_TAG: code_before}
    if found:
        tags[RESUMED_TAG] = found.name
    if search.damaged:
        tags[DAMAGED_TAG] = "\n".join(search.damaged)
    run.set_tags(tags)


def _other_code(checkpoint: Path, code: dict[str, str]) -> str | None:
    """Return and say which other code the checkpoint comes from, wholly or in an earlier part."""
    manifest = read_json(checkpoint / MANIFEST_FILE)
    before = manifest.get("code", {})
    if before == code:
        return manifest.get("code_before")
    was, now = code_in_words(before), code_in_words(code)
    click.echo(
        f"resume: the code is another than the checkpoint's ({was}, now {now}): the result may be "
        f"another than without the interruption. {ANEW}.",
        err=True,
    )
    return f"until {checkpoint.name}: {was}"


@contextmanager
def _sole_launcher(store: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Hold the configuration, or refuse with who does."""
    try:
        with hold(store / LAUNCH_LOCK) as sign:
            yield sign
    except Held as err:
        owner = err.owner
        raise Refused(
            f"this configuration is being trained already: run {owner.get('run_id', 'unknown')}, "
            f"process {owner.get('pid', 'unknown')} on {owner.get('host', 'this machine')}. Wait "
            "for it, end it, or change a parameter (another seed will do) to train beside it."
        ) from None


def clear_finished(store: Path, run: OwnedRun) -> None:
    """Remove the checkpoints of this configuration's earlier runs that have FINISHED.

    Their results are elsewhere; the newest run keeps save_total_limit of them. The folders of
    runs that never had one go as well.
    """
    for folder in _run_folders(store):
        empty = not any(path.is_dir() for path in folder.iterdir())
        if folder.name != run.run_id and (empty or run.status_of(folder.name) == "FINISHED"):
            remove(folder)


class Search:
    """The search for a checkpoint: what was found wrong is kept as notes.

    Args:
        store: The checkpoints of the configuration.
        run: The command's run, which knows the states of the others.
        facts: Of this training; `inputs_sha256` has to be a checkpoint's too.
        world_size: Ranks; in the end those of the checkpoint.
        any_ranks: Whether another number of them will do.
    """

    def __init__(
        self, store: Path, run: OwnedRun, facts: dict[str, Any], world_size: int, any_ranks: bool
    ):
        self._store, self._run, self._facts = store, run, facts
        self.world_size, self._any_ranks = world_size, any_ranks
        self.notes: list[str] = []
        self.damaged: list[str] = []

    def find(self, wanted: str) -> Path | None:
        """Return the newest checkpoint to go on from; None where there is none.

        Args:
            wanted: auto, never, or the id of a run.

        Raises:
            Refused: If the run that is wanted has none, or the ranks' number is another.
        """
        if wanted == "never":
            return None
        if wanted != "auto":
            return self._of_wanted(wanted)
        mine = self._store / self._run.run_id
        for folder in sorted(_run_folders(self._store), key=lambda each: each != mine):
            status = self._run.status_of(folder.name)
            if status == "FINISHED":
                break  # what is older was left behind by a training that came to its end
            if why := self._why_not(folder, status):
                self.notes.append(why)
            elif found := self._newest_whole(folder):
                return self._require_ranks(found)
        return None

    def _of_wanted(self, run_id: str) -> Path:
        folder, status = self._store / run_id, self._run.status_of(run_id)
        if not list_checkpoints(folder):
            why = f"no checkpoint of it with these parameters. {self._those_there_are()}"
        elif status == "FINISHED":
            why = f"it has FINISHED; {ANEW}."
        elif status != "SCHEDULED" and (reason := self._why_not(folder, status)):
            why = f"{reason}."
        elif found := self._newest_whole(folder):
            return self._require_ranks(found)
        else:
            why = f"none of its checkpoints is whole: {'; '.join(self.notes)}. {ANEW}."
        raise Refused(f"resume = {run_id}: {why}")

    def _those_there_are(self) -> str:
        there = [
            f"{folder.name} ({self._run.status_of(folder.name)}, step {step_of(found[0])})"
            for folder in _run_folders(self._store)
            if (found := list_checkpoints(folder))
        ]
        return f"There are: {', '.join(there) or 'none'}"

    def _why_not(self, folder: Path, status: str | None) -> str:
        """Return why a run's checkpoints are not for this training; its bytes are not read yet."""
        _wait_for_ranks(folder)
        tidy(folder)
        if not (found := list_checkpoints(folder)):
            return ""  # it was interrupted before the first
        what = f"{found[0].name} of run {folder.name} is not used"
        if status is None:
            return f"{what}: the tracking server knows no such run"
        if status == "SCHEDULED" and folder.name != self._run.run_id:
            return f"{what}: its job goes on by itself; resume={folder.name} takes it over"
        manifest = read_json(found[0] / MANIFEST_FILE)
        if manifest.get("model_only"):
            return f"{what}: it has no optimizer (train.training.save_only_model)"
        theirs, ours = manifest.get("inputs_sha256"), self._facts["inputs_sha256"]
        if theirs not in (None, ours):
            return f"{what}: it was trained on other data ({theirs[:12]}..., now {ours[:12]}...)"
        return ""

    def _newest_whole(self, folder: Path) -> Path | None:
        for checkpoint in list_checkpoints(folder):
            if not self._is_whole(checkpoint):
                continue
            best = read_json(checkpoint / MANIFEST_FILE).get("best")
            if best in (None, checkpoint.name) or self._is_whole(folder / best):
                return checkpoint
            self.notes.append(
                f"{checkpoint.name} of run {folder.name} is not used: the best model until then "
                f"was in {best}, which is gone"
            )
        return None

    def _is_whole(self, checkpoint: Path) -> bool:
        """Judge every byte; set a damaged checkpoint aside and note it."""
        if not (checkpoint.is_dir() and (fault := find_fault(checkpoint))):
            return checkpoint.is_dir()
        aside = set_aside(checkpoint)
        note = f"{checkpoint.name} of run {checkpoint.parent.name} is damaged: {fault}"
        self.damaged.append(note)
        self._run.tag_other(checkpoint.parent.name, {DAMAGED_TAG: note})
        self.notes.append(f"{note}. Set aside as {aside}")
        return False

    def _require_ranks(self, checkpoint: Path) -> Path:
        theirs = read_json(checkpoint / MANIFEST_FILE)["world_size"]
        if self._any_ranks:
            self.world_size = theirs
        if theirs != self.world_size:
            raise Refused(
                f"num_gpus = {self.world_size}: {checkpoint.name} of run {checkpoint.parent.name} "
                f"was saved by {theirs} rank{'s' * (theirs > 1)}, and optimizer and order of rows "
                f"are cut by ranks. num_gpus={theirs} goes on from it, {ANEW}."
            )
        return checkpoint


def _run_folders(store: Path) -> list[Path]:
    """Return the folders of a configuration's runs, the one last written to first."""
    folders = [path for path in store.glob("[!.]*") if path.is_dir()]
    return sorted(folders, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _wait_for_ranks(folder: Path) -> None:
    """Wait until no rank writes there: the launcher may have been killed a moment ago."""
    try:
        with hold(folder / RANKS_LOCK, RANKS_END_SECONDS):
            return
    except Held as err:
        raise Refused(
            f"run {folder.name}: its launcher is gone, and its rank 0, process "
            f"{err.owner.get('pid', 'unknown')}, still trains. End it first."
        ) from None
