"""Scores mean what they say, and a threshold keeps the precision it was chosen for."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from account_tax.model.calibration import (
    TEMPERATURE_BOUNDS,
    calibrate,
    choose_threshold,
    compute_cross_entropy,
    coverage_curve,
    expected_calibration_error,
    find_large,
    fit_fusion,
    fit_temperature,
    least_rows,
    measure_calibration,
    reliability_bins,
    softmax,
)
from account_tax.model.classifier import needs_review

NAMES = list("abcde")


def draw(temperature: float, rows: int = 20_000, classes: int = 5):
    """Return logits that are over- or underconfident by a factor, and labels drawn from them."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(rows, classes)) * 2
    odds = softmax(logits).cumsum(axis=1)
    labels = (random.random((rows, 1)) > odds).sum(axis=1).clip(max=classes - 1)
    return logits * temperature, labels


def measure(logits, labels, kept):
    """Return `measure_calibration` of rows that are filed by the thresholds of a version."""
    scores = softmax(logits, kept["temperature"]).max(-1)
    names = [NAMES[label] for label in logits.argmax(-1)]
    filed = ~needs_review(names, scores, kept)
    return measure_calibration(logits, labels, kept["temperature"], filed)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_distorted_the_logits_is_found(temperature):
    logits, labels = draw(temperature)
    # The labels are a sample: 20,000 rows pin T to about a percent.
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_the_temperature_is_where_the_loss_of_smoothed_targets_is_least():
    logits, labels = draw(2.0, rows=500)
    targets = np.full(logits.shape, 1 / 502 / 4)
    targets[np.arange(500), labels] = 501 / 502

    def loss(temperature):
        return -(targets * np.log(softmax(logits, temperature))).sum(axis=1).mean()

    least = loss(fit_temperature(logits, labels))
    low, high = TEMPERATURE_BOUNDS
    for other in np.geomspace(low, high, 200):
        assert loss(other) >= least - 1e-12


def test_the_temperature_is_the_slope_of_platts_regression():
    logits, labels = draw(1.7, rows=500, classes=2)
    margin = np.tile(logits[:, [1]] - logits[:, [0]], (2, 1))
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(
        margin, np.concatenate([labels, 1 - labels]), np.repeat([501 / 502, 1 / 502], 500)
    )
    assert 1 / fit_temperature(logits, labels) == pytest.approx(fitted.coef_[0, 0], rel=1e-4)


def test_rows_that_are_all_right_make_scores_as_sure_as_so_many_rows_can():
    # Of four rows 5 of 6: exp(2 / T) = 15. Unsmoothed the loss falls without end as T does.
    found = fit_temperature(np.eye(4) * 2, np.arange(4))
    assert found == pytest.approx(2 / math.log(15), rel=1e-6)


def test_a_few_rows_nearly_all_right_do_not_make_every_score_one():
    logits, labels = draw(1.0, rows=4000, classes=4)
    logits, surest = logits * 3, np.argsort(-np.abs(logits).max(axis=1))
    right = [row for row in surest if logits[row].argmax() == labels[row]][:39]
    wrong = [row for row in surest[::-1] if logits[row].argmax() != labels[row]][:1]
    few = [*right, *wrong]  # 39 of 40, the wrong one barely
    assert (logits[few].argmax(-1) == labels[few]).mean() == 0.975
    assert softmax(logits[few], fit_temperature(logits[few], labels[few])).max() < 0.9999


def test_only_wrong_answers_end_at_the_upper_bound():
    logits = np.eye(4) * 2
    wrong = (np.arange(4) + 1) % 4
    assert fit_temperature(logits, wrong) == pytest.approx(TEMPERATURE_BOUNDS[1], rel=1e-3)


@pytest.mark.parametrize("shape", [(0, 3), (5, 1)])
def test_without_rows_or_with_one_class_there_is_nothing_to_fit(shape):
    assert fit_temperature(np.zeros(shape), np.zeros(shape[0], dtype=int)) == 1.0


def test_cross_entropy_of_equal_logits_is_the_log_of_the_class_count():
    assert compute_cross_entropy(np.zeros((4, 5)), np.array([0, 1, 2, 3])) == pytest.approx(
        math.log(5)
    )


def test_cross_entropy_is_the_mean_of_the_rows_by_hand_and_does_not_overflow():
    logits = np.array([[1000.0, 0.0], [0.0, math.log(3)]])
    # row 1: 0; row 2, class 0: -log(1/4)
    assert compute_cross_entropy(logits, np.array([0, 0])) == pytest.approx(math.log(4) / 2)


