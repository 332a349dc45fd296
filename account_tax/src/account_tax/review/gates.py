"""The gates of `registry.gates`: each measured, with what was found, what was wanted, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from mlflow.models import EvaluationResult, MetricThreshold
from mlflow.models.evaluation.validation import (
    ModelValidationFailedException,
    validate_evaluation_results,
)

from account_tax.faults import shorten
from account_tax.provenance.code import BEFORE
from account_tax.provenance.signing import VERIFY_VARIABLE
from account_tax.storage.names import VERDICT_TAG, VERIFIED_TAG

from .baselines import TFIDF, TITLES

UNSEEN = "suppliers that train never saw"
UNSEEN_GATE = "min_unseen_accuracy"  # asked where there are enough rows of them
Status = Literal["passed", "failed", "not measured"]


@dataclass(frozen=True)
class GateResult:
    """What one gate found.

    Attributes:
        name: The gate's key below registry.gates, as -P waive names it.
        status: "not measured" of a gate counts as not passed.
        found: The measured value, as text.
        wanted: The value the gate asks for, as text.
        why: One sentence that explains the status.
    """

    name: str
    status: Status
    found: str
    wanted: str
    why: str

    @property
    def passed(self) -> bool:
        """Whether the gate lets the version through."""
        return self.status == "passed"


@dataclass(frozen=True)
class Measured:
    """What the gates look at.

    Attributes:
        challenger: Metrics of the version: accuracy, f1, loss, calibration_error, coverage; and
            unseen_accuracy, of suppliers that train never saw, where there are enough rows of them.
        reference: The same of what it is compared with; None where that could not be scored.
        reference_title: The reference in words.
        missing: Why there is no reference; else empty.
        difference: By metric, the change with its interval: value, low, high.
        over_tfidf: The same against the TF-IDF baseline.
        classes: By class label, its test rows, of those the hits, the rows claimed for it, and
            recall and f1.
        tags: Of the version.
        run_tags: Of the run that trained it, without their prefix.
        environment: environment.json of that run; None where it was not recorded.
        checked_by: Fingerprint of the key it was found signed by; empty: none is set.
        rare: Labels that were kept out of the test split.
    """

    challenger: Mapping[str, float | None]
    reference: Mapping[str, float] | None
    reference_title: str
    missing: str
    difference: Mapping[str, Mapping[str, float]] | None
    over_tfidf: Mapping[str, Mapping[str, float]]
    classes: Sequence[Mapping[str, Any]]
    tags: Mapping[str, str]
    run_tags: Mapping[str, str]
    environment: Mapping[str, Any] | None
    rare: Collection[str] = ()
    checked_by: str = ""


def evaluate_gates(gates: Mapping[str, Any], measured: Measured) -> list[GateResult]:
    """Return the outcome of every gate that is asked for, in the order they are declared."""
    floor_rows = gates["class_floor_rows"]
    classes = [each for each in measured.classes if each["label"] not in measured.rare]
    if gates.get("pool_small_accounts"):
        classes = _pool_small(classes, floor_rows)
    measured, measures = replace(measured, classes=classes), _measures(floor_rows)
    return [
        measures[name](name, wanted, measured)
        for name, wanted in gates.items()
        if name in measures and wanted is not None and wanted is not False
        if name != UNSEEN_GATE or "unseen_accuracy" in measured.challenger
    ]


def judge(gates: Sequence[Mapping[str, Any]]) -> tuple[Status, str]:
    """Return the outcome of all gates, given with name and status, and a sentence about it."""
    failed, unmeasured = (
        [gate["name"] for gate in gates if gate["status"] == status]
        for status in ("failed", "not measured")
    )
    were = f"{'was' if len(unmeasured) == 1 else 'were'} not measured: {', '.join(unmeasured)}."
    if failed:
        sentence = f"{len(failed)} of {len(gates)} gates failed: {', '.join(failed)}."
        return "failed", sentence + f" {len(unmeasured)} {were}" * bool(unmeasured)
    if unmeasured:
        sentence = f"None of {len(gates)} gates failed, and {len(unmeasured)} {were}"
        return "not measured", sentence
    return "passed", f"All {len(gates)} gates passed."


def gate_names() -> list[str]:
    """Return the gates there are, as registry.gates and -P waive name them."""
    return list(_measures(1))


def _measures(floor_rows: int) -> dict[str, Callable[[str, Any, Measured], GateResult]]:
    """Return how each gate is measured, by its name."""
    return {
        "min_accuracy": _threshold("accuracy", greater=True),
        "min_f1": _threshold("f1", greater=True),
        UNSEEN_GATE: _threshold("unseen_accuracy", greater=True),
        "max_loss": _threshold("loss", greater=False),
        "accuracy_min_absolute_change": _change("accuracy", "min_absolute_change"),
        "accuracy_min_relative_change": _change("accuracy", "min_relative_change"),
        "f1_min_absolute_change": _change("f1", "min_absolute_change"),
        "f1_min_relative_change": _change("f1", "min_relative_change"),
        "accuracy_change_lower_bound": _lower_bound("accuracy"),
        "f1_change_lower_bound": _lower_bound("f1"),
        "tfidf_accuracy_change_lower_bound": _lower_bound("accuracy", TITLES[TFIDF]),
        "min_class_recall": _class_floor("recall", floor_rows),
        "min_class_f1": _class_floor("f1", floor_rows),
        "min_class_rows": _class_rows,
        "max_calibration_error": _threshold("calibration_error", greater=False),
        "min_coverage": _threshold("coverage", greater=True),
        "locked_environment": _locked_environment,
        "clean_tree": _clean_tree,
        "cold_load_verified": _cold_load_verified,
        "signed": _signed,
        "reproduced": _reproduced,
    }


# --- on the metrics, with MLflow's own validation -------------------------------------------------


def _threshold(metric: str, *, greater: bool) -> Callable[[str, Any, Measured], GateResult]:
    words = _in_words(metric)

    def measure(name: str, wanted: float, measured: Measured) -> GateResult:
        value = measured.challenger.get(metric)
        asked = f"{'at least' if greater else 'at most'} {wanted:g}"
        if value is None or math.isnan(value):
            return _not_measured(name, asked, _missing_in_words(metric, value))
        holds = meets(MetricThreshold(threshold=wanted, greater_is_better=greater), value, None)
        relation = "as high as asked" if greater else "as low as asked"
        why = f"The {words} is {'' if holds else 'not '}{relation}."
        return _result(name, holds, f"{value:.4f}", asked, why)

    return measure


def _change(metric: str, kind: str) -> Callable[[str, Any, Measured], GateResult]:
    def measure(name: str, wanted: float, measured: Measured) -> GateResult:
        relative = kind == "min_relative_change"
        asked = f"change of at least {wanted:+g}" + (", relative" if relative else "")
        if measured.reference is None:
            return _not_measured(name, asked, _sentence(measured.missing))
        value, before = measured.challenger[metric], measured.reference[metric]
        if value is None or math.isnan(value):
            return _not_measured(name, asked, _missing_in_words(metric, value))
        threshold = MetricThreshold(**{kind: wanted}, greater_is_better=True)
        holds = meets(threshold, value, before)
        change = (value - before) / abs(before) if relative and before else value - before
        words = _in_words(metric)
        why = (
            f"The {words} is {value:.4f}, of {measured.reference_title} {before:.4f}: that "
            f"is {'enough' if holds else 'not enough'}."
        )
        return _result(name, holds, f"{change:+.4f}", asked, why)

    return measure


def meets(threshold: MetricThreshold, value: float, baseline: float | None) -> bool:
    """Return whether a value passes MLflow's own validation, beside a baseline if one is given."""
    found, before = ({"metric": each} for each in (value, baseline))
    try:
        validate_evaluation_results(
            {"metric": threshold},
            EvaluationResult(metrics=found, artifacts={}),
            None if baseline is None else EvaluationResult(metrics=before, artifacts={}),
        )
    except ModelValidationFailedException:
        return False
    return True


