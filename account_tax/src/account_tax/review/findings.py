"""Everything a review found, as one plain dict: what the report shows and review.json keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from account_tax.confidential import public_source
from account_tax.ledger.reading import describe_rare
from account_tax.model.classifier import needs_review
from account_tax.model.ngrams import MOST_ROWS
from account_tax.provenance.signing import key_in_use
from account_tax.provenance.statement import NOT_RECORDED
from account_tax.storage.names import CONTENT_TAG

from .baselines import MAJORITY, TFIDF, TITLES
from .differences import compare_records
from .evidence import Contender, Evidence, Scored
from .gates import UNSEEN, UNSEEN_GATE, GateResult, Measured, evaluate_gates, judge
from .statistics import (
    compare_by_mcnemar,
    confuse,
    find_disagreements,
    measure_reliability,
    score_model,
    score_slices,
    summarize_models,
)

MOST_CHANGES = 20  # cells of the confusion matrix in the table of differences
SUPPLIERS = "supplier in train"  # a slice

Findings = dict[str, Any]


def find(evidence: Evidence, gates: Mapping[str, Any]) -> Findings:
    """Return the review of the evidence: numbers, differences, warnings and gates.

    Args:
        evidence: Both versions' and the baselines' answers.
        gates: registry.gates.
    """
    answers, champion, classes = evidence.answers, evidence.champion, len(evidence.names)
    reference = choose_reference(evidence)
    predictions = {role: each.predicted for role, each in answers.items()} | evidence.baselines
    ours, theirs = predictions["challenger"], predictions[reference]
    confusions = [confuse(evidence.truth, each, classes) for each in (ours, theirs)]
    found = summarize_models(evidence.truth, predictions, evidence.names, reference)
    findings = _subject(evidence, reference) | {
        "accounts": sum(each["rows"] > 0 for each in found["classes"]),
        "titles": {role: _title(evidence, role) for role in predictions},
        **found,
        "mcnemar": compare_by_mcnemar(evidence.truth, ours, theirs),
        "confusion_change": (confusions[0] - confusions[1]).tolist(),
        "confusion_cells": _changed_cells(evidence.names, *confusions),
        "names": evidence.names,
        "calibration": {role: _calibrate(evidence, role) for role in answers},
        "slices": _slice(evidence, {"challenger": ours, "reference": theirs}),
        "amounts": _weigh(evidence, predictions),
        "disagreements": _disagree(evidence),
        "cost": _costs(evidence),
        "differences": compare_records(evidence.challenger.record, champion and champion.record),
    }
    outcomes = evaluate_gates(gates, _measured(evidence, findings, gates["class_floor_rows"]))
    return findings | {
        "worse": _worse(findings),
        "warnings": _warnings(evidence) + _say_not_asked(evidence, gates, outcomes),
        "gates": [asdict(each) for each in outcomes],
        "outcome": judge([asdict(each) for each in outcomes])[0],
    }


def _worse(findings: Findings) -> str:
    """Return the sentence that goes before the gates where the reference is surely better."""
    names = {"accuracy": "accuracy", "f1": "macro-F1"}
    metrics = [name for key, name in names.items() if findings["difference"][key]["high"] < 0]
    if not metrics:
        return ""
    title = findings["reference"]["title"]
    return f"Worse than {title} in {' and '.join(metrics)}, and more than chance explains."


def _subject(evidence: Evidence, reference: str) -> Findings:
    """Return what is reviewed, what it is compared with, and on which rows."""
    return {
        "challenger": _describe(evidence.challenger),
        "champion": evidence.champion and _describe(evidence.champion),
        "champion_note": evidence.champion_note,
        "reference": _describe_reference(evidence, reference),
        "source": public_source(evidence.data["source"]),
        "rows": len(evidence.truth),
        "train_rows": evidence.train_rows,
        "rare": describe_rare(evidence.challenger.record.dataset or {}),
    }


def gate_results(findings: Findings) -> list[GateResult]:
    """Return the outcomes of the gates, as a decision takes them."""
    return [GateResult(**each) for each in findings["gates"]]


def choose_reference(evidence: Evidence) -> str:
    """Return what the challenger is compared with: the champion, else the better baseline by F1."""
    if "champion" in evidence.answers:
        return "champion"
    classes = len(evidence.names)
    return max(
        (TFIDF, MAJORITY),
        key=lambda name: float(score_model(evidence.truth, evidence.baselines[name], classes).f1),
    )


def _title(evidence: Evidence, role: str) -> str:
    if role in TITLES:
        return TITLES[role]
    suffix = "reviewed" if role == "challenger" else role
    return f"{evidence.contender(role).title} ({suffix})"


def _describe_reference(evidence: Evidence, role: str) -> dict[str, str]:
    """Return the reference's name, whole and as the head of a column has room for it."""
    short = {MAJORITY: "majority", TFIDF: "TF-IDF"}.get(role)
    return {
        "key": role,
        "title": _title(evidence, role),
        "short": short or f"version {evidence.contender(role).version.version}",
    }


