"""A registered version's description: named sections, each replaced without losing the others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from account_tax.storage.names import CARD_FILE, LONGEST_TEXT

Section = Literal["review", "card", "reproduced"]

LONGEST_LINE = 300
BEGIN, END = "<!-- review -->", "<!-- end of review -->"
CARD_CUT = f"… the whole card is {CARD_FILE} of the run."
REVIEW_CUT = "… the whole review is review/report.md of its run."
# How a section is found in a stored description, in this order; the rest is the card. The marker of
# the end may be missing: a description was once cut without regard to it.
FORMS: dict[Section, re.Pattern[str]] = {
    "reproduced": re.compile(r"\n*^(Reproduced: .*)$", re.MULTILINE),
    "review": re.compile(rf"\n*^([^\n]*?) ?{BEGIN}(.*?)(?:{END}|\Z)", re.DOTALL | re.MULTILINE),
}


def write_section(client: MlflowClient, version: ModelVersion, section: Section, text: str) -> None:
    """Replace one section of a version's description, as that is at this moment."""
    # Read again: another command may have written since the version was read.
    newest = client.get_model_version(version.name, version.version).description or ""
    sections = read_sections(newest)
    sections[section] = text
    client.update_model_version(version.name, version.version, compose(sections))


def read_sections(description: str) -> dict[Section, str]:
    """Return the sections of a stored description, empty ones too."""
    found: dict[Section, str] = {}
    for section, form in FORMS.items():
        found[section] = "".join("".join(each) for each in form.findall(description)[-1:])
        description = form.sub("", description)
    found["card"] = description
    return found


def compose(sections: Mapping[Section, str]) -> str:
    """Return the description: review, card, and last the line that says how it was reproduced.

    Only the card is cut for want of room; the others are short, unless they are absurd.
    """
    line = " ".join(sections.get("reproduced", "").split())[:LONGEST_LINE]
    room = LONGEST_TEXT - len(f"\n\n{line}" if line else "")
    review = sections.get("review", "").strip()
    if review:
        frame = f" {BEGIN}\n\n{END}\n\n{CARD_CUT}"
        first, _, rest = _fit(review, room - len(frame), REVIEW_CUT).partition("\n")
        # MLflow's list of models shows a description's first words as they are.
        review = "\n".join(filter(None, (f"{first} {BEGIN}", rest, END)))
        room -= len(f"{review}\n\n")
    card = _fit(sections.get("card", "").strip(), room, CARD_CUT)
    return "\n\n".join(filter(None, (review, card, line)))


def _fit(text: str, room: int, note: str) -> str:
    """Return a text that fits, cut at a line's end, with a note in the place of the rest."""
    whole = not text.endswith("…")  # as the card was cut once, inside a line and without a note
    if whole and len(text) <= room:
        return text
    kept = text.removesuffix(note).rstrip()[: max(0, room - len(f"\n\n{note}"))]
    if "\n" in text:
        kept = kept.rpartition("\n")[0].rstrip()
    return f"{kept}\n\n{note}".strip()
