"""What `kedro export` is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from account_tax.errors import Refused
from account_tax.faults import tell
from account_tax.parameters.kinds import Help
from account_tax.parameters.options import VersionOptions, read_options
from account_tax.parameters.schema import File
from account_tax.storage.files import output_faults


@dataclass(frozen=True, kw_only=True)
class Request(VersionOptions):
    """What is asked for."""

    output: Annotated[File, Help("The folder to make; it must not exist.")]
    verify_key: Annotated[File | None, Help("PEM file of the key that has to have signed.")] = None


def read_request(project: Path, words: Sequence[str]) -> Request:
    """Return what is asked for.

    Raises:
        Refused: If an option can't be what it is, or the folder can't be made.
    """
    asked, _ = read_options(Request, words)
    output = project / asked.output
    if faults := output_faults(output.parent, [output], "Name a folder that doesn't."):
        said = [f"output = {asked.output} (-P output): {fault}" for fault in faults]
        raise Refused(tell(said, "in the options"))
    return asked.settled(project)