def _describe(contender: Contender) -> dict[str, Any]:
    version = contender.version
    return {
        "title": contender.title,
        "short": f"version {version.version}",
        "name": version.name,
        "version": int(version.version),
        "run_id": version.run_id,
        "content_sha256": version.tags.get(CONTENT_TAG, NOT_RECORDED),
        "base": contender.classifier.settings["base"],
        "accuracy_at_registration": contender.record.metrics.get("test/accuracy"),
    }


def _changed_cells(
    names: Sequence[str], ours: np.ndarray, theirs: np.ndarray
) -> list[dict[str, Any]]:
    """Return the confusions that differ most between two matrices, right answers left out."""
    change = ours - theirs
    np.fill_diagonal(change, 0)
    cells = np.argwhere(change)
    order = np.lexsort((cells[:, 1], cells[:, 0], -np.abs(change[tuple(cells.T)])))
    return [
        {
            "true": names[true],
            "predicted": names[predicted],
            "challenger": int(ours[true, predicted]),
            "reference": int(theirs[true, predicted]),
        }
        for true, predicted in cells[order][:MOST_CHANGES]
    ]


def _calibrate(evidence: Evidence, role: str) -> dict[str, Any]:
    recorded = evidence.contender(role).classifier.settings["calibration"]
    scored = evidence.answers[role]
    names = [evidence.names[label] for label in scored.predicted]
    filed = ~needs_review(names, scored.scores, recorded)
    return measure_reliability(scored.scores, scored.predicted == evidence.truth, recorded, filed)


def _disagree(evidence: Evidence) -> list[dict[str, Any]]:
    """Return the surest disagreements with the champion; without one, with the ledger's labels."""
    ours, theirs = evidence.answers["challenger"], evidence.answers.get("champion")
    labels = (ours.predicted, theirs.predicted if theirs else evidence.truth)
    scores = (ours.scores, theirs.scores if theirs else np.ones(len(evidence.truth)))
    names = evidence.names
    return [
        {
            "row_id": each["row_id"],
            "true": names[evidence.truth[each["row"]]],
            "challenger": names[labels[0][each["row"]]],
            "challenger_score": each["scores"][0],
            "champion": names[labels[1][each["row"]]] if theirs else None,
            "champion_score": each["scores"][1] if theirs else None,
        }
        for each in find_disagreements(evidence.row_ids, labels, scores)
    ]


def _slice(evidence: Evidence, models: Mapping[str, np.ndarray]) -> Findings:
    """Return accuracy by the columns that were named, and by whether train saw the supplier."""
    classes = len(evidence.names)
    found = {
        column: score_slices(values, evidence.truth, models, classes)
        for column, values in evidence.slices.items()
    }
    if evidence.unseen is None:
        return found
    words = np.where(evidence.unseen, UNSEEN, "others")
    parts = score_slices(pd.Series(words), evidence.truth, models, classes, smallest=1)
    return found | {SUPPLIERS: sorted(parts, key=lambda part: part["value"] == "others")}


def _weigh(evidence: Evidence, predictions: Mapping[str, np.ndarray]) -> Findings | None:
    """Return the share of the absolute amount that each model files right, where there is any."""
    if evidence.amounts is None or not (total := np.nansum(sizes := np.abs(evidence.amounts))):
        return None
    unread = int(np.isnan(sizes).sum())
    shares = {
        role: float(np.nansum(sizes[predicted == evidence.truth]) / total)
        for role, predicted in predictions.items()
    }
    return {"rows": len(sizes) - unread, "unread": unread, "shares": shares}


def _costs(evidence: Evidence) -> list[dict[str, str]]:
    columns = {
        role: _cost(contender, evidence.answers.get(role))
        for role, contender in (
            ("challenger", evidence.challenger),
            ("champion", evidence.champion),
        )
        if contender
    }
    return [
        {"what": name, **{role: facts[name] for role, facts in columns.items()}}
        for name in columns["challenger"]
    ]


