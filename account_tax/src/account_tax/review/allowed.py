"""Whether a decision is allowed, and everything that speaks against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.errors import Refused, Unmeasured
from account_tax.faults import hint, tell
from account_tax.registry.registry_state import RegistryState, expiry_of
from account_tax.registry.states import MOVES, moves_from
from account_tax.storage.names import CONTENT_TAG

from .gates import GateResult, gate_names
from .history_text import one_line

KNOWN_AUTHOR = "known_author"  # no gate, but waived as one
NOTHING_CHANGED = "Nothing was changed."


@dataclass(frozen=True)
class Proposal:
    """A decision as its reviewer asks for it.

    Attributes:
        decision: approve, reject, retire or rollback.
        reviewer: Who decides.
        reason: Why; the reviewer's own words, which are stored.
        now: The time, with its zone.
        run_id: The run in which the decision is made.
        gates: The gates' results for the version.
        waive: Names of gates that did not pass and shall not hinder the approval.
        expires: Last day of the approval, ISO 8601.
        sign_key: PEM file of the key that signs the entry.
    """

    decision: str
    reviewer: str
    reason: str
    now: datetime
    run_id: str
    gates: list[GateResult] = field(default_factory=list)
    waive: list[str] = field(default_factory=list)
    expires: str | None = None
    sign_key: str | None = None

    def faults(self) -> list[str]:
        """Return what is wrong with its words, the gates being those that were measured."""
        gates = [*(gate.name for gate in self.gates), KNOWN_AUTHOR]
        return faults_of_words(
            self.decision, self.reviewer, self.reason, self.waive, self.expires, gates, self.now
        )


def check_seen(registry: RegistryState, entries_seen: int | None) -> None:
    """Refuse a decision whose evidence is older than the last entry of the history."""
    entries = registry.history.entries
    if entries_seen is not None and len(entries) > entries_seen:
        last = entries[-1]
        raise Refused(
            f"entry {last.n}, {last.decision} of version {last.version} by "
            f"{one_line(last.reviewer)}, was recorded since the evidence for this decision was "
            f"gathered. {NOTHING_CHANGED} Review the version again."
        )


def find_previous_champion(registry: RegistryState, proposal: Proposal) -> ModelVersion:
    """Return the version that a rollback goes back to, or raise Refused with all against it."""
    left = [each for each in registry.standing.former if each in registry.versions]
    faults = proposal.faults()
    if not left:
        faults.append("rollback: there is no previous_champion to go back to.")
    if faults:
        raise _refusal(faults, f"rollback of {registry.model.name}")
    return registry.versions[left[0]]


def check_before_review(
    registry: RegistryState, subject: ModelVersion, author: str, proposal: Proposal
) -> None:
    """Raise Refused with everything that speaks against the decision whatever the gates say."""
    if faults := _faults_whatever_gates_say(registry, subject, author, proposal):
        raise _refusal(faults, _title(subject, proposal))


def check_proposal(
    registry: RegistryState, subject: ModelVersion, author: str, proposal: Proposal
) -> None:
    """Raise Refused with everything that speaks against the decision."""
    faults = proposal.faults()
    faults += _faults_whatever_gates_say(registry, subject, author, proposal)
    hinder = list[GateResult]()
    if proposal.decision == "approve":
        faults += _faults_of_waivers(proposal.gates, proposal.waive)
        hinder += [each for each in proposal.gates if not each.passed]
        hinder = [each for each in hinder if each.name not in proposal.waive]
    if faults or hinder:
        failed = faults or any(each.status == "failed" for each in hinder)
        faults += [_hindrance(each) for each in hinder]
        raise _refusal(faults, _title(subject, proposal), Refused if failed else Unmeasured)


def _title(subject: ModelVersion, proposal: Proposal) -> str:
    return f"decision to {proposal.decision} {subject.name} version {subject.version}"


def _refusal(faults: list[str], what: str, kind: type[Refused] = Refused) -> Refused:
    """Return the refusal that says every fault and that nothing was changed."""
    return kind(f"{tell(faults, f'with the {what}')}\n{NOTHING_CHANGED}")


def faults_of_words(
    decision: str,
    reviewer: str,
    reason: str,
    waive: Sequence[str],
    expires: str | None,
    gates: Sequence[str],
    now: datetime,
) -> list[str]:
    """Return what is wrong with the words of a decision, whatever the version is."""
    faults = []
    for key, text, expected in (("reviewer", reviewer, "a name"), ("reason", reason, "why")):
        if not one_line(text):
            faults.append(f"{key} (-P {key}): blank. Expected {expected}.")
        elif any("\ud800" <= character <= "\udfff" for character in text):
            faults.append(f"{key} (-P {key}): not UTF-8. Type it in a terminal that is.")
    if decision != "approve":
        given = {"waive": waive, "expires": expires}
        idle = [key for key, value in given.items() if value]
        return faults + [f"{key} (-P {key}): belongs to approve only." for key in idle]
    faults += [
        f"waive = {name} (-P waive): {_why_no_gate(name, gates)}"
        for name in dict.fromkeys(waive)
        if name not in gates
    ]
    return faults + _faults_of_expiry(expires, now)


def _faults_whatever_gates_say(
    registry: RegistryState, subject: ModelVersion, author: str, proposal: Proposal
) -> list[str]:
    """Return what the version's state, tags and author do not allow."""
    number = int(subject.version)
    state = registry.standing.state_of(number)
    allowed = moves_from(state, expiry_of(registry.history.entries, number))
    faults = []
    if proposal.decision not in MOVES:
        faults.append(
            f"decision = {proposal.decision} (-P decision): expected approve, reject, retire or "
            "rollback."
        )
    elif proposal.decision not in allowed:
        faults.append(
            f"decision = {proposal.decision} (-P decision): version {subject.version} is {state}. "
            f"Allowed from there: {' or '.join(allowed) or 'nothing, register a new version'}."
        )
    if not subject.tags.get(CONTENT_TAG):
        faults.append(
            f"version {subject.version} has no tag {CONTENT_TAG}, so what it holds could change "
            "after the decision. Register it with this project."
        )
    return faults + (
        _faults_of_reviewer(author, proposal) if proposal.decision == "approve" else []
    )