def _lower_bound(
    metric: str, baseline: str | None = None
) -> Callable[[str, Any, Measured], GateResult]:
    def measure(name: str, wanted: float, measured: Measured) -> GateResult:
        asked = f"at least {wanted:+g}"
        difference = measured.over_tfidf if baseline else measured.difference
        if difference is None:
            return _not_measured(name, asked, _sentence(measured.missing))
        low, high = (difference[metric][end] for end in ("low", "high"))
        why = (
            f"Against {baseline or measured.reference_title}, the change of {_in_words(metric)} "
            f"lies between {low:+.4f} and {high:+.4f} (95% interval)."
        )
        return _result(name, low >= wanted, f"{low:+.4f}", asked, why)

    return measure


# --- on the classes -------------------------------------------------------------------------------


def _pool_small(classes: Sequence[Mapping[str, Any]], floor_rows: int) -> list[Mapping[str, Any]]:
    """Return the accounts with enough test rows, and the others together as one."""
    large = [each for each in classes if each["rows"] >= floor_rows]
    small = [each for each in classes if each["rows"] < floor_rows]
    rows, hits, claimed = (sum(each[key] for each in small) for key in ("rows", "hits", "claimed"))
    pooled = {
        "label": f"{len(small)} small account{'s' * (len(small) > 1)} together",
        "rows": rows,
        "recall": hits / max(rows, 1),
        "f1": 2 * hits / max(rows + claimed, 1),
    }
    return large + [pooled] * bool(small)