def _cost(contender: Contender, scored: Scored | None) -> dict[str, str]:
    metrics, seconds = contender.record.metrics, contender.record.seconds
    training = metrics.get("train/runtime_seconds")
    return {
        "size of the trained weights": f"{contender.weights_bytes / 1e6:.2f} MB",
        "rows a second, on this machine's CPU": (
            f"{scored.rows_per_second:,.0f}" if scored else "not measured"
        ),
        "training": NOT_RECORDED if training is None else f"{training:,.0f} s",
        "the whole run": NOT_RECORDED if seconds is None else f"{seconds:,.0f} s",
    }


def _warnings(evidence: Evidence) -> list[str]:
    """Return what a reader has to know before the numbers."""
    rows, champion, warnings = len(evidence.truth), evidence.champion, []
    if champion and "champion" not in evidence.answers:
        warnings.append(f"The champion could not be scored. {evidence.champion_note}")
    if evidence.leaked_rows:
        warnings.append(
            f"The champion was trained on {evidence.leaked_rows:,} of these {rows:,} test rows: it "
            "may know their answers by heart, and looks better here than it is."
        )
    elif champion and evidence.leaked_rows is None and "champion" in evidence.answers:
        warnings.append(
            "Whether the champion was trained on rows of this test split is not known: "
            f"{evidence.leak_note}."
        )
    if evidence.unknown_rows:
        warnings.append(
            f"{evidence.unknown_rows:,} of the {rows:,} test rows belong to accounts that the "
            "champion does not know; it can only be wrong there."
        )
    if evidence.train_rows > MOST_ROWS:
        warnings.append(
            f"The baselines were trained on {MOST_ROWS:,} of the {evidence.train_rows:,} "
            "training rows."
        )
    return warnings


def _say_not_asked(
    evidence: Evidence, gates: Mapping[str, Any], outcomes: Sequence[GateResult]
) -> list[str]:
    """Return why the gate of new suppliers, where they are known, is not among the outcomes."""
    asked = UNSEEN_GATE in {each.name for each in outcomes}
    if evidence.unseen is None or not gates.get(UNSEEN_GATE) or asked:
        return []
    return [
        f"The gate {UNSEEN_GATE} is not asked: {evidence.unseen.sum():,} test rows are of {UNSEEN}"
        f", and it takes {gates['class_floor_rows']:,} (registry.gates.class_floor_rows)."
    ]


def _measured(evidence: Evidence, findings: Findings, floor_rows: int) -> Measured:
    reference = findings["reference"]
    classes = _account_facts(evidence, findings["classes"])
    rare = (evidence.challenger.record.dataset or {}).get("rare_accounts", {})
    missing = ""
    if evidence.champion and reference["key"] != "champion":
        missing = "the champion could not be scored on these rows"
    models, calibration = findings["models"], findings["calibration"]["challenger"]
    values = {key: {metric: each[metric]["value"] for metric in ("accuracy", "f1")}
              for key, each in models.items()}  # fmt: skip
    return Measured(
        challenger={
            **values["challenger"],
            "loss": evidence.answers["challenger"].loss,
            "calibration_error": calibration["expected_calibration_error"],
            "coverage": calibration["coverage"],
            **_score_unseen(findings["slices"], floor_rows),
        },
        reference=None if missing else values[reference["key"]],
        reference_title=reference["title"],
        missing=missing,
        difference=None if missing else findings["difference"],
        classes=classes,
        over_tfidf=findings["against"][TFIDF],
        tags=evidence.challenger.version.tags,
        run_tags=evidence.challenger.record.tags,
        environment=evidence.challenger.record.environment,
        checked_by=key_in_use(),  # it is what the download was checked by
        rare=[each["label"] for each in classes if each["label"] in rare and not each["rows"]],
    )


def _score_unseen(slices: Findings, floor_rows: int) -> dict[str, float]:
    """Return the accuracy on suppliers that train never saw, if there are so many rows of them."""
    unseen = {part["value"]: part for part in slices.get(SUPPLIERS, [])}.get(UNSEEN)
    if not unseen or unseen["rows"] < floor_rows:
        return {}
    return {"unseen_accuracy": unseen["challenger"]["accuracy"]}


def _account_facts(evidence: Evidence, classes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the gates look at of each account that the version knows."""
    ours, size = evidence.answers["challenger"].predicted, len(evidence.names)
    hits = np.bincount(ours[ours == evidence.truth], minlength=size)
    claimed = np.bincount(ours, minlength=size)
    return [
        {
            "label": each["label"],
            "rows": each["rows"],
            "recall": each["challenger"]["recall"]["value"],
            "f1": each["challenger"]["f1"]["value"],
            "hits": int(hits[index]),
            "claimed": int(claimed[index]),
        }
        for index, each in enumerate(classes)
        if each["label"] in evidence.challenger.classifier.labels
    ]
