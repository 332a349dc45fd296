"""What two versions were made from, side by side: data, code, configuration, environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from account_tax.confidential import public_source
from account_tax.parameters.config import GATES, NO_PART, LaunchOptions, Resolved
from account_tax.provenance.environment import differing
from account_tax.provenance.statement import NOT_RECORDED
from account_tax.registry.record import Record
from account_tax.storage.files import canonical_sha256

DIGEST_SHOWN = 12  # hex digits; the whole digest is in the run
MOST_PACKAGES = 40  # rows of a table that a person still reads

Row = dict[str, str]  # what, challenger, champion


def compare_records(challenger: Record, champion: Record | None) -> dict[str, list[Row]]:
    """Return the facts of both runs by section; of configuration and packages those that differ.

    Without a champion, its column is empty and the sections that only compare stay empty.
    """
    return {
        "data": _rows(challenger, champion, _data_facts),
        "code": _rows(challenger, champion, _code_facts),
        "configuration": _configuration(challenger, champion),
        "environment": [
            *_rows(challenger, champion, _environment_facts),
            *_packages(challenger, champion),
        ],
    }


def _row(what: str, challenger: Any, champion: Any, missing: str = "") -> Row:
    ours, theirs = (missing if each is None else str(each) for each in (challenger, champion))
    return {"what": what, "challenger": ours, "champion": theirs}


def _rows(challenger: Record, champion: Record | None, facts: Any) -> list[Row]:
    ours, theirs = facts(challenger), facts(champion) if champion else {}
    return [_row(name, ours[name], theirs.get(name)) for name in ours]


def _data_facts(record: Record) -> dict[str, str]:
    dataset = record.dataset
    names = ("source sha256", "rows read", "rows kept", "accounts, sha256", "text columns",
             *(f"{split} rows, sha256" for split in ("train", "validation", "test")))  # fmt: skip
    if dataset is None:
        return dict.fromkeys(names, NOT_RECORDED)
    accounts = list(dataset["splits"]["train"]["classes"])
    splits = (f"{each['rows']:,}, {_short(each['sha256'])}" for each in dataset["splits"].values())
    values = (
        _short(dataset["source_sha256"]),
        f"{dataset['rows']['read']:,}",
        f"{dataset['rows']['kept']:,}",
        f"{len(accounts):,}, {_short(canonical_sha256(accounts))}",
        ", ".join(dataset["text_columns"]),
        *splits,
    )
    return dict(zip(names, values, strict=True))


def _code_facts(record: Record) -> dict[str, str]:
    tags = record.tags
    changed = tags.get("changed", "changes that no commit has")
    words = {"true": f"no: {changed}", "false": "yes"}
    return {
        "commit": _short(tags.get("commit")),
        "tree as committed": words.get(str(tags.get("dirty")), NOT_RECORDED),
        "recipe": tags.get("recipe", NOT_RECORDED),
    }


def _configuration(challenger: Record, champion: Record | None) -> list[Row]:
    """Return the keys whose values differ; one row that says so where they are not recorded."""
    if champion is None:
        return []
    if challenger.parameters is None or champion.parameters is None:
        shown = {True: NOT_RECORDED, False: "recorded"}
        missing = [shown[record.parameters is None] for record in (challenger, champion)]
        return [_row("all keys", *missing)]
    ours, theirs = (_public(record.parameters or {}) for record in (challenger, champion))
    return [_row(*each, missing="not set") for each in differing(ours, theirs)]


def _public(parameters: Mapping[str, Any]) -> dict[str, Any]:
    flat = {
        key: value
        for key, value in Resolved(LaunchOptions(), dict(parameters), {}).flat().items()
        if key not in NO_PART and not key.startswith(GATES)
    }
    if "data.source" in flat:
        flat["data.source"] = public_source(flat["data.source"])
    return flat


def _environment_facts(record: Record) -> dict[str, str]:
    environment = record.environment
    names = ("lock sha256", "packages that differ from the lock", "Python", "CPU", "GPUs")
    if environment is None:
        return dict.fromkeys(names, NOT_RECORDED)
    differences = environment.get("differences")
    values = (
        _short(environment.get("lock_sha256")),
        NOT_RECORDED if differences is None else f"{len(differences):,}",
        str(environment.get("python", NOT_RECORDED)),
        str(environment.get("cpu", NOT_RECORDED)),
        ", ".join(environment.get("gpus") or []) or "none",
    )
    return dict(zip(names, values, strict=True))


def _packages(challenger: Record, champion: Record | None) -> list[Row]:
    """Return the packages whose versions differ between the two runs."""
    ours, theirs = (
        (record.environment or {}).get("packages", {}) if record else {}
        for record in (challenger, champion)
    )
    if not (ours and theirs):
        return []
    other = differing(ours, theirs)
    rows = [_row(*each, missing="not installed") for each in other[:MOST_PACKAGES]]
    if left := len(other) - len(rows):
        rows.append(_row(f"{left} more packages", None, None))
    return rows


def _short(digest: str | None) -> str:
    return digest[:DIGEST_SHOWN] if digest else NOT_RECORDED
