"""What a user may ask of `predict`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from account_tax.parameters.kinds import Help
from account_tax.parameters.options import UNAPPROVED
from account_tax.parameters.schema import Count, Encoding, File, Name, UpToOne


@dataclass(frozen=True)
class Options:
    """What is asked; `threshold` None takes the version's own."""

    model: Annotated[Name, Help("models:/NAME/VERSION or models:/NAME@ALIAS.")]
    input: Annotated[File, Help("The ledger: a file, part files as folder or glob, or -.")]
    output: Annotated[File, Help("The file to write: .csv, .parquet or .jsonl, or -.")]
    top_k: Annotated[Count, Help("Labels a row, likeliest first.")] = 1
    threshold: Annotated[UpToOne | None, Help("Another score below which a person looks.")] = None
    on_error: Annotated[
        Literal["fail", "skip"], Help("skip: rows that can't be read are no failure.")
    ] = "fail"
    errors: Annotated[File | None, Help("Where those rows are listed; else beside the output.")] = (
        None
    )
    encoding: Annotated[Encoding | None, Help("Of a text file; else it is found.")] = None
    header_row: Annotated[Count | None, Help("The header's line; else it is found.")] = None
    sheet: Annotated[Name | None, Help("Of a workbook; else the one with the columns.")] = None
    amount_column: Annotated[Name | None, Help("Summed by account at the end.")] = None
    precision: Annotated[
        Literal["auto", "fp32"], Help("auto: bf16 where hardware has it and labels stay.")
    ] = "auto"
    # What is held in memory, and what a killed run loses.
    batch_rows: Annotated[Count, Help("Rows read, sorted, answered and stored at once.")] = 8192
    allow_unapproved: Annotated[bool, Help(UNAPPROVED)] = False
    overwrite: Annotated[bool, Help("Replace an output that is there.")] = False
    streamed: bool = False  # to standard output: nothing is kept that a run could go on from

    @property
    def output_name(self) -> str:
        """Where the filed rows are, as people are told."""
        return "standard output" if self.streamed else self.output.name

    @property
    def rejects_name(self) -> str:
        """Where the others are listed, as people are told."""
        to_stream = self.streamed and self.errors is None
        return "standard error" if to_stream else self.rejects.name

    @property
    def rejects(self) -> Path:
        """Where the rows that can't be read are listed."""
        return self.errors or self.output.with_name(f"{self.output.name}.rejects.jsonl")
