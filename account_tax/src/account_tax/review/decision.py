"""A decision about a version: allowed or refused, recorded, and shown in the registry.

The states are pending → approved → retired and pending → rejected, nothing else. That the reviewer
is not the author is advisory on open-source MLflow: both names are what somebody typed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.errors import Failed, Refused
from account_tax.processes.groups import Interrupted
from account_tax.provenance.signing import load_private_key, sign_statement
from account_tax.registry.find import DENIED, find_version
from account_tax.registry.history import (
    BEFORE_FIRST,
    Entry,
    EntryTakenError,
    entry_statement,
    open_run,
    read_digests,
    record_entry,
    seal_entry,
    write_entry,
)
from account_tax.registry.registry_state import (
    RegistryState,
    expiry_of,
    link_history,
    read_settled,
    settle,
    version_in_words,
)
from account_tax.registry.states import APPROVED
from account_tax.storage.names import CONTENT_TAG
from account_tax.tracking.store import short_waits

from .allowed import (
    NOTHING_CHANGED,
    Proposal,
    author_of,
    check_proposal,
    check_seen,
    find_previous_champion,
)
from .history_text import one_line

PROBE_ALIAS = "review_probe"  # never set
FINISHED_LATER = "The next review or decision finishes what tags and aliases show of it."
ADVISORY = (
    "That {reviewer} is not the author {author} is advisory: on open-source MLflow both are names "
    "that somebody typed."
)


@dataclass(frozen=True)
class Decision:
    """A decision that was taken: its entry in the history, and what the reviewer should know."""

    entry: Entry
    notes: list[str]

    @property
    def message(self) -> str:
        """Say what happened, in a line for each fact."""
        entry = self.entry
        aliases = [
            f"{alias} is {version_in_words(entry.aliases_after.get(alias))}, "
            f"was {version_in_words(entry.aliases_before.get(alias))}"
            for alias in ("champion", "previous_champion")
            if entry.aliases_before.get(alias) != entry.aliases_after.get(alias)
        ]
        lines = [
            f"{entry.model} version {entry.version}: {entry.decision}, {entry.state_from} → "
            f"{entry.state_to}, entry {entry.n} ({entry.sha256[:12]})",
            *aliases,
            *self.notes,
        ]
        return "\n".join(lines)


# --- deciding -------------------------------------------------------------------------------------


def decide(
    client: MlflowClient,
    name: str,
    proposal: Proposal,
    version: str | int | None = None,
    entries_seen: int | None = None,
) -> Decision:
    """Return the decision once it is recorded and shown.

    By a rollback champion and previous champion change places, so a second one is as before the
    first. To go further back, retire the version that was left and roll back again. No state
    changes: both stay approved.

    Args:
        client: Of the registry.
        name: The registered model.
        proposal: What is to be decided.
        version: Number or alias of the version; of a rollback the previous champion, always.
        entries_seen: How many entries the history had when the evidence was gathered. With more by
            now the decision is refused: the champion it was compared with may be another.

    Raises:
        Refused: If it is not allowed, or another process decided first; nothing was changed.
        Failed: If the registry went away; the message says whether the decision stands.
    """
    with short_waits():
        with _before_recording(client, name):
            registry = read_settled(client, name)
            check_seen(registry, entries_seen)
            if proposal.decision == "rollback":
                subject = find_previous_champion(registry, proposal)
                author = author_of(client, subject)
            else:
                subject = find_version(client, name, str(version))
                author = author_of(client, subject)
                check_proposal(registry, subject, author, proposal)
            entry = _draft(registry, subject, author, proposal)
        recorded = _record(client, registry, entry, proposal.sign_key)
        return Decision(
            recorded, _notes(recorded, expiry_of(registry.history.entries, entry.version))
        )


# --- recording ------------------------------------------------------------------------------------


def _draft(
    registry: RegistryState, subject: ModelVersion, author: str, proposal: Proposal
) -> Entry:
    """Return the sealed entry that would follow the last one."""
    history, before, number = registry.history, registry.standing, int(subject.version)
    after = before.after(proposal.decision, number)
    expires = date.fromisoformat(proposal.expires).isoformat() if proposal.expires else ""
    gates = [
        {"name": gate.name, "status": gate.status, "found": gate.found, "wanted": gate.wanted}
        for gate in proposal.gates
    ]
    n = len(history.digests) + 1
    return seal_entry(
        Entry(
            n=n,
            time=proposal.now.astimezone(UTC).isoformat(timespec="seconds"),
            model=registry.model.name,
            decision=proposal.decision,
            version=number,
            content_sha256=subject.tags.get(CONTENT_TAG, ""),
            state_from=before.state_of(number),
            state_to=after.state_of(number),
            reviewer=proposal.reviewer.strip(),
            author=author,
            reason=proposal.reason.strip(),
            waived=list(dict.fromkeys(proposal.waive)),
            gates=gates,
            expires=expires,
            run_id=proposal.run_id,
            aliases_before=before.aliases,
            aliases_after=after.aliases,
            previous_sha256=history.digests.get(n - 1, BEFORE_FIRST),
        )
    )


def _record(
    client: MlflowClient, registry: RegistryState, entry: Entry, sign_key: str | None
) -> Entry:
    """Return the entry, recorded and shown. Recording it is the moment the decision stands."""
    name, signature = registry.model.name, None
    if sign_key:
        raw = entry_statement(registry.model, entry.n, entry.sha256)
        signature = sign_statement(raw, load_private_key(Path(sign_key)))
    with _before_recording(client, name):
        run_id = open_run(client, registry.model)
        link_history(client, registry, run_id, entry.version)
        if entry.aliases_before.keys() - entry.aliases_after.keys():
            # Some servers let a user set an alias and not delete one: learn it before, not after.
            client.delete_registered_model_alias(name, PROBE_ALIAS)
        write_entry(client, run_id, entry, signature)
    with _while_recording(client, name, run_id, entry):
        record_entry(client, run_id, entry)
    try:
        settle(client, name, [*registry.history.entries, entry])
    except Interrupted as err:
        raise Interrupted(err.signum, f"{_stands(entry)} {FINISHED_LATER}") from err
    except (MlflowException, OSError) as err:
        raise Failed(
            f"{_stands(entry)} But the registry went away before all its tags and aliases showed "
            f"it. {FINISHED_LATER} {_words(err)}"
        ) from err
    return entry


def _stands(entry: Entry) -> str:
    return (
        f"{entry.decision} of {entry.model} version {entry.version} stands: it is entry {entry.n} "
        "of the history."
    )


@contextmanager
def _before_recording(client: MlflowClient, name: str) -> Iterator[None]:
    """Turn the store's errors to ours, while nothing of the decision is written."""
    try:
        yield
    except (MlflowException, OSError) as err:
        raise _explain(client, name, err) from err


