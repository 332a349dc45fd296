"""Two classifiers on the same rows, in numbers: scores with intervals, differences, calibration.

N rows, C classes, R resamples. Class ids stand for names that all models share; a prediction of a
class that no row has is an id like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import binomtest

from account_tax.model.calibration import (
    coverage_curve,
    expected_calibration_error,
    reliability_bins,
    score_filed,
)

RESAMPLES = 2000
SEED = 20240613  # any number: fixed, so that a review repeats to the last digit
CONFIDENCE = 0.95
CHUNK = 250  # resamples drawn at once; bounds the memory at CHUNK x cells
SMALLEST_SLICE = 10  # rows; smaller ones are pooled
DISAGREEMENTS = 20
CURVE_POINTS = 200

Interval = dict[str, float | None]  # value, low, high
NOT_MEASURED: Interval = dict.fromkeys(("value", "low", "high"))
# Which rows an account's metric is measured on.
MEASURED_ON = {"precision": "class_predicted", "recall": "class_rows", "f1": "class_rows"}


@dataclass(frozen=True)
class Scores:
    """Metrics of one model: of the rows themselves, or with a leading axis R of resamples."""

    accuracy: np.ndarray  # ()
    f1: np.ndarray  # (), the macro average
    class_precision: np.ndarray  # (C,)
    class_recall: np.ndarray  # (C,)
    class_rows: np.ndarray  # (C,)
    class_predicted: np.ndarray  # (C,), rows
    class_f1: np.ndarray  # (C,)


# --- scores and their bootstrap -------------------------------------------------------------------


def score_counts(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> Scores:
    """Return the metrics that follow from counts by class, each (..., C).

    A class never predicted has precision 0; F1's average is over the classes that occur in labels
    or predictions. Source: sklearn.metrics.precision_recall_fscore_support, zero_division=0.

    Args:
        hits: Rows of the class that were predicted as it.
        support: Rows of the class.
        predicted: Rows predicted as the class.
    """
    f1 = _divide(2 * hits, support + predicted)
    occurring = (support + predicted > 0).sum(axis=-1)
    return Scores(
        accuracy=hits.sum(axis=-1) / support.sum(axis=-1),
        f1=f1.sum(axis=-1) / occurring,
        class_precision=_divide(hits, predicted),
        class_recall=_divide(hits, support),
        class_rows=support,
        class_predicted=predicted,
        class_f1=f1,
    )


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def score_model(truth: np.ndarray, predicted: np.ndarray, classes: int) -> Scores:
    """Return the metrics of predictions (N,) for true class ids (N,)."""
    hits = np.bincount(truth[truth == predicted], minlength=classes)
    support, claimed = (np.bincount(ids, minlength=classes) for ids in (truth, predicted))
    return score_counts(hits, support, claimed)


def resample_models(
    truth: np.ndarray,
    predictions: Sequence[np.ndarray],
    classes: int,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[Scores]:
    """Return each model's metrics on the same R resamples of the rows: a paired bootstrap.

    Rows of one true class and one prediction of each model are alike to every metric. So instead
    of N rows, the counts of the K distinct kinds are drawn, from the multinomial distribution that
    drawing N rows with replacement gives.

    Args:
        truth: Class ids, (N,).
        predictions: Of each model, class ids (N,).
        classes: C.
        resamples: R.
        seed: Of the draws. RandomState's stream is frozen: any numpy draws the same.
    """
    kinds, counts = np.unique(np.stack([truth, *predictions]), axis=1, return_counts=True)
    support_of = _indicator(kinds[0], np.ones(len(counts)), classes)
    tables = [
        (_indicator(kinds[0], kinds[0] == kind, classes), _indicator(kind, kind >= 0, classes))
        for kind in kinds[1:]
    ]
    random, shares = np.random.RandomState(seed), counts / counts.sum()
    parts: list[list[Scores]] = [[] for _ in predictions]
    for start in range(0, resamples, CHUNK):
        size = min(CHUNK, resamples - start)
        draws = random.multinomial(counts.sum(), shares, size=size).astype(np.float64)  # (size, K)
        support = (support_of @ draws.T).T
        for part, (hits_of, predicted_of) in zip(parts, tables, strict=True):
            part.append(score_counts((hits_of @ draws.T).T, support, (predicted_of @ draws.T).T))
    return [_stack(part) for part in parts]


def _indicator(ids: np.ndarray, values: np.ndarray, classes: int) -> Any:
    """Return the (C, K) matrix that sums values of kinds by class id."""
    cells = (np.asarray(values, dtype=np.float64), (ids, np.arange(len(ids))))
    return sparse.csr_array(cells, shape=(classes, len(ids)))


def _stack(parts: Sequence[Scores]) -> Scores:
    names = Scores.__dataclass_fields__
    return Scores(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def interval(value: float, resampled: np.ndarray, rows: int, lowest: float = 0.0) -> Interval:
    """Return a value with the percentile interval of its resamples (R,), at CONFIDENCE.

    Rows that are all right are all right however often they are drawn. So the interval reaches at
    least as far as the rows may hide: to the share of errors of which they would have none with
    probability (1 - CONFIDENCE) / 2. Where all are right, that is the exact interval. Source:
    Clopper and Pearson 1934.

    Args:
        value: Of the rows themselves.
        resampled: Of the resamples that have such a row.
        rows: That the value is measured on. On none it may be anything.
        lowest: What the value can be at least, 0 or, for a difference, -1; at most it is 1.
    """
    if not rows:
        return {"value": float(value), "low": lowest, "high": 1.0}
    tail = (1 - CONFIDENCE) / 2
    low, high = np.percentile(resampled, [100 * tail, 100 * (1 - tail)])
    hidden = 1 - tail ** (1 / rows)
    return {
        "value": float(value),
        "low": float(max(lowest, min(low, value - hidden))),
        "high": float(min(1.0, max(high, value + hidden))),
    }


# --- models against each other --------------------------------------------------------------------


def summarize_models(
    truth: np.ndarray, predictions: Mapping[str, np.ndarray], names: Sequence[str], reference: str
) -> dict[str, Any]:
    """Return every model's scores and classes, and the challenger's differences to the reference.

    Args:
        truth: Class ids, (N,).
        predictions: By model, class ids (N,); one is `challenger`.
        names: Class names, C.
        reference: The model the challenger is compared with.

    Returns:
        models (accuracy and f1 of each), difference (the challenger's less the reference's),
        against (the same of every model) and classes, in the order of their ids (not measured is
        one that no row has); every number with its 95% interval, those of a difference from paired
        resamples.
    """
    drawn = resample_models(truth, list(predictions.values()), len(names))
    resampled = dict(zip(predictions, drawn, strict=True))
    whole = {
        model: score_model(truth, predicted, len(names)) for model, predicted in predictions.items()
    }
    differences = {
        model: {
            metric: interval(
                *(getattr(of["challenger"], metric) - getattr(of[model], metric)
                  for of in (whole, resampled)),
                rows=len(truth), lowest=-1.0,
            )
            for metric in ("accuracy", "f1")
        }
        for model in predictions if model != "challenger"
    }  # fmt: skip
    return {
        "models": {
            model: {
                metric: interval(
                    getattr(whole[model], metric), getattr(resampled[model], metric), len(truth)
                )
                for metric in ("accuracy", "f1")
            }
            for model in predictions
        },
        "difference": differences[reference],
        "against": differences,
        "classes": _summarize_classes(names, whole, resampled, reference),
    }


def _summarize_classes(
    names: Sequence[str],
    whole: Mapping[str, Scores],
    resampled: Mapping[str, Scores],
    reference: str,
) -> list[dict[str, Any]]:
    ours, theirs = ((whole[model], resampled[model]) for model in ("challenger", reference))
    return [
        {
            "label": name,
            "rows": int(ours[0].class_rows[index]),
            "challenger": _class_scores(*ours, index),
            "reference": _class_scores(*theirs, index),
            "f1_difference": _f1_difference(ours, theirs, index),
        }
        for index, name in enumerate(names)
    ]


def _class_scores(found: Scores, drawn: Scores, index: int) -> dict[str, Interval]:
    if not found.class_rows[index]:
        return dict.fromkeys(MEASURED_ON, NOT_MEASURED)
    return {
        metric: interval(
            getattr(found, f"class_{metric}")[index],
            getattr(drawn, f"class_{metric}")[getattr(drawn, of)[:, index] > 0, index],
            int(getattr(found, of)[index]),
        )
        for metric, of in MEASURED_ON.items()
    }


def _f1_difference(
    ours: tuple[Scores, Scores], theirs: tuple[Scores, Scores], index: int
) -> Interval:
    rows = int(ours[0].class_rows[index])
    if not rows:
        return NOT_MEASURED
    value, drawn = (
        our.class_f1[..., index] - their.class_f1[..., index]
        for our, their in zip(ours, theirs, strict=True)
    )
    return interval(float(value), drawn[ours[1].class_rows[:, index] > 0], rows, lowest=-1.0)


def compare_by_mcnemar(
    truth: np.ndarray, challenger: np.ndarray, reference: np.ndarray
) -> dict[str, Any]:
    """Return the rows that just one of two models gets right, and McNemar's exact p-value.

    Were both equally good, each such row would fall to either like a coin. Source: McNemar 1947;
    the exact form is the two-sided binomial test. Without such rows the p-value is 1.
    """
    ours, theirs = challenger == truth, reference == truth
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    rows = only_ours + only_theirs
    return {
        "only_challenger": only_ours,
        "only_reference": only_theirs,
        "both": int((ours & theirs).sum()),
        "neither": int((~ours & ~theirs).sum()),
        "p_value": float(binomtest(only_ours, rows, 0.5).pvalue) if rows else 1.0,
    }


def confuse(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return the confusion matrix, (C, C), true classes as rows."""
    cells = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


