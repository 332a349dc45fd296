"""Calibration: what a score is worth, and from which score on a line needs no person.

NumPy and SciPy only, no torch. A *score* is the probability of the predicted label.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from scipy import special
from scipy.optimize import minimize, minimize_scalar

TEMPERATURE_BOUNDS = (0.05, 20.0)  # where logits say nothing of the label, T would not end
BINS = 15  # Guo et al. 2017, section 2
USUAL = np.array([1.0, 0.5])  # weights of encoder and n-grams where rows say nothing else
# Where the two sequences of thresholds begin, as a share of the rows, and their parts of the risk:
# most versions reach the target for most lines; the second is for those that do for a few only.
STARTS = ((0.8, 0.8), (0.3, 0.2))
STEP = 0.025  # share of the rows
# What is kept of fitted numbers: they are part of a version's content, whose digest must not hang
# on the last bits of a logit.
DIGITS = 4


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T at which softmax(logits / T) fits the labels best (`_misfit`).

    It changes no label, only how sure a score is. Without rows, or with a single class, it is
    undetermined: 1.

    Args:
        logits: Of rows that were not trained on, (N, C).
        labels: Their class ids, (N,).

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """
    logits = np.asarray(logits, dtype=np.float64)
    labels = np.asarray(labels)
    if logits.shape[1] < 2 or not len(labels):
        return 1.0
    found: Any = minimize_scalar(  # over log T: the loss has one minimum there
        lambda log_t: _misfit(logits / np.exp(log_t), labels),
        bounds=tuple(np.log(TEMPERATURE_BOUNDS)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(found.x))


def fit_fusion(encoder: np.ndarray, ngrams: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the weights of two parts' logits in their sum, `encoder` and `ngrams`.

    They fit the labels best (`_misfit`), up to their scale, which the temperature sets; how far
    they are from `USUAL` counts as much as a row, so that a few rows drop no part. As long as the
    sum is right so much less often than the better part that chance does not explain it, by two
    standard errors, the other part's weight is lowered.

    Args:
        encoder: Logits of rows that neither part was trained on, (N, C).
        ngrams: The other part's, (N, C).
        labels: The rows' class ids, (N,).
    """
    found: Any = minimize(
        lambda weights: (
            _misfit(weights[0] * encoder + weights[1] * ngrams, labels)
            + ((weights - USUAL) ** 2).sum() / len(labels)
        ),
        USUAL,
        bounds=[(0.0, TEMPERATURE_BOUNDS[1])] * 2,
        method="L-BFGS-B",
    )

    def right(weights: np.ndarray) -> np.ndarray:
        return (weights[0] * encoder + weights[1] * ngrams).argmax(-1) == labels

    better = max(np.eye(2), key=lambda part: right(part).sum())
    best = right(better)

    def worse(weights: np.ndarray) -> bool:
        here = right(weights)
        return best.sum() - here.sum() > 2 * math.sqrt((best != here).sum())

    towards = (share * better * found.x + (1 - share) * found.x for share in (0, 0.25, 0.5, 0.75))
    weights = next((each for each in towards if each.any() and not worse(each)), better)
    weights = weights / (weights[0] or weights[1])
    return {
        part: float(f"{weight:.{DIGITS}g}")
        for part, weight in zip(("encoder", "ngrams"), weights, strict=True)
    }


def _misfit(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean cross-entropy in nats of targets no surer than N rows make them.

    A label's own class has (N + 1) / (N + 2), the others share the rest: forty rows, one of them
    wrong, would else make every score 1 (docs/results.md, "Few rows to calibrate with").

    Args:
        logits: (N, C).
        labels: Class ids, (N,).

    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines, section 2.2.
    """
    return compute_cross_entropy(logits, labels, 1 / (len(labels) + 2))


def compute_cross_entropy(logits: np.ndarray, labels: np.ndarray, smoothing: float = 0.0) -> float:
    """Return the mean cross-entropy in nats of logits (N, C) and class ids (N,).

    Of each target the other classes share `smoothing`, 0 to 1; without it, it is the plain one.
    """
    scores = special.log_softmax(np.asarray(logits, dtype=np.float64), axis=-1)
    own = scores[np.arange(len(labels)), labels]
    others = (scores.sum(axis=-1) - own) / max(1, scores.shape[1] - 1)
    return float(-((1 - smoothing) * own + smoothing * others).mean())


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the probabilities, (N, C) float64, of logits (N, C) divided by a temperature."""
    return special.softmax(np.asarray(logits, dtype=np.float64) / temperature, axis=-1)


def reliability_bins(
    scores: np.ndarray, correct: np.ndarray, bins: int = BINS
) -> list[dict[str, Any]]:
    """Return how often predictions of about the same score are right: a reliability diagram.

    Args:
        scores: Probabilities of the predicted labels, (N,).
        correct: Whether each prediction is right, (N,) bool.
        bins: How many bins of equal width cover 0 to 1; each takes low < score <= high.

    Returns:
        For each bin low, high, rows, score (their mean) and accuracy; the last two are None in a
        bin without rows.
    """
    scores, correct = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=bool)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, bins - 1)
    table = []
    for index in range(bins):
        inside = place == index
        rows = int(inside.sum())
        table.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "rows": rows,
                "score": float(scores[inside].mean()) if rows else None,
                "accuracy": float(correct[inside].mean()) if rows else None,
            }
        )
    return table


def expected_calibration_error(scores: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the mean distance of score and accuracy over the bins, weighted by rows, 0 to 1.

    Without rows it is 0. Source: Naeini et al. 2015; Guo et al. 2017, equation 3.
    """
    filled = [each for each in reliability_bins(scores, correct, bins) if each["rows"]]
    total = sum(each["rows"] for each in filled)
    gaps = (each["rows"] * abs(each["score"] - each["accuracy"]) for each in filled)
    return float(sum(gaps) / total) if total else 0.0


def coverage_curve(scores: np.ndarray, correct: np.ndarray) -> list[dict[str, float]]:
    """Return how many rows a threshold lets through, and how many of those are right.

    Returns:
        For each distinct score, falling: threshold, coverage (share of rows with at least that
        score) and precision (share of those that are right). Equal scores stand or fall together.
    """
    scores, correct = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=bool)
    order = np.argsort(-scores, kind="stable")
    falling, right = scores[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(falling) else []
    return [
        {
            "threshold": float(falling[index]),
            "coverage": float((index + 1) / len(falling)),
            "precision": float(right[index] / (index + 1)),
        }
        for index in last
    ]


def choose_threshold(
    scores: np.ndarray, correct: np.ndarray, target_precision: float, guarantee: float
) -> dict[str, float | None]:
    """Return a threshold from which on predictions are as often right as wanted, surely enough.

    Over redraws of the rows the promise is broken with a probability of at most 1 - guarantee. From
    a share of the rows that is set beforehand, thresholds are lowered step by step, as long as the
    one-sided Clopper-Pearson bound of the precision reaches the target: fixed sequence testing,
    which needs no correction for the thresholds tried. Two sequences share the risk.

    Args:
        scores: Probabilities of the predicted labels, (N,).
        correct: Whether each prediction is right, (N,) bool.
        target_precision: Share of the rows at or above the threshold that must be right, 0 to 1.
        guarantee: Probability with which they are, 0 to 1.

    Returns:
        threshold, coverage and precision there. Where no threshold will do: threshold None (every
        row needs a person), coverage 0 and precision None.

    Source: Angelopoulos et al. 2021, Learn then Test, section 3.2 and appendix C; tests redraw.
    """
    points = coverage_curve(scores, correct)
    shares = np.array([point["coverage"] for point in points])
    chosen = {"threshold": None, "coverage": 0.0, "precision": None}
    for start, risk in STARTS:
        first = max(start, least_rows(target_precision, guarantee) / max(1, len(scores)))
        steps = [*np.arange(first, 1.0, STEP), 1.0] if first <= 1 and points else []
        for place in np.searchsorted(shares, np.array(steps) - 1e-9):
            point = points[place]
            rows = round(point["coverage"] * len(scores))
            right = round(point["precision"] * rows)
            if _least_precision(right, rows, (1 - guarantee) * risk) < target_precision:
                break
            if point["coverage"] > chosen["coverage"]:
                chosen = dict(point)
    return chosen


def find_large(predicted: np.ndarray, target_precision: float, guarantee: float) -> list[int]:
    """Return the classes with enough rows for a threshold, and a promise, of their own.

    Enough are so many that the latest sequence of thresholds could begin with half of the wrong
    ones that the target allows. With fewer, lines would go to a person that a threshold for all
    rows lets through. How often a class is right doesn't count, or its promise would not hold.

    Args:
        predicted: Class ids, (N,).
        target_precision: See `choose_threshold`.
        guarantee: With which all promises hold together, that of the other rows among them.
    """
    large = dict(zip(*np.unique(predicted, return_counts=True), strict=True))
    start, share = STARTS[-1]
    while True:
        risk = risk_of_each(large, guarantee) * share
        enough = {}
        for label, rows in large.items():
            first = int(start * rows)
            right = first - int(first * (1 - target_precision) / 2)
            if _least_precision(right, first, risk) >= target_precision:
                enough[label] = rows
        if len(enough) == len(large):
            return [int(label) for label in large]
        large = enough


def risk_of_each(large: Collection[int], guarantee: float) -> float:
    """Return the part of the risk of each large class, and of all other rows together."""
    return (1 - guarantee) / (len(large) + 1)


def least_rows(target_precision: float, guarantee: float) -> int:
    """Return the rows, all of them right, with which a precision can be promised at all."""
    risk = (1 - guarantee) * max(share for _, share in STARTS)
    return math.ceil(math.log(risk) / math.log(target_precision))


def _least_precision(right: int, rows: int, risk: float) -> float:
    """Return the lower end of the precision's one-sided interval (Clopper and Pearson 1934)."""
    return float(special.betaincinv(right, rows - right + 1, risk)) if right else 0.0


def score_filed(filed: np.ndarray, correct: np.ndarray) -> dict[str, float | None]:
    """Return coverage and precision, as `choose_threshold` does, of rows filed without a person."""
    return {
        "coverage": float(filed.mean()) if len(filed) else 0.0,
        "precision": float(correct[filed].mean()) if filed.any() else None,
    }


# --- of a version ---------------------------------------------------------------------------------


def calibrate(
    logits: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    target_precision: float,
    guarantee: float,
) -> dict[str, Any]:
    """Return what a version keeps of its calibration, fitted to its validation split.

    Args:
        logits: Of rows that were not trained on, (N, C).
        labels: Their class ids, (N,).
        names: Of the classes.
        target_precision: See `choose_threshold`.
        guarantee: Likewise.

    Returns:
        temperature, target_precision, guarantee, threshold (of the scaled score; None: no threshold
        will do), account_thresholds (by name, of classes with rows enough for their own; left out
        where there are none), coverage (share of the rows at or above theirs), rows (N), and the
        expected calibration error at temperature 1 (ece_before) and at the fitted one (ece_after).
    """
    temperature = float(f"{fit_temperature(logits, labels):.{DIGITS}g}")
    predicted = logits.argmax(axis=-1)
    correct = predicted == labels
    scores = softmax(logits, temperature).max(axis=-1)
    large = find_large(predicted, target_precision, guarantee)
    parts = {names[label]: predicted == label for label in large}
    parts |= {None: ~np.isin(predicted, large)}
    rough = np.floor(scores * 10**DIGITS) / 10**DIGITS
    surely = 1 - risk_of_each(large, guarantee)
    chosen = {
        name: choose_threshold(rough[rows], correct[rows], target_precision, surely)
        for name, rows in parts.items()
    }
    filed = sum((chosen[name]["coverage"] or 0) * rows.sum() for name, rows in parts.items())
    thresholds = {name: found["threshold"] for name, found in chosen.items()}
    before = expected_calibration_error(softmax(logits).max(axis=-1), correct)
    return {
        "temperature": temperature,
        "target_precision": target_precision,
        "guarantee": guarantee,
        "threshold": thresholds.pop(None),
        **({"account_thresholds": thresholds} if thresholds else {}),
        "coverage": round(float(filed / max(1, len(labels))), DIGITS),
        "rows": len(labels),
        "ece_before": round(before, DIGITS),
        "ece_after": round(expected_calibration_error(scores, correct), DIGITS),
    }


def measure_calibration(
    logits: np.ndarray, labels: np.ndarray, temperature: float, filed: np.ndarray
) -> dict[str, float]:
    """Return how a calibration holds on other rows than it was fitted to.

    Args:
        logits: (N, C).
        labels: Class ids, (N,).
        temperature: As it was fitted.
        filed: Which rows need no person by the thresholds, (N,) bool.

    Returns:
        ece and ece_uncalibrated; coverage, the share of rows filed without a person, and
        coverage_precision, the share of those that are right (left out where there are none).
    """
    correct = logits.argmax(axis=-1) == labels
    scores = softmax(logits, temperature).max(axis=-1)
    at = score_filed(filed, correct)
    found = {
        "ece": expected_calibration_error(scores, correct),
        "ece_uncalibrated": expected_calibration_error(softmax(logits).max(axis=-1), correct),
        "coverage": at["coverage"],
        "coverage_precision": at["precision"],
    }
    return {name: value for name, value in found.items() if value is not None}