def _explain(client: MlflowClient, name: str, err: Exception) -> Refused | Failed:
    where = f"MLFLOW_TRACKING_URI = {client.tracking_uri}"
    if _is_denied(err):
        return Refused(
            f"{where}: no permission to decide about {name}. It takes the right to edit the "
            "registered model, its versions and the experiment of its review history, and to "
            f"delete an alias where one goes. {NOTHING_CHANGED} {_words(err)}"
        )
    if getattr(err, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
        return Refused(f"{where}: {_words(err)} {NOTHING_CHANGED}")
    return Failed(f"{where}: {_words(err)} {NOTHING_CHANGED} Decide again when it answers.")


def _is_denied(err: Exception) -> bool:
    """Whether the server answered 401 or 403: to a call, or to the transfer of a file."""
    status = getattr(getattr(err, "response", None), "status_code", None)
    return getattr(err, "error_code", "") in DENIED or status in (401, 403)


def _words(err: Exception) -> str:
    return f"({one_line(str(getattr(err, 'message', err)))[:300]})"


@contextmanager
def _while_recording(client: MlflowClient, name: str, run_id: str, entry: Entry) -> Iterator[None]:
    """Turn errors of recording the entry to ours, saying whether it stands."""
    try:
        yield
    except EntryTakenError as err:
        raise Refused(
            f"entry {entry.n}, another decision about {name}, was recorded at the same time. "
            f"{NOTHING_CHANGED} Look at the history, then decide again."
        ) from err
    except Interrupted as err:
        asked = "the history tells whether the decision stands (kedro review --history true)"
        raise Interrupted(err.signum, f"while entry {entry.n} was recorded; {asked}") from err
    except (MlflowException, OSError) as err:
        try:
            stands = read_digests(client, run_id).get(entry.n) == entry.sha256
        except (MlflowException, OSError):
            raise Failed(
                f"the registry went away while entry {entry.n} was recorded, so it is not known "
                "whether the decision stands. If it does, the next review or decision finishes "
                f"it; if not, nothing was changed. The history tells. {_words(err)}"
            ) from err
        if not stands:
            raise _explain(client, name, err) from err


def _notes(entry: Entry, expires: str) -> list[str]:
    """Return what the reviewer should know beside what happened."""
    notes = []
    if entry.decision == "approve":
        who = {"reviewer": one_line(entry.reviewer), "author": one_line(entry.author)}
        notes.append(
            ADVISORY.format(**who)
            if entry.author
            else "The author is not known: the version's run has no mlflow.user. So nobody checked "
            "that the reviewer is another person."
        )
        if not entry.gates:
            notes.append("No gate was configured, so none was passed.")
    if entry.decision == "rollback":
        if entry.state_to != APPROVED:
            notes.append(f"Version {entry.version} served before, but was never approved here.")
        elif expires and expires < entry.time[:10]:
            notes.append(f"The approval of version {entry.version} ended on {expires}.")
    return notes
