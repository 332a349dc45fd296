"""What should stand in the registry after the recorded decisions, what does, and bringing it there.

The history is the truth; tags and aliases show it. A decision is recorded first and shown then, so
one that is interrupted has either not happened or is finished by whoever decides next (`settle`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel

from account_tax.errors import Refused
from account_tax.storage.names import CONTENT_TAG, VERIFIED_TAG
from account_tax.tracking.store import condition

from .history import (
    HISTORY_TAG,
    Entry,
    History,
    HistoryError,
    find_marks,
    load_history,
    mark_of,
    mark_of_run,
    mark_runs,
    read_digests,
)
from .states import (
    APPROVED,
    CHAMPION,
    PREVIOUS_CHAMPION,
    REJECTED,
    RETIRED,
    STATUS_TAG,
    Standing,
    moves_from,
    replay,
)

EXPIRES_TAG = "review_expires"
ENTRY_TAG = "review_entry"  # of a version: the number and digest of the last entry about it
REVIEWER_TAG = "reviewed_by"  # of a version: who made the last decision about it
HEAD_TAG = "review_history_head"  # of the registered model: of the last entry that is shown whole
# Databricks' deployment jobs wait for a tag of the version whose key is the name of their approval
# task, until its value, in any case, is "approved". A task is one where its name begins with
# "approval"; the template's is Approval_Check. Sources: docs.databricks.com/aws/en/mlflow/
# deployment-job, and its notebook mlflow/deployment-jobs/approval.html ("approval_tag_name").
DEPLOYMENT_TAG = "Approval_Check"
DEPLOYMENT_VALUES = {APPROVED: "Approved", REJECTED: "Rejected", RETIRED: "Retired"}
LOOKS, PAUSE_SECONDS = 4, 0.3  # at a registry in which another process may be at work


# --- the registry as it is ------------------------------------------------------------------------


@dataclass(frozen=True)
class RegistryState:
    """A registered model as it was found: itself, its versions by number, its history."""

    model: RegisteredModel
    versions: dict[int, ModelVersion]
    history: History

    @property
    def aliases(self) -> dict[str, int]:
        """The version of `champion` and of `previous_champion`, where it is set."""
        given = self.model.aliases
        return {name: int(given[name]) for name in (CHAMPION, PREVIOUS_CHAMPION) if name in given}

    @property
    def standing(self) -> Standing:
        """What should stand."""
        return replay(self.history.entries, self.aliases)

    @property
    def aliases_said(self) -> dict[str, int]:
        """What `aliases` should be; a version that was deleted can have none."""
        said = self.standing.aliases
        return {alias: number for alias, number in said.items() if number in self.versions}

    @property
    def shown(self) -> int:
        """How many entries the registered model shows whole, by its tag."""
        number = self.model.tags.get(HEAD_TAG, "0").partition(":")[0]
        return int(number) if number.isdecimal() else 0


def read_registry(client: MlflowClient, name: str, known: Iterable[Entry] = ()) -> RegistryState:
    """Return a registered model as it is now; `known` as `load_history` takes them.

    Raises:
        HistoryError: If its history is deleted.
    """
    model = client.get_registered_model(name)  # first: its tags may lag behind entries, not lead
    found = client.search_model_versions(condition("name", name))
    versions = {int(version.version): version for version in found}
    return RegistryState(model, versions, load_history(client, model, known))


def read_settled(client: MlflowClient, name: str) -> RegistryState:
    """Return a registered model in which every recorded decision is shown whole.

    What an interrupted decision left is finished.

    Raises:
        HistoryError: If the history was changed, or the registry contradicts it.
    """
    faults: list[str] = []
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE_SECONDS)
        # Before the history: another process may add an entry, and marks are set after it.
        marks = list(find_marks(client, client.get_registered_model(name)))
        registry = read_registry(client, name)
        if faults := find_cuts(registry) + registry.history.faults:
            break
        if registry.shown < len(registry.history.digests):
            settle(client, name, registry.history.entries)
            registry = read_registry(client, name, registry.history.entries)
        faults = find_contradictions(registry) if registry.history.entries else []
        faults += find_lost_marks(registry, marks)
        if not faults:
            return registry
    raise HistoryError(
        f"{name} and its review history do not agree, so nothing was decided and nothing changed\n"
        + "\n".join(f"  {fault}" for fault in faults)
        + "\nPut back what was changed, then decide again."
    )


def verify_history(client: MlflowClient, name: str) -> list[str]:
    """Return every sign that the history was changed, or that the registry contradicts it.

    Each names the entry, version or alias. Nothing is written. What another process is just
    writing is looked at again.
    """
    faults: list[str] = []
    for look in range(LOOKS):
        if look:
            time.sleep(PAUSE_SECONDS)
        try:
            registry = read_registry(client, name)
        except HistoryError as err:
            return [str(err)]
        faults = [
            *registry.history.faults,
            *find_cuts(registry),
            *find_lost_marks(registry, find_marks(client, registry.model)),
            *find_false_steps(registry.history.entries),
            *find_deleted(registry),
            *(find_unshown(registry) or find_contradictions(registry)),
        ]
        if not faults:
            break
    return faults


# --- using a version -----------------------------------------------------------------------------


def check_standing(
    client: MlflowClient, version: ModelVersion, reference: str, allow_unapproved: bool
) -> str:
    """Return what the review history has against using a version; empty: nothing.

    Args:
        client: Of the registry.
        version: Which.
        reference: The number or alias it was asked for by.
        allow_unapproved: Whether it may be used all the same.

    Raises:
        Refused: If it may not.
    """
    against = _objection(client, version, reference)
    for _ in range(LOOKS if against else 0):
        time.sleep(PAUSE_SECONDS)  # a decision may be on its way into the alias
        against = _objection(client, version, reference)
    if against and not allow_unapproved:
        raise Refused(
            f"{version.name} version {version.version}: {against} Take another version, or give "
            "-P allow_unapproved=true, which is recorded."
        )
    return against


def _objection(client: MlflowClient, version: ModelVersion, reference: str) -> str:
    try:
        registry = read_registry(client, version.name)
    except HistoryError as err:
        return str(err)
    run_id = str(version.run_id)
    marks = [(run_id, mark_of_run(client, registry.model, run_id))]
    faults = [*registry.history.faults, *find_cuts(registry), *find_lost_marks(registry, marks)]
    if faults:
        return f"its review history is not as it was written: {faults[0]}"
    entries, number = registry.history.entries, int(version.version)
    said, content = registry.aliases_said, version.tags.get(CONTENT_TAG, "")
    judged = [each for each in entries if each.version == number and each.content_sha256]
    if judged and judged[-1].content_sha256 != content:
        return (
            f"entry {judged[-1].n} is about the content {judged[-1].content_sha256[:12]}, and its "
            f"tag {CONTENT_TAG} is {content[:12]}."
        )
    if entries and reference in (CHAMPION, PREVIOUS_CHAMPION) and number != said.get(reference):
        return f"{reference} is {version_in_words(said.get(reference))} by the review history."
    if (state := registry.standing.state_of(number)) in (REJECTED, RETIRED):
        return f"it is {state} by the review history."
    if expired := expired_on(entries, number):
        return f"its approval ended on {expired}."
    if not judged and version.tags.get(VERIFIED_TAG) != "true":
        again = f"`kedro register --run {run_id}` does it"
        return f"its registration was interrupted before its cold check: {again}."
    return ""


def expired_on(entries: Iterable[Entry], version: int) -> str:
    """Return the last day of a version's approval, if that is over; else nothing."""
    last = expiry_of(entries, version)
    return last if last and last < f"{datetime.now(UTC):%Y-%m-%d}" else ""