def test_softmax_of_large_logits_is_finite_and_keeps_the_order():
    logits = np.array([[1e4, 9e3, 0.0]], dtype=np.float32)
    scores = softmax(logits, temperature=2.0)
    assert scores.dtype == np.float64
    assert scores.sum() == pytest.approx(1.0, abs=1e-12)
    assert scores.argmax() == 0


def test_bins_hold_every_row_once_with_mean_score_and_accuracy():
    scores = np.array([0.05, 0.1, 0.95, 1.0, 0.55])
    correct = np.array([False, True, True, True, False])
    bins = reliability_bins(scores, correct, bins=10)
    assert [each["rows"] for each in bins] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert bins[0]["score"] == pytest.approx(0.075)
    assert bins[0]["accuracy"] == 0.5
    assert bins[1]["score"] is None
    assert bins[1]["accuracy"] is None


def test_the_calibration_error_by_hand():
    scores = np.array([0.9, 0.9, 0.6, 0.6])
    correct = np.array([True, True, True, False])
    # Two rows are 0.1 too modest, two 0.1 too sure.
    assert expected_calibration_error(scores, correct, bins=10) == pytest.approx(0.1)


def test_temperature_scaling_removes_the_error_it_was_fitted_to():
    logits, labels = draw(3.0)
    correct = logits.argmax(1) == labels
    before = expected_calibration_error(softmax(logits).max(1), correct)
    after = expected_calibration_error(softmax(logits, 3.0).max(1), correct)
    assert after < 0.02 < before


def test_without_rows_there_are_no_errors_and_no_curve():
    nothing = np.array([])
    assert expected_calibration_error(nothing, nothing) == 0.0
    assert coverage_curve(nothing, nothing) == []
    assert choose_threshold(nothing, nothing, 0.9, 0.95)["threshold"] is None


def test_equal_scores_stand_or_fall_together():
    curve = coverage_curve(np.array([0.9, 0.5, 0.5, 0.9]), np.array([True, True, False, True]))
    assert curve == [
        {"threshold": 0.9, "coverage": 0.5, "precision": 1.0},
        {"threshold": 0.5, "coverage": 1.0, "precision": 0.75},
    ]


def test_the_lowest_threshold_that_keeps_the_precision_is_chosen():
    scores = np.linspace(1, 0, 1000)
    correct = np.arange(1000) < 900
    # At 92.5% of the rows 900 of 925 are right, surely more than 95%; at 95% they are 94.7%.
    found = choose_threshold(scores, correct, 0.95, 0.95)
    assert (found["coverage"], found["precision"]) == (0.925, 900 / 925)
    assert found["threshold"] == scores[924]


def test_with_too_few_rows_nothing_is_promised():
    least = least_rows(0.95, 0.95)
    assert least == 63  # 0.95 ** 63 < 0.04: most of the risk, see STARTS
    for rows, promised in ((least - 1, False), (least, True)):
        found = choose_threshold(np.linspace(1, 0, rows), np.ones(rows, bool), 0.95, 0.95)
        assert (found["threshold"] is not None) == promised


# Precision of the lines by score, from the surest to the least sure.
POPULATIONS = {
    "mostly sure": lambda score: np.where(score > 0.15, 0.985, 0.75),
    "just below the target": lambda score: np.full_like(score, 0.947),
    "falling": lambda score: np.clip(0.6 + 0.5 * score, 0, 0.998),
    "noisy labels": lambda score: np.where(score > 0.1, 0.967, 0.7),
    "a step": lambda score: np.where(score > 0.3, 0.99, 0.9),
}


@pytest.mark.parametrize("precision", POPULATIONS.values(), ids=POPULATIONS)
@pytest.mark.parametrize("rows", [100, 400, 2000])
def test_the_promise_is_broken_in_at_most_five_percent_of_redraws(precision, rows):
    draws, broken = np.random.RandomState(0), 0
    fine = np.linspace(0, 1, 100_001)
    # Of all lines at or above a score, the share that is right.
    whole = precision(fine)[::-1].cumsum()[::-1] / np.arange(len(fine), 0, -1)
    for _ in range(500):
        scores = draws.rand(rows)
        correct = draws.rand(rows) < precision(scores)
        threshold = choose_threshold(scores, correct, 0.95, 0.95)["threshold"]
        if threshold is not None:
            broken += whole[np.searchsorted(fine, threshold)] < 0.95
    assert broken / 500 <= 0.05


