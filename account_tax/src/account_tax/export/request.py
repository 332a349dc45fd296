"""What `kedro export` is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from account_tax.parameters.kinds import Help
from account_tax.parameters.options import UNAPPROVED, VersionOptions
from account_tax.parameters.schema import File
from account_tax.provenance.signing import key_faults
from account_tax.storage.files import output_faults


@dataclass(frozen=True, kw_only=True)
class Request(VersionOptions):
    """What is asked for."""

    output: Annotated[File, Help("The folder to make; it must not exist.")]
    allow_unapproved: Annotated[bool, Help(UNAPPROVED)] = False
    verify_key: Annotated[File | None, Help("PEM file of the key that has to have signed.")] = None


def read_request(project: Path, words: Sequence[str]) -> Request:
    """Return what is asked for.

    Raises:
        Refused: If an option can't be what it is, or the folder can't be made.
    """
    return Request.read(project, words, lambda asked: _faults_of(project, asked))


def _faults_of(project: Path, asked: Request) -> list[str]:
    output = project / asked.output
    faults = output_faults(output.parent, [output], "Name a folder that doesn't.")
    said = [f"output = {asked.output} (-P output): {fault}" for fault in faults]
    return said + key_faults(asked.verify_key)