def find_expired(registry: RegistryState) -> list[str]:
    """Return a line for each alias of a version whose approval has ended."""
    return [
        f"{alias} is version {number}, and its approval ended on {expired}."
        for alias, number in registry.aliases_said.items()
        if (expired := expired_on(registry.history.entries, number))
    ]


def expiry_of(entries: Iterable[Entry], version: int) -> str:
    """Return the last day of a version's approval; empty: none is set."""
    approved = [each for each in entries if (each.version, each.decision) == (version, "approve")]
    return approved[-1].expires if approved else ""


# --- what does not agree --------------------------------------------------------------------------


def find_cuts(registry: RegistryState) -> list[str]:
    """Return a fault for each tag that refers to an entry which the history does not have."""
    digests = registry.history.digests
    marks = {f"the registered model's tag {HEAD_TAG}": registry.model.tags.get(HEAD_TAG)}
    for number, version in sorted(registry.versions.items()):
        marks[f"version {number}: its tag {ENTRY_TAG}"] = version.tags.get(ENTRY_TAG)
    faults = []
    for where, mark in marks.items():
        n = (mark or "").partition(":")[0]
        if mark and (not n.isdecimal() or mark != mark_of(int(n), digests)):
            faults.append(
                f"{where} refers to entry {n}, sha256 {mark.partition(':')[2][:12]}, and the "
                f"history of {len(digests)} entries has no such: entries were cut off or replaced."
            )
    return faults