# --- scores and what they are worth ---------------------------------------------------------------


def measure_reliability(
    scores: np.ndarray, correct: np.ndarray, recorded: Mapping[str, Any], filed: np.ndarray
) -> dict[str, Any]:
    """Return what a model's scores are worth on these rows.

    Args:
        scores: Probability of the predicted label, (N,).
        correct: Whether each prediction is right, (N,) bool.
        recorded: The version's own calibration: its thresholds, chosen on its validation split for
            its target_precision, the share of the lines filed without a person that must be right.
        filed: Which rows need no person by those, (N,) bool.
    """
    curve = coverage_curve(scores, correct)
    step = max(1, len(curve) // CURVE_POINTS)
    return {
        "expected_calibration_error": expected_calibration_error(scores, correct),
        "bins": reliability_bins(scores, correct),
        "curve": [*curve[:-1:step], *curve[-1:]],
        "temperature": recorded["temperature"],
        "target_precision": recorded["target_precision"],
        "threshold": recorded["threshold"],
        "account_thresholds": len(recorded.get("account_thresholds", {})),
        **score_filed(filed, correct),
    }


# --- rows -----------------------------------------------------------------------------------------


def score_slices(
    column: pd.Series,
    truth: np.ndarray,
    models: Mapping[str, np.ndarray],
    classes: int,
    smallest: int = SMALLEST_SLICE,
) -> list[dict[str, Any]]:
    """Return rows, accuracy and macro-F1 of each model for each value of a column, most rows first.

    Values of fewer rows than the smallest slice say little one by one and are pooled at the end.
    """
    sizes: dict[str, int] = column.value_counts().to_dict()
    small = {value for value, rows in sizes.items() if rows < smallest}
    values = sorted(sizes.keys() - small, key=lambda value: (-sizes[value], value))
    parts = [(value, (column == value).to_numpy()) for value in values]
    if small:
        pooled = f"other ({len(small)} value{'s' * (len(small) != 1)})"
        parts.append((pooled, column.isin(small).to_numpy()))
    return [
        {"value": value, "rows": int(rows.sum()), **_score_rows(rows, truth, models, classes)}
        for value, rows in parts
    ]


def _score_rows(
    rows: np.ndarray, truth: np.ndarray, models: Mapping[str, np.ndarray], classes: int
) -> dict[str, Any]:
    scored = {
        model: score_model(truth[rows], predicted[rows], classes)
        for model, predicted in models.items()
    }
    return {
        model: {"accuracy": float(each.accuracy), "f1": float(each.f1)}
        for model, each in scored.items()
    }


def find_disagreements(
    row_ids: np.ndarray, labels: tuple[np.ndarray, np.ndarray], scores: tuple[np.ndarray, ...]
) -> list[dict[str, Any]]:
    """Return the rows on which two models differ and both are sure, the surest first; ids only.

    Args:
        row_ids: Of the ledger, (N,).
        labels: Both models' predicted ids, each (N,).
        scores: Both models' scores, each (N,); a row counts by the lower one.
    """
    sure = np.min(scores, axis=0)
    differing = np.flatnonzero(labels[0] != labels[1])
    order = differing[np.lexsort((row_ids[differing], -sure[differing]))][:DISAGREEMENTS]
    return [
        {
            "row": int(row),
            "row_id": int(row_ids[row]),
            "scores": [float(each[row]) for each in scores],
        }
        for row in order
    ]
