"""What `kedro reproduce` is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator

from account_tax.parameters.kinds import Help, Words
from account_tax.parameters.options import VersionOptions
from account_tax.parameters.schema import File, Natural, Source
from account_tax.provenance.signing import key_faults

Rung = Literal["R0", "R1", "R2", "R3"]
RUNGS: list[Rung] = ["R0", "R1", "R2", "R3"]


def _in_order(rungs: list[Rung]) -> list[Rung]:
    return [rung for rung in RUNGS if rung in {"R0", *rungs}]


Rungs = Annotated[
    list[Annotated[Rung, BeforeValidator(str.upper)]],
    AfterValidator(_in_order),
    Words(f"some of {', '.join(RUNGS)}"),
]


@dataclass(frozen=True, kw_only=True)
class Request(VersionOptions):
    """What is asked for; R0 is always climbed, the other rungs stand on it."""

    rungs: Annotated[Rungs, Help("R0: bytes, R1: logits, R2: metrics, R3: trained again.")] = field(
        default_factory=RUNGS.copy
    )
    run_code: Annotated[
        Literal["ask", "yes", "no"], Help("Whether R3 may run the recorded code here.")
    ] = "ask"
    seeds: Annotated[Natural, Help("Trainings with other seeds, where weights differ.")] = 3
    data: Annotated[Source | None, Help("Where the ledger is now, if it has moved.")] = None
    verify_key: Annotated[File | None, Help("PEM file of the key that has to have signed.")] = None


def read_request(project: Path, words: Sequence[str]) -> Request:
    """Return what the command line asks for.

    Raises:
        Refused: If an option can't be what it is, or the key can't be read.
    """
    return Request.read(project, words, _faults)


def _faults(asked: Request) -> Iterator[str]:
    yield from key_faults(asked.verify_key)
    used_by = {"run_code": ["R3"], "seeds": ["R3"], "data": ["R2", "R3"]}
    for name, rungs in used_by.items():
        if getattr(asked, name) != getattr(Request, name) and not {*rungs} & {*asked.rungs}:
            yield (
                f"{name} (-P {name}): for {' and '.join(rungs)} only, which rungs = "
                f"{','.join(asked.rungs)} leaves out. Leave it out too."
            )
