"""The history of decisions as a person reads it."""

from __future__ import annotations

import textwrap

from account_tax.registry.history import Entry

REASON_WIDTH = 100  # characters


def format_history(entries: list[Entry]) -> str:
    """Return the history as text: a line of facts for each entry, then the reviewer's words."""
    if not entries:
        return "No decision has been recorded.\n"
    head = ("#", "time (UTC)", "decision", "version", "state", "champion", "reviewer", "sha256")
    rows = [head, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    parts = [lines[0]]
    for line, entry in zip(lines[1:], entries, strict=True):
        parts += [line, *_remarks(entry)]
    return "\n".join(parts) + "\n"


def _row(entry: Entry) -> tuple[str, ...]:
    before, after = (
        str(aliases.get("champion", "none"))
        for aliases in (entry.aliases_before, entry.aliases_after)
    )
    moved = entry.state_from != entry.state_to
    return (
        str(entry.n),
        entry.time.removesuffix("+00:00"),
        entry.decision,
        str(entry.version),
        f"{entry.state_from} → {entry.state_to}" if moved else entry.state_to,
        f"{before} → {after}" if before != after else after,
        one_line(entry.reviewer),
        entry.sha256[:12],
    )


def _remarks(entry: Entry) -> list[str]:
    """Return the lines below an entry's facts."""
    said = {
        "reason": one_line(entry.reason),
        "waived": ", ".join(entry.waived),
        "expires": entry.expires,
        "author": one_line(entry.author),
    }
    return [
        line
        for key, value in said.items()
        if value
        for line in textwrap.wrap(
            f"{key}: {value}", REASON_WIDTH, initial_indent="   ", subsequent_indent="     "
        )
    ]


def one_line(text: str) -> str:
    """Return a person's words as one line that a terminal shows as it is."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