def test_a_precision_that_no_threshold_reaches_leaves_every_row_to_a_person():
    found = choose_threshold(np.linspace(1, 0, 300), np.arange(300) % 2 > 0, 0.9, 0.95)
    assert found == {"threshold": None, "coverage": 0.0, "precision": None}


ACCOUNTS = ["meals", "travel", "office"]
# Of each account, how often a proposal is right by its score; office is never right often enough.
BY_ACCOUNT = [POPULATIONS[name] for name in ("mostly sure", "falling", "just below the target")]


def draw_accounts(draws: np.random.RandomState, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits whose largest stands for a score in 0 to 1, and labels as often right."""
    proposed, sure = draws.randint(3, size=rows), draws.rand(rows)
    right = np.array([BY_ACCOUNT[k](s) for k, s in zip(proposed, sure, strict=True)])
    labels = np.where(draws.rand(rows) < right, proposed, (proposed + 1) % 3)
    return np.eye(3)[proposed] * (2 + 6 * sure)[:, None], labels


def test_each_accounts_promise_is_kept_in_at_least_95_percent_of_redraws():
    whole = draw_accounts(np.random.RandomState(1), 200_000)
    proposed, right = whole[0].argmax(-1), whole[0].argmax(-1) == whole[1]
    draws, broken, promised = np.random.RandomState(0), 0, set()
    for _ in range(100):
        kept = calibrate(*draw_accounts(draws, 9000), ACCOUNTS, 0.95, 0.95)
        scores = softmax(whole[0], kept["temperature"]).max(-1)
        filed = ~needs_review(np.array(ACCOUNTS)[proposed], scores, kept)
        each = [filed & (proposed == label) for label in range(3)]
        promised |= {label for label in range(3) if each[label].any()}
        broken += any(right[rows].mean() < 0.95 for rows in [*each, filed] if rows.any())
    assert broken / 100 <= 0.05
    assert {0, 1} <= promised


def test_accounts_of_few_rows_share_a_threshold_with_the_rest():
    rows = np.repeat([0, 1, 2], [3000, 60, 40])
    assert find_large(rows, 0.95, 0.95) == [0]
    assert find_large(rows[3000:], 0.95, 0.95) == []
    logits, labels = draw_accounts(np.random.RandomState(0), 400)
    assert "account_thresholds" not in calibrate(logits, labels, ACCOUNTS, 0.95, 0.95)
    kept = calibrate(np.eye(3)[rows] * 5, rows, ACCOUNTS, 0.95, 0.95)
    assert [*kept["account_thresholds"]] == ["meals"]
    assert (kept["coverage"], kept["threshold"] > 0) == (1.0, True)


def test_an_account_without_a_threshold_of_its_own_is_left_to_a_person():
    scores, labels = [0.99, 0.5, 0.99, 0.7], ["meals", "travel", "office", "office"]
    own = {"meals": None, "travel": 0.4}
    found = needs_review(labels, scores, {"threshold": 0.8, "account_thresholds": own})
    assert found.tolist() == [True, False, False, True]


def test_a_version_keeps_a_threshold_that_meets_its_target_on_the_rows_it_was_fitted_to():
    logits, labels = draw(2.0, rows=400)
    kept = calibrate(logits, labels, NAMES, 0.7, 0.95)
    assert kept["rows"] == 400
    assert kept["temperature"] == pytest.approx(fit_temperature(logits, labels), rel=1e-3)
    assert kept["ece_after"] < kept["ece_before"]
    held = measure(logits, labels, kept)
    assert held["coverage"] == pytest.approx(kept["coverage"], abs=1e-4)
    assert held["coverage_precision"] >= 0.7
    assert held["ece"] == pytest.approx(kept["ece_after"], abs=1e-4)


def test_what_a_version_keeps_does_not_hang_on_the_last_bits_of_a_logit():
    logits, labels = draw(2.0, rows=400)
    noise = np.random.default_rng(1).normal(size=logits.shape) * 1e-7
    promised = (labels, NAMES, 0.7, 0.95)
    assert calibrate(logits, *promised) == calibrate(logits + noise, *promised)


def test_without_a_threshold_nothing_is_filed_without_a_person():
    logits, wrong = np.eye(4) * 2, (np.arange(4) + 1) % 4
    kept = calibrate(logits, wrong, NAMES, 0.9, 0.95)
    assert (kept["threshold"], kept["coverage"]) == (None, 0.0)
    held = measure(logits, wrong, kept)
    assert held["coverage"] == 0.0
    assert "coverage_precision" not in held


def test_a_split_without_rows_calibrates_nothing():
    nothing = np.zeros((0, 3)), np.zeros(0, dtype=int)
    kept = calibrate(*nothing, NAMES, 0.9, 0.95)
    assert (kept["temperature"], kept["threshold"], kept["rows"]) == (1.0, None, 0)
    assert measure(*nothing, kept)["coverage"] == 0


def test_where_every_account_has_its_own_threshold_no_row_is_left_for_the_rest():
    logits, labels = np.eye(2)[[0, 1] * 10], np.array([0, 1] * 10)
    kept = calibrate(logits, labels, ("a", "b"), target_precision=0.01, guarantee=0.95)
    assert kept["account_thresholds"].keys() == {"a", "b"}
    assert (kept["threshold"], kept["coverage"]) == (None, 1.0)


def test_it_needs_no_torch():
    check = "import sys, account_tax.model.calibration; sys.exit('torch' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", check],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )


# --- two parts ------------------------------------------------------------------------------------


def make_part(labels: np.ndarray, signal: float, seed: int) -> np.ndarray:
    logits = np.random.RandomState(seed).randn(len(labels), 4).astype(np.float32)
    logits[np.arange(len(labels)), labels] += signal
    return logits


def test_the_sum_of_two_parts_is_better_than_each():
    labels = np.random.RandomState(0).randint(4, size=2000)
    parts = make_part(labels, 2.0, 1), 5 * make_part(labels, 1.0, 2)  # the weaker one is the louder
    fusion = fit_fusion(*parts, labels)
    assert fusion["encoder"] == 1.0
    assert fusion["ngrams"] == pytest.approx(0.1, abs=0.02)  # of logits as sure as they are right
    fused = parts[0] + fusion["ngrams"] * parts[1]
    right = [(logits.argmax(-1) == labels).mean() for logits in (fused, *parts)]
    assert right[0] > max(right[1:]) + 0.02


def test_a_few_rows_more_or_less_do_not_decide_whether_a_part_counts():
    weights = []
    for seed in range(20):
        labels = np.random.RandomState(seed).randint(4, size=1000)
        parts = make_part(labels, 4.0, 2 * seed + 100), make_part(labels, 1.0, 2 * seed + 101)
        weights.append(fit_fusion(*parts, labels)["ngrams"])
    assert min(weights) > 0.05  # 0.25 is as sure as it is right


def test_seven_rows_drop_no_part():
    # The encoder is wrong in two of them and sure of it, the n-grams in none.
    labels = np.arange(7) % 2
    ngrams = np.eye(2)[labels] * 3
    encoder = np.eye(2)[labels] * 4
    encoder[:2] = encoder[:2, ::-1]
    fusion = fit_fusion(encoder, ngrams, labels)
    assert fusion["encoder"] == 1.0
    assert 1 < fusion["ngrams"] < 5


def test_a_part_that_makes_answers_worse_is_weighed_less():
    # It turns a hundred answers that are barely right, and gains more loss in fifty wrong ones.
    labels = np.zeros(1000, dtype=int)
    encoder, ngrams = (np.tile(np.float32([sure, 0.0]), (1000, 1)) for sure in (3.0, 1.0))
    encoder[:100], ngrams[:100] = [0.01, 0.0], [0.0, 0.2]
    encoder[100:150], ngrams[100:150] = [0.0, 5.0], [4.0, 0.0]
    assert fit_fusion(encoder, ngrams, labels) == {"encoder": 1.0, "ngrams": 0.0}


@pytest.mark.parametrize("signals", [(3.0, 0.0), (0.0, 3.0), (0.5, 0.5), (9.0, 9.0)])
@pytest.mark.parametrize("rows", [3, 40])
def test_the_sum_is_not_right_less_often_than_the_better_part_but_by_chance(signals, rows):
    labels = np.random.RandomState(rows).randint(4, size=rows)
    parts = [make_part(labels, signal, seed) for seed, signal in enumerate(signals)]
    weights = fit_fusion(*parts, labels).values()
    fused = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    right = [logits.argmax(-1) == labels for logits in (fused, *parts)]
    better = max(right[1:], key=np.sum)
    assert right[0].sum() >= better.sum() - 2 * (right[0] != better).sum() ** 0.5
