"""The history of a registered model: every decision, hash-chained, in a run of its own.

A registered model has one experiment with one run for it. Entry n is a JSON file, artifact of that
run, and counts from the moment its sha256 is the run's param `n`. A param is what MLflow offers
that is written once: no call changes it, and the database holds one value of a run's key. So of
two processes that append entry n one succeeds, and a process that dies leaves no lock behind, only
a file that nothing refers to.

What this proves: each entry's file has the digest that its param holds, and names the digest of
the entry before. The registered model and each decided version carry a digest too, as tags, so that
entries cut off at the end are missed. Who can write to the database itself can rewrite all of it;
against that, keep the last digest elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LifecycleStage, Run, ViewType
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from account_tax.errors import Refused
from account_tax.provenance.signing import (
    VERIFY_VARIABLE,
    SignatureError,
    load_public_key,
    read_bundle,
    verify_key,
)
from account_tax.storage.files import NOT_READ, canonical_sha256, scratch_folder
from account_tax.tracking.store import condition

from .find import DENIED, GONE

SCHEMA = 1  # of an entry; a reader refuses one it does not know
RUN_NAME = "account-tax review history"
RUN_TAG = "review_history_run"  # of the experiment
HISTORY_TAG = "review_history"  # of the registered model and of decided versions: the run's id
MARK_PARAM = "review_entry"  # of the runs that an entry is about: whose history, number, digest
ENTRY_FOLDER = "entries"
SIGNED = ".sig"  # after the name of an entry's file: its signature's
BEFORE_FIRST = "0" * 64  # previous_sha256 of entry 1


class HistoryError(Refused):
    """The history can't be used as it is; nothing was changed."""


class EntryTakenError(Refused):
    """Another process has recorded an entry of the same number; nothing was changed."""


@dataclass(frozen=True)
class Entry:
    """One decision, as it is recorded.

    Attributes:
        n: Its number, from 1.
        time: UTC, ISO 8601, by the clock of the reviewer's machine.
        model: The registered model's name.
        decision: approve, reject, retire or rollback.
        version: The version it is about; of a rollback, the one that is champion again.
        content_sha256: That version's content, as its tag says.
        state_from: The version's state before.
        state_to: And after.
        reviewer: Who decided, as given; an open-source server has no proof of it.
        author: Who trained it, as the run says; empty where it does not.
        reason: Why, in the reviewer's words.
        waived: Names of the gates that did not pass and were waived.
        gates: Of each gate its name, status, what was found and what was wanted, as text.
        expires: The last day of an approval, ISO 8601; empty: none.
        run_id: The run in which the decision was made.
        aliases_before: Of `champion` and `previous_champion` those that are set, with the version.
        aliases_after: The same, once the decision has taken effect.
        previous_sha256: The digest of the entry before; zeros in the first.
        sha256: Of all other fields, as canonical JSON.
        schema: Version of this list of fields.
    """

    n: int
    time: str
    model: str
    decision: str
    version: int
    content_sha256: str
    state_from: str
    state_to: str
    reviewer: str
    author: str
    reason: str
    waived: list[str]
    gates: list[dict[str, str]]
    expires: str
    run_id: str
    aliases_before: dict[str, int]
    aliases_after: dict[str, int]
    previous_sha256: str
    sha256: str = ""
    schema: int = SCHEMA


@dataclass(frozen=True)
class History:
    """A registered model's history as it was found.

    Attributes:
        run_id: The run that holds it; None: no decision was ever recorded.
        digests: sha256 by entry number, from the run's params.
        entries: Those with the recorded digest, in order.
        faults: What shows that it was changed, one sentence each.
    """

    run_id: str | None
    digests: dict[int, str]
    entries: list[Entry]
    faults: list[str]

    @property
    def head(self) -> str:
        """The number and digest of the last entry, as tags carry them; empty: no entry."""
        return mark_of(len(self.digests), self.digests) if self.digests else ""


def mark_of(n: int, digests: Mapping[int, str]) -> str:
    """Return the mark of entry n, by which tags and runs name it: its number and digest."""
    return f"{n}:{digests.get(n, '')}"


# --- an entry and its digest ----------------------------------------------------------------------