def _faults_of_reviewer(author: str, proposal: Proposal) -> list[str]:
    if author and _same_name(author, proposal.reviewer):
        return [
            f"reviewer = {one_line(proposal.reviewer)} (-P reviewer): also the author of the "
            "version (mlflow.user of its run). Let somebody else approve it."
        ]
    if not author and KNOWN_AUTHOR not in proposal.waive:
        return [
            f"{KNOWN_AUTHOR}: the version's run has no mlflow.user, so nobody can tell whether the "
            f"reviewer is the author. Waive it with the reason for that (-P waive={KNOWN_AUTHOR})."
        ]
    if author and KNOWN_AUTHOR in proposal.waive:
        known = f"the author is {one_line(author)}"
        return [f"waive = {KNOWN_AUTHOR} (-P waive): {known}. Leave it out."]
    return []


def _same_name(one: str, other: str) -> bool:
    return one_line(one).casefold() == one_line(other).casefold()


def _hindrance(gate: GateResult) -> str:
    found, why = (f", found {gate.found}", "") if gate.found else ("", f"{gate.why} ")
    return (
        f"gate {gate.name}: {gate.status}{found}; wanted {gate.wanted}. {why}"
        f"Waive it with the reason for that (-P waive={gate.name}), or reject the version."
    )


def _why_no_gate(name: str, gates: Sequence[str]) -> str:
    if name in gate_names():
        return "this gate is not asked of this version. Leave it out."
    return f"no such gate. {hint(name, gates)}"


def _faults_of_waivers(gates: list[GateResult], waive: list[str]) -> list[str]:
    passed = [gate.name for gate in gates if gate.passed]
    return [
        f"waive = {name} (-P waive): this gate passed. Leave it out."
        for name in dict.fromkeys(waive)
        if name in passed
    ]


def _faults_of_expiry(expires: str | None, now: datetime) -> list[str]:
    if not expires:
        return []
    given = f"expires = {expires} (-P expires)"
    today = now.astimezone(UTC).date()
    try:
        day = date.fromisoformat(expires)
    except ValueError:
        return [f"{given}: expected a date such as {today.year + 1}-01-31."]
    if day <= today:
        return [f"{given}: expected a day after today, {today}."]
    return []


def author_of(client: MlflowClient, version: ModelVersion) -> str:
    """Return who trained a version, as its run says; empty where that is not known."""
    if not version.run_id:
        return version.user_id or ""
    try:
        run = client.get_run(version.run_id)
    except MlflowException as err:
        if err.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return version.user_id or ""
    return run.data.tags.get("mlflow.user") or version.user_id or ""
