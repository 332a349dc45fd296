"""What `kedro review` is asked for, every fault at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from account_tax.parameters.kinds import Help
from account_tax.parameters.options import VersionOptions
from account_tax.parameters.schema import Name, Source
from account_tax.provenance.signing import signer_faults

from .allowed import KNOWN_AUTHOR, faults_of_words
from .gates import gate_names


@dataclass(frozen=True, kw_only=True)
class Request(VersionOptions):
    """What the command line asks for; without a decision the version is reviewed only."""

    decision: Annotated[
        Literal["approve", "reject", "retire", "rollback"] | None, Help("What to decide.")
    ] = None
    reviewer: Annotated[str, Help("Who decides.")] = ""
    reason: Annotated[str, Help("Why.")] = ""
    waive: Annotated[list[str], Help("Gates that need not be passed: gate1,gate2.")] = field(
        default_factory=list[str]
    )
    expires: Annotated[Name | None, Help("Last day of an approval: 2027-06-30.")] = None
    slices: Annotated[list[Name], Help("Columns of the ledger: region,merchant_type.")] = field(
        default_factory=list[str]
    )
    data: Annotated[Source | None, Help("Where the ledger is now, if it has moved.")] = None
    history: Annotated[bool, Help("Print every decision.")] = False
    verify_history: Annotated[bool, Help("Check the chain of decisions.")] = False

    @property
    def reads_only(self) -> bool:
        """Whether the history is all that is asked for."""
        return self.history or self.verify_history


def read_request(project: Path, words: Sequence[str]) -> Request:
    """Return what is asked for; gates are set by their dotted name.

    Raises:
        Refused: If an option can't be what it is; all faults together.
    """
    return Request.read(project, words, _decision_faults, lambda name: name.startswith("registry."))


def _decision_faults(asked: Request) -> Iterator[str]:
    if asked.reads_only or asked.decision in ("rollback", "retire"):  # nothing is reviewed
        what = "the history" if asked.reads_only else f"decision = {asked.decision}"
        idle: dict[str, object] = {"slices": asked.slices, "data": asked.data}
        if asked.decision != "retire":  # a rollback is to previous_champion, always
            idle["version"] = asked.version
        yield from (
            f"{key} (-P {key}): {what} takes none. Leave it out." for key in idle if idle[key]
        )
    given = {"waive": asked.waive, "expires": asked.expires}
    if asked.decision is None:
        given |= {"reviewer": asked.reviewer, "reason": asked.reason}
        yield from (f"{key} (-P {key}): belongs to a decision." for key in given if given[key])
        return
    if asked.reads_only:
        shown = f"decision = {asked.decision} (-P decision)"
        yield f"{shown}: history only shows what was decided. Leave one of them out."
    yield from signer_faults(asked.registry.get("sign_key"))
    yield from faults_of_words(
        asked.decision, asked.reviewer, asked.reason, asked.waive, asked.expires,
        [*gate_names(), KNOWN_AUTHOR], datetime.now(UTC),
    )  # fmt: skip