def _class_floor(metric: str, floor_rows: int) -> Callable[[str, Any, Measured], GateResult]:
    def measure(name: str, wanted: float, measured: Measured) -> GateResult:
        asked = f"at least {wanted:g}"
        counted = [each for each in measured.classes if each["rows"] >= floor_rows]
        if not counted:
            most = max(measured.classes, key=lambda each: each["rows"])
            why = (
                f"At most {most['rows']} test rows ({most['label']}), fewer than class_floor_rows "
                f"= {floor_rows}. With pool_small_accounts small accounts are measured together."
            )
            return _not_measured(name, asked, why)
        below = [each["label"] for each in counted if each[metric] < wanted]
        worst = min(counted, key=lambda each: each[metric])
        why = f"Of {len(counted)} accounts with at least {floor_rows} test rows, "
        why += f"{len(below)} are below: {shorten(below)}." if below else "none is below."
        if left := [each["label"] for each in measured.classes if each["rows"] < floor_rows]:
            why += f" Too few test rows, so not measured: {shorten(left)}."
        return _result(name, not below, f"{worst[metric]:.4f} ({worst['label']})", asked, why)

    return measure


def _class_rows(name: str, wanted: int, measured: Measured) -> GateResult:
    fewest = min(measured.classes, key=lambda each: each["rows"])
    small = [each["label"] for each in measured.classes if each["rows"] < wanted]
    why = "Every account has enough test rows."
    if small:
        why = f"{len(small)} of {len(measured.classes)} accounts have fewer: {shorten(small)}."
    if measured.rare:
        why += f" Rare, so not measured: {shorten(list(measured.rare))}."
    found = f"{fewest['rows']} ({fewest['label']})"
    return _result(name, not small, found, f"at least {wanted}", why)


# --- on how the version came to be ----------------------------------------------------------------


def _locked_environment(name: str, _: bool, measured: Measured) -> GateResult:
    asked = "0 differences from the lock"
    record = measured.environment
    if record is None or record.get("differences") is None:
        return _not_measured(name, asked, "The training run does not record its environment.")
    count = len(record["differences"])
    why = "The version was trained in the locked environment."
    if count:
        why = "The version was trained with other packages than the locked ones."
    return _result(name, count == 0, f"{count} differences", asked, why)


def _clean_tree(name: str, _: bool, measured: Measured) -> GateResult:
    dirty, before = (measured.run_tags.get(tag) for tag in ("dirty", BEFORE))
    if dirty is None:
        return _not_measured(name, "clean", "The training run does not record its commit.")
    why = "The version was trained from a commit."
    if before is not None:
        why = f"The training went on with other code than it began with ({before})."
    elif dirty != "false":
        changed = measured.run_tags.get("changed", "changes that no commit has")
        why = f"The version was trained with {changed}."
    clean = dirty == "false" and before is None
    return _result(name, clean, "clean" if clean else "changed", "clean", why)


def _cold_load_verified(name: str, _: bool, measured: Measured) -> GateResult:
    verified = measured.tags.get(VERIFIED_TAG) == "true"
    why = (
        "When it was registered, a fresh process repeated the trainer's logits."
        if verified
        else "No fresh process has repeated the trainer's logits."
    )
    return _result(name, verified, str(verified).lower(), "true", why)


def _signed(name: str, _: bool, measured: Measured) -> GateResult:
    if not measured.checked_by:
        why = f"No key is known to check a signature with; {VERIFY_VARIABLE} names one."
        return _not_measured(name, "signed", why)
    why = "All that is loaded, read or run of the version is signed by this key."
    return _result(name, True, f"key {measured.checked_by[:16]}", "signed", why)


def _reproduced(name: str, wanted: str, measured: Measured) -> GateResult:
    verdict = measured.tags.get(VERDICT_TAG)
    enough = ("bitwise",) if wanted == "bitwise" else ("bitwise", "within tolerance")
    if verdict is None:
        why = "Nobody has reproduced the version; run `mlflow run . -e reproduce`."
        return _not_measured(name, " or ".join(enough), why)
    why = f"Made again from its record, the version is {verdict}."
    return _result(name, verdict in enough, verdict, " or ".join(enough), why)


def _result(name: str, holds: bool, found: str, wanted: str, why: str) -> GateResult:
    return GateResult(name, "passed" if holds else "failed", found, wanted, why)


def _not_measured(name: str, wanted: str, why: str) -> GateResult:
    return GateResult(name, "not measured", "", wanted, why)


def _missing_in_words(metric: str, value: float | None) -> str:
    """Return why there is no number to compare; any comparison with NaN would pass MLflow's."""
    return f"The {_in_words(metric)} {'could not be measured' if value is None else 'is NaN'}."


def _in_words(metric: str) -> str:
    words = {"f1": "macro-F1", "unseen_accuracy": f"accuracy on {UNSEEN}"}
    return words.get(metric, metric.replace("_", " "))


def _sentence(reason: str) -> str:
    return f"{reason[:1].upper()}{reason[1:]}."