def find_lost_marks(registry: RegistryState, marks: Iterable[tuple[str, str]]) -> list[str]:
    """Return a fault for each run that bears the mark of an entry which the history does not have.

    Args:
        registry: With the history.
        marks: Runs and the marks that they bear; an empty one is none.
    """
    digests = registry.history.digests
    known = {"", *(mark_of(n, digests) for n in digests)}
    return [
        f"run {run_id} bears entry {mark.partition(':')[0]}, sha256 {mark.partition(':')[2][:12]}, "
        "and the history has no such: it was replaced, or begun anew."
        for run_id, mark in marks
        if mark not in known
    ]


def find_false_steps(entries: list[Entry]) -> list[str]:
    """Return a fault for each entry that does not start where the one before it ended."""
    faults = []
    standing = replay([], entries[0].aliases_before if entries else None)
    for at, entry in enumerate(entries):
        after = standing.after(entry.decision, entry.version)
        told = (entry.state_from, entry.state_to, entry.aliases_before, entry.aliases_after)
        true = (
            *(each.state_of(entry.version) for each in (standing, after)),
            *(each.aliases for each in (standing, after)),
        )
        moves = moves_from(entry.state_from, expiry_of(entries[:at], entry.version))
        if told != true or entry.decision not in [*moves, "rollback"]:
            faults.append(
                f"entry {entry.n}: {entry.decision} of version {entry.version} does not follow "
                "from the entries before it."
            )
        standing = after
    return faults


def find_unshown(registry: RegistryState) -> list[str]:
    """Return a fault for each recorded decision that tags and aliases do not show yet."""
    return [
        f"entry {n}: recorded, but interrupted before tags and aliases showed it. "
        "The next decision or review finishes it."
        for n in range(registry.shown + 1, len(registry.history.digests) + 1)
    ]


def find_contradictions(registry: RegistryState) -> list[str]:
    """Return a fault for each tag and alias that is not what the history says."""
    faults = []
    for number, version in sorted(registry.versions.items()):
        faults += _contradictions_of(registry, version, number)
    said = registry.aliases_said if registry.history.entries else {}
    for alias in (CHAMPION, PREVIOUS_CHAMPION):
        if (now := registry.aliases.get(alias)) != said.get(alias):
            faults.append(
                f"alias {alias} is {version_in_words(now)}, but the history says "
                f"{version_in_words(said.get(alias))}."
            )
    return faults


def _contradictions_of(registry: RegistryState, version: ModelVersion, number: int) -> list[str]:
    entries = [entry for entry in registry.history.entries if entry.version == number]
    expected = _tags_of(registry, number) if entries else {}
    if entries and entries[-1].content_sha256:
        expected[CONTENT_TAG] = entries[-1].content_sha256
    watched = (STATUS_TAG, EXPIRES_TAG, ENTRY_TAG, REVIEWER_TAG, DEPLOYMENT_TAG)
    return [
        f"version {number}: tag {key} is {version.tags.get(key, 'not set')}, but the history says "
        f"{expected.get(key, 'not set')}."
        for key in dict.fromkeys([*watched, *expected])
        if version.tags.get(key) != expected.get(key)
    ]


