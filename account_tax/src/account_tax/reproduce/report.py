"""The ladder in words: as printed, as JSON and Markdown, and as the version's marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from account_tax.reporting.description import write_section
from account_tax.reporting.markdown import escape_cell, format_number, markdown_table
from account_tax.storage.names import VERDICT_TAG

from .rungs import CLAIMS, Rung, Verdict

RUN_TAG, TIME_TAG = f"{VERDICT_TAG}_run_id", f"{VERDICT_TAG}_at"


def print_rung(rung: Rung) -> str:
    """Return a rung as it is printed."""
    return f"{rung.name} {rung.status:<8} {CLAIMS[rung.name]}: {rung.evidence}"


def in_words(verdict: Verdict) -> str:
    """Return the verdict in a line: BITWISE, WITHIN TOLERANCE, DIFFERENT or not retrained."""
    word = verdict.word.upper() if verdict.word else "NOT RETRAINED"
    return f"{word} ({verdict.reason})" if verdict.reason else word


def report_json(
    version: ModelVersion, rungs: Sequence[Rung], verdict: Verdict, at: str
) -> dict[str, Any]:
    """Return the whole report as data."""
    return {
        "name": version.name,
        "version": int(version.version),
        "verdict": verdict.word,
        "cause": verdict.cause,
        "reason": verdict.reason,
        "at": at,
        "rungs": [
            {
                "rung": rung.name,
                "claim": CLAIMS[rung.name],
                "status": rung.status,
                "evidence": rung.evidence,
                "differences": [
                    {"cause": each.cause, "text": each.text} for each in rung.differences
                ],
                "numbers": dict(rung.numbers),
            }
            for rung in rungs
        ],
    }


def report_markdown(version: ModelVersion, rungs: Sequence[Rung], verdict: Verdict, at: str) -> str:
    """Return the report for a reader."""
    rows = [[rung.name, CLAIMS[rung.name], rung.status, rung.evidence] for rung in rungs]
    found = {(each.cause, each.text) for rung in rungs for each in rung.differences}
    inputs = [f"- **{cause}**: {escape_cell(text)}" for cause, text in sorted(found)]
    parts = [
        f"# {version.name} version {version.version}, reproduced",
        f"**{in_words(verdict)}**",
        f"At {at}.",
        markdown_table(["rung", "claim", "", "evidence"], rows),
        "## Inputs that differ",
        "\n".join(inputs or ["- none found"]),
    ]
    for rung in rungs:
        if table := rung.numbers.get("metrics"):
            parts += ["## Metrics and the band of seeds", _metrics(table)]
    return "\n\n".join(parts) + "\n"


def _metrics(table: list[dict[str, Any]]) -> str:
    rows = [
        [
            row["metric"],
            format_number(row["delta"], "+.6f"),
            format_number(row["band"], ".6f"),
            "yes" if row["within"] else "no",
        ]
        for row in table
    ]
    return markdown_table(["metric", "difference", "band", "within"], rows)


def mark_version(
    client: MlflowClient, version: ModelVersion, verdict: Verdict, run_id: str, at: str
) -> None:
    """Put the verdict on the version: three tags, and a line of its description."""
    assert verdict.word is not None
    for key, text in ((RUN_TAG, run_id), (TIME_TAG, at), (VERDICT_TAG, verdict.word)):
        client.set_model_version_tag(version.name, version.version, key, text)
    line = f"Reproduced: {in_words(verdict)}, {at}, run {run_id}"
    write_section(client, version, "reproduced", line)
