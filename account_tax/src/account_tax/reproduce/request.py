"""What `kedro reproduce` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from account_tax.commands import given, registered_name
from account_tax.errors import Refused
from account_tax.provenance.signing import load_public_key, verify_key

RUNGS = ("R0", "R1", "R2", "R3")


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Attributes:
        name: The registered model.
        reference: A version's number or an alias.
        rungs: Those to climb; R0 always is, the others stand on it.
        seeds: Trainings with other seeds, where R3's weights differ.
        source: Where the data are now, if they have moved.
        public_key: The key that has to have signed the version, if any.
    """

    name: str
    reference: str
    rungs: tuple[str, ...]
    seeds: int
    source: str | None
    public_key: Path | None


def parse_rungs(text: str) -> tuple[str, ...]:
    """Return the rungs named, in order, R0 among them."""
    given = {word.strip().upper() for word in text.split(",")}
    if unknown := sorted(given - set(RUNGS)):
        known = ", ".join(RUNGS)
        raise Refused(f"rungs = {text}: {', '.join(unknown)} is none. Expected some of {known}.")
    return tuple(rung for rung in RUNGS if rung in given | {"R0"})


def parse_request(project: Path, options: Mapping[str, str]) -> Request:
    """Return what the command line asks for.

    Raises:
        Refused: If an option can't be what it is.
    """
    seeds, key = options["seeds"], given(options["verify_key"])
    if not seeds.isdigit():
        raise Refused(f"seeds = {seeds}: expected a whole number of at least 0.")
    if file := verify_key(Path(key) if key else None):
        load_public_key(file)
    return Request(
        registered_name(project, options["registered_model_name"]),
        options["version"],
        parse_rungs(options["rungs"]),
        int(seeds),
        given(options["data"]),
        Path(key) if key else None,
    )