def digest_entry(content: Mapping[str, Any]) -> str:
    """Return the sha256 of an entry's fields without its own, as canonical JSON.

    Canonical: keys sorted, no blanks, ASCII. Entries hold no floats, whose text is not canonical.
    """
    hashed = {key: value for key, value in content.items() if key != "sha256"}
    return canonical_sha256(hashed, ensure_ascii=True)


def seal_entry(entry: Entry) -> Entry:
    """Return the entry with its digest."""
    return replace(entry, sha256=digest_entry(asdict(entry)))


def render_entry(entry: Entry) -> str:
    """Return the text of an entry's file; the same entry always has the same bytes."""
    return json.dumps(asdict(entry), ensure_ascii=False, indent=2) + "\n"


def parse_entry(text: str) -> Entry:
    """Return the entry that a file holds.

    Raises:
        ValueError: If it is no entry of a known schema.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ValueError(f"expected an entry of schema {SCHEMA}")
    if set(content) != {field.name for field in fields(Entry)}:
        raise ValueError("its fields are not those of an entry")
    return Entry(**content)


def file_of(n: int, sha256: str) -> str:
    """Return the name of an entry's file; two candidates for one number never share a file."""
    return f"{n:05d}-{sha256[:12]}.json"


# --- reading --------------------------------------------------------------------------------------


def count_entries(client: MlflowClient, name: str) -> int:
    """Return how many decisions about a registered model are recorded; no file is read."""
    run_id = find_run(client, client.get_registered_model(name))
    return len(read_digests(client, run_id)) if run_id else 0


def load_history(
    client: MlflowClient, model: RegisteredModel, known: Iterable[Entry] = ()
) -> History:
    """Return a registered model's history with every fault in its chain.

    Args:
        client: Of the registry.
        model: Whose.
        known: Entries that this command has read or written; where they are all of the recorded
            digests, no file is read again.

    Raises:
        HistoryError: If its experiment or run was deleted, or is not the one the model names.
    """
    run_id = find_run(client, model)
    if run_id is None:
        return History(None, {}, [], [])
    digests = read_digests(client, run_id)
    texts = {file_of(entry.n, entry.sha256): render_entry(entry) for entry in known}
    entries, faults = list[Entry](), list[str]()
    if not {file_of(*each) for each in digests.items()} <= texts.keys():
        texts = _read_files(client, run_id)
        faults += _signature_faults(model, digests, texts)
    for n in range(1, max(digests, default=0) + 1):
        entry, fault = _check_entry(n, digests, texts)
        entries += [entry] if entry else []
        faults += [f"entry {n}: {fault}"] if fault else []
    return History(run_id, digests, entries, faults)


def find_run(client: MlflowClient, model: RegisteredModel) -> str | None:
    """Return the id of the run that holds the history, or None.

    The experiment's unique name decides; the registered model's tag still leads to it when the
    model was renamed.
    """
    named = model.tags.get(HISTORY_TAG)
    experiment = client.get_experiment_by_name(experiment_name(model))
    if experiment is None:
        return named
    if experiment.lifecycle_stage != LifecycleStage.ACTIVE:
        raise HistoryError(
            f"the experiment {experiment.name!r}, which holds the review history, was deleted. "
            f"Restore it: mlflow experiments restore -x {experiment.experiment_id}"
        )
    run_id = experiment.tags.get(RUN_TAG)
    if run_id is None or named not in (None, run_id):
        raise HistoryError(
            f"the review history is in run {run_id} by the experiment {experiment.name!r}, and in "
            f"run {named} by the tag {HISTORY_TAG} of {model.name}. Somebody changed one of them."
        )
    return run_id


def experiment_name(model: RegisteredModel) -> str:
    """Return the unique name of the history's experiment.

    With the time of creation: a model that is deleted and made again under its name starts anew,
    and the old history stays.
    """
    return f"review history of {model.name}, created {model.creation_timestamp}"


def marked_value(model: RegisteredModel, n: int, sha256: str) -> str:
    """Return what a run's param says of an entry: whose history, and the entry's mark."""
    return f"{_whose(model)}:{mark_of(n, {n: sha256})}"


def _whose(model: RegisteredModel) -> str:
    """Return a digest of the history's name."""
    return canonical_sha256(experiment_name(model))[:16]