def version_in_words(number: int | None) -> str:
    """Return what an alias means."""
    return "not set" if number is None else f"version {number}"


def find_deleted(registry: RegistryState) -> list[str]:
    """Return a fault for each version that was decided about and is no longer registered."""
    return [
        f"version {number}, {state} by the history, is no longer registered."
        for number, state in sorted(registry.standing.states.items())
        if number not in registry.versions
    ]


# --- showing what was recorded --------------------------------------------------------------------


def settle(client: MlflowClient, name: str, known: Iterable[Entry] = ()) -> None:
    """Make tags and aliases show every recorded decision; harmless at any time.

    A process that was held up could show a state that is no longer the last one. So the history is
    read again at the end, until nothing was added meanwhile. The registered model's tag comes
    last: as long as it names an earlier entry, the next command knows that something is left to do.
    """
    since: int | None = None
    while True:
        registry = read_registry(client, name, known)
        history, known = registry.history, registry.history.entries
        if history.run_id is None or history.faults:
            return
        since = registry.shown if since is None else min(since, registry.shown)
        if since >= len(history.digests):
            return
        for entry in history.entries[since:]:
            version = registry.versions.get(entry.version)
            mark_runs(client, registry.model, entry, version and version.run_id)
        _show_versions(client, registry, since)
        _show_aliases(client, registry)
        if registry.model.tags.get(HEAD_TAG) != history.head:
            client.set_registered_model_tag(name, HEAD_TAG, history.head)
        if len(read_digests(client, history.run_id)) == len(history.digests):
            return


def _show_versions(client: MlflowClient, registry: RegistryState, since: int) -> None:
    """Set the tags of versions decided about since an entry, where they differ."""
    decided = {entry.version for entry in registry.history.entries[since:]}
    for number in sorted(decided & registry.versions.keys()):
        tags = registry.versions[number].tags
        for key, value in _tags_of(registry, number).items():
            if tags.get(key) != value:
                client.set_model_version_tag(registry.model.name, str(number), key, value)
        if EXPIRES_TAG in tags and not expiry_of(registry.history.entries, number):
            client.delete_model_version_tag(registry.model.name, str(number), EXPIRES_TAG)


def _tags_of(registry: RegistryState, number: int) -> dict[str, str]:
    """Return the tags by which a version that was decided about shows its state."""
    state = registry.standing.state_of(number)
    about = [entry for entry in registry.history.entries if entry.version == number]
    tags = {
        STATUS_TAG: state,
        REVIEWER_TAG: about[-1].reviewer,
        ENTRY_TAG: mark_of(about[-1].n, registry.history.digests),
    }
    if expires := expiry_of(about, number):
        tags[EXPIRES_TAG] = expires
    if state in DEPLOYMENT_VALUES:
        tags[DEPLOYMENT_TAG] = DEPLOYMENT_VALUES[state]
    return tags


def _show_aliases(client: MlflowClient, registry: RegistryState) -> None:
    """Move `previous_champion`, then `champion`, where they differ from the history."""
    name = registry.model.name
    for alias in (PREVIOUS_CHAMPION, CHAMPION):
        number = registry.aliases_said.get(alias)
        if number == registry.aliases.get(alias):
            continue
        if number is None:
            client.delete_registered_model_alias(name, alias)
        else:
            client.set_registered_model_alias(name, alias, str(number))


def link_history(client: MlflowClient, registry: RegistryState, run_id: str, version: int) -> None:
    """Tag the registered model and the version with the run that holds the history.

    The value never changes, so this is also how to learn, before anything is decided, whether the
    server lets this user write to both.
    """
    name = registry.model.name
    client.set_registered_model_tag(name, HISTORY_TAG, run_id)
    client.set_model_version_tag(name, str(version), HISTORY_TAG, run_id)