def mark_runs(
    client: MlflowClient, model: RegisteredModel, entry: Entry, trained_by: str | None
) -> None:
    """Leave an entry's digest as a param, which nobody can change, with the runs it is about.

    Those are the run that decided and the one that trained the version. A run that is gone, that
    another entry marked before, or that this user may not write to stays as it is.
    """
    for run_id in filter(None, (entry.run_id, trained_by)):
        try:
            client.log_param(run_id, MARK_PARAM, marked_value(model, entry.n, entry.sha256))
        except MlflowException as err:
            if err.error_code not in {*GONE, *DENIED}:
                raise


def find_marks(client: MlflowClient, model: RegisteredModel) -> Iterator[tuple[str, str]]:
    """Yield each run that bears a mark of a model's history, deleted ones too, and the mark."""
    experiments = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
    token, wanted = None, condition(f"params.{MARK_PARAM}", f"{_whose(model)}:%", "LIKE")
    while token != "":
        found = client.search_runs(experiments, wanted, ViewType.ALL, page_token=token)
        for run in found:
            yield run.info.run_id, _mark_in(run, model)
        token = found.token or ""


def mark_of_run(client: MlflowClient, model: RegisteredModel, run_id: str) -> str:
    """Return the mark of a model's history that a run bears; empty: none, or the run is gone."""
    try:
        return _mark_in(client.get_run(run_id), model)
    except MlflowException as err:
        if err.error_code not in {*GONE, *DENIED}:
            raise
        return ""


def _mark_in(run: Run, model: RegisteredModel) -> str:
    whose, _, mark = run.data.params.get(MARK_PARAM, "").partition(":")
    return mark if whose == _whose(model) else ""


def read_digests(client: MlflowClient, run_id: str) -> dict[int, str]:
    """Return the sha256 of each recorded entry by its number.

    Raises:
        HistoryError: If the run is gone.
    """
    try:
        run = client.get_run(run_id)
    except MlflowException as err:
        if err.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise HistoryError(
            f"run {run_id}, which held the review history, is gone, and with it every decision. "
            "Restore it from a backup of the tracking store."
        ) from err
    if run.info.lifecycle_stage != LifecycleStage.ACTIVE:
        raise HistoryError(
            f"run {run_id}, which holds the review history, was deleted. "
            f"Restore it: mlflow runs restore --run-id {run_id}"
        )
    return {int(key): value for key, value in sorted(run.data.params.items()) if key.isdecimal()}


def _read_files(client: MlflowClient, run_id: str, path: str = ENTRY_FOLDER) -> dict[str, str]:
    """Return the text of the files at a path by their names, in one download.

    Bytes that are no UTF-8 are replaced, and so found.
    """
    files = _files_of(client, run_id)  # the client would look for logged models too, twice
    if not files.list_artifacts(ENTRY_FOLDER):
        return {}
    with scratch_folder() as scratch:
        found = Path(files.download_artifacts(path, str(scratch)))
        read = found.iterdir() if found.is_dir() else [found]
        return {file.name: file.read_text(encoding="utf-8", errors="replace") for file in read}


def _files_of(client: MlflowClient, run_id: str) -> ArtifactRepository:
    """Return the store of a run's files."""
    return get_artifact_repository(
        str(client.get_run(run_id).info.artifact_uri), client.tracking_uri
    )


def _check_entry(
    n: int, digests: Mapping[int, str], texts: Mapping[str, str]
) -> tuple[Entry | None, str | None]:
    """Return entry n if it is as it was recorded, and what is wrong with it."""
    if n not in digests:
        return None, "it is missing from the run's params."
    name = file_of(n, digests[n])
    if (text := texts.get(name)) is None:
        return None, f"its file {name} is missing."
    try:
        entry = parse_entry(text)
    except NOT_READ as err:
        return None, f"its file {name} was edited: {err}."
    if entry.n != n:
        return None, f"its file {name} holds entry {entry.n}: entries were reordered."
    if digest_entry(asdict(entry)) != digests[n] or render_entry(entry) != text:
        return None, f"its file {name} was edited: its sha256 is not the recorded one."
    if entry.previous_sha256 != digests.get(n - 1, BEFORE_FIRST):
        return entry, f"it does not follow entry {n - 1}: entries were replaced or reordered."
    return entry, None


def _signature_faults(
    model: RegisteredModel, digests: Mapping[int, str], texts: Mapping[str, str]
) -> list[str]:
    """Return a fault for each entry from the first signed one on, else the last, without signature.

    A signature covers the entries before it too: each names the digest of the one before.
    """
    if not (file := verify_key()) or not digests:
        return []
    key, signed = load_public_key(file), set[int]()
    for n, sha256 in digests.items():
        name = file_of(n, sha256) + SIGNED
        with suppress(SignatureError):
            if read_bundle(name, texts.get(name, ""), key) == entry_statement(model, n, sha256):
                signed.add(n)
    first = min(signed, default=max(digests))
    return [
        f"entry {n}: it is not signed by the key that {VERIFY_VARIABLE} names."
        for n in digests
        if n >= first and n not in signed
    ]


def entry_statement(model: RegisteredModel, n: int, sha256: str) -> bytes:
    """Return what a reviewer signs of an entry: in-toto, without the name, which may change."""
    subject = f"entry {n} about the registered model created {model.creation_timestamp}"
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": subject, "digest": {"sha256": sha256}}],
        "predicateType": "https://account-tax/review/v1",
        "predicate": {},
    }
    return json.dumps(statement, sort_keys=True).encode()


# --- appending ------------------------------------------------------------------------------------


def open_run(client: MlflowClient, model: RegisteredModel) -> str:
    """Return the id of the run that holds the history, made if there is none.

    It is made whole under another name and then renamed: names are unique in the database, so of
    two processes one publishes its own, and the other takes that.
    """
    if run_id := find_run(client, model):
        return run_id
    maker = f"{socket.gethostname()}, process {os.getpid()}, {uuid.uuid4().hex}"
    experiment = client.create_experiment(f"{experiment_name(model)}, being made by {maker}")
    run_id = client.create_run(experiment, run_name=RUN_NAME).info.run_id
    client.update_run(run_id, status="FINISHED")  # an entry is no work in progress
    client.set_experiment_tag(experiment, RUN_TAG, run_id)
    try:
        client.rename_experiment(experiment, experiment_name(model))
    except MlflowException:
        if (published := find_run(client, model)) is None:
            raise
        if published != run_id:
            client.delete_experiment(experiment)
        return published
    return run_id


def write_entry(
    client: MlflowClient, run_id: str, entry: Entry, signature: Mapping[str, Any] | None = None
) -> None:
    """Write the file of a sealed entry, and its signature's; nothing refers to it yet.

    Raises:
        HistoryError: If the store does not give back what was written.
    """
    name = file_of(entry.n, entry.sha256)
    path = f"{ENTRY_FOLDER}/{name}"
    if signature:
        client.log_text(run_id, json.dumps(signature), path + SIGNED)
    client.log_text(run_id, render_entry(entry), path)
    if _read_files(client, run_id, path) != {name: render_entry(entry)}:
        raise HistoryError(f"the artifact store does not give back what was written to {name}.")


def record_entry(client: MlflowClient, run_id: str, entry: Entry) -> None:
    """Record an entry whose file is written; once this returns the decision stands.

    Raises:
        EntryTakenError: If entry n is another one; nothing was recorded.
        MlflowException: If the store failed; `read_digests` tells whether it was recorded.
    """
    try:
        client.log_param(run_id, f"{entry.n:05d}", entry.sha256)
    except MlflowException:
        # Whatever was answered, what is stored decides: a lost answer is no failed write.
        recorded = read_digests(client, run_id).get(entry.n)
        if recorded is None:
            raise
        if recorded != entry.sha256:
            _remove_file(client, run_id, file_of(entry.n, entry.sha256))
            raise EntryTakenError(f"entry {entry.n} was recorded by somebody else") from None


def _remove_file(client: MlflowClient, run_id: str, name: str) -> None:
    """Remove a file that never became an entry; where the store forbids it, it does no harm."""
    with suppress(Exception):
        _files_of(client, run_id).delete_artifacts(f"{ENTRY_FOLDER}/{name}")
