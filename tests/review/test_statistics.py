import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from account_tax.review.statistics import (
    compare_by_mcnemar,
    confuse,
    find_disagreements,
    interval,
    measure_reliability,
    resample_models,
    score_model,
    score_slices,
    summarize_models,
)


def draw(rows: int, classes: int, accuracy: float, seed: int = 0):
    """Return true ids and predictions of which about this share is right."""
    random = np.random.RandomState(seed)
    truth = random.randint(0, classes, rows)
    other = (truth + random.randint(1, classes, rows)) % classes
    return truth, np.where(random.rand(rows) < accuracy, truth, other)


# --- scores ---------------------------------------------------------------------------------------


def test_scores_are_sklearns():
    truth, predicted = draw(200, 6, 0.7)
    predicted[predicted == 4] = 5  # never predicted
    truth[truth == 3] = 2  # only predicted
    scores = score_model(truth, predicted, 8)  # 6 and 7 occur nowhere
    columns = precision_recall_fscore_support(truth, predicted, labels=range(8), zero_division=0)
    for name, column in zip(("precision", "recall", "f1"), columns, strict=False):
        assert getattr(scores, f"class_{name}") == pytest.approx(column, abs=1e-12)
    assert scores.accuracy == pytest.approx(accuracy_score(truth, predicted))
    assert scores.f1 == pytest.approx(
        f1_score(truth, predicted, average="macro", zero_division=0), abs=1e-12
    )


# --- bootstrap ------------------------------------------------------------------------------------


def test_resampling_counts_is_resampling_rows():
    """The same means and spreads as rows drawn one by one and scored by scikit-learn."""
    truth, predicted = draw(150, 4, 0.8)
    (drawn,) = resample_models(truth, [predicted], 4, resamples=2000)
    random = np.random.RandomState(1)
    by_rows = []
    for _ in range(300):
        rows = random.randint(0, 150, 150)
        by_rows.append(
            [
                np.mean(truth[rows] == predicted[rows]),
                f1_score(truth[rows], predicted[rows], average="macro", zero_division=0),
            ]
        )
    means, spreads = np.mean(by_rows, axis=0), np.std(by_rows, axis=0)
    # 300 draws know a mean to spread / sqrt(300), a spread to 4%; both are allowed four times that.
    for values, mean, spread in zip((drawn.accuracy, drawn.f1), means, spreads, strict=True):
        assert values.mean() == pytest.approx(mean, abs=4 * spread / np.sqrt(300))
        assert values.std() == pytest.approx(spread, rel=0.16)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Accuracy of 0.8 on 300 rows, 300 times over: 95%, less what chance takes of 300 trials."""
    inside = 0
    for seed in range(300):
        truth, predicted = draw(300, 3, 0.8, seed)
        (drawn,) = resample_models(truth, [predicted], 3, resamples=400, seed=seed)
        found = interval(np.mean(truth == predicted), drawn.accuracy, 300)
        inside += found["low"] <= 0.8 <= found["high"]
    assert 0.91 <= inside / 300 <= 0.985


def test_the_interval_has_the_width_of_the_normal_one():
    truth, predicted = draw(2000, 5, 0.9)
    (drawn,) = resample_models(truth, [predicted], 5)
    accuracy = np.mean(truth == predicted)
    half = norm.ppf(0.975) * np.sqrt(accuracy * (1 - accuracy) / 2000)
    found = interval(accuracy, drawn.accuracy, 2000)
    assert found["low"] == pytest.approx(accuracy - half, abs=0.0015)
    assert found["high"] == pytest.approx(accuracy + half, abs=0.0015)


@pytest.mark.parametrize("rows", [1, 6, 40, 396])
def test_rows_that_are_all_right_leave_the_interval_its_width(rows):
    """Drawn however often they are all right: Clopper and Pearson's exact interval, by SciPy."""
    truth = np.arange(rows) % 2
    models = {"challenger": truth, "champion": truth}
    found = summarize_models(truth, models, ["a", "b"], "champion")
    exact = binomtest(rows, rows).proportion_ci(0.95, method="exact").low
    for metric in ("accuracy", "f1"):
        score, change = found["models"]["challenger"][metric], found["difference"][metric]
        assert (score["low"], score["high"]) == (pytest.approx(exact), 1.0)
        assert (change["low"], change["high"]) == (
            pytest.approx(exact - 1),
            pytest.approx(1 - exact),
        )


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_an_account_whose_rows_are_all_right_has_the_exact_interval(rows):
    """Many a draw of 40 rows has none of an account's few: it says nothing of the account."""
    truth = np.array([0] * (40 - rows) + [1] * rows)
    models = {"challenger": truth, "champion": truth}
    account = summarize_models(truth, models, ["a", "b"], "champion")["classes"][1]
    exact = binomtest(rows, rows).proportion_ci(0.95, method="exact").low
    for each in account["challenger"].values():
        assert (each["value"], each["low"], each["high"]) == (1.0, pytest.approx(exact), 1.0)
    assert account["f1_difference"]["low"] == pytest.approx(exact - 1)


def test_what_no_row_shows_is_not_measured():
    truth = np.array([0, 0, 0, 1])
    models = {"challenger": np.array([0, 0, 0, 0]), "champion": truth}
    found = summarize_models(truth, models, ["a", "b", "c"], "champion")
    one, none = found["classes"][1]["challenger"], found["classes"][2]
    assert one["recall"]["value"] == 0
    assert list(one["precision"].values()) == [0.0, 0.0, 1.0]  # of a claim it never made
    measured = [none["f1_difference"], *none["challenger"].values(), *none["reference"].values()]
    assert all(set(each.values()) == {None} for each in measured)


@pytest.mark.parametrize(("accuracy", "rows"), [(0.99, 20), (0.99, 100), (0.98, 200), (0.9, 10)])
def test_few_errors_are_covered_as_often_as_it_says(accuracy, rows):
    """Where errors are so few that many a draw has none; the percentiles alone cover a third."""
    inside = 0
    for seed in range(300):
        truth, predicted = draw(rows, 2, accuracy, seed)
        whole, (drawn,) = (
            score_model(truth, predicted, 2),
            resample_models(truth, [predicted], 2, resamples=400, seed=seed),
        )
        found = interval(float(whole.accuracy), drawn.accuracy, rows)
        inside += found["low"] <= accuracy <= found["high"]
    assert inside / 300 >= 0.93


def test_a_difference_is_paired():
    """Two models that err on the same rows but five differ less than each one varies."""
    truth, challenger = draw(400, 3, 0.8)
    champion = challenger.copy()
    wrong = np.flatnonzero(challenger != truth)[:5]
    challenger[wrong] = truth[wrong]
    found = summarize_models(
        truth, {"challenger": challenger, "champion": champion}, ["a", "b", "c"], "champion"
    )
    change = found["difference"]["accuracy"]
    assert change["value"] == pytest.approx(5 / 400)
    # b = 5 discordant rows: standard deviation sqrt(5) / 400, by hand
    assert change["high"] - change["low"] == pytest.approx(2 * 1.96 * np.sqrt(5) / 400, rel=0.15)
    alone = found["models"]["challenger"]["accuracy"]
    assert change["high"] - change["low"] < (alone["high"] - alone["low"]) / 2


def test_a_bootstrap_repeats_and_its_chunks_leave_no_seam():
    truth, predicted = draw(100, 3, 0.7)
    first, second = (resample_models(truth, [predicted], 3, resamples=600)[0] for _ in range(2))
    assert np.array_equal(first.class_f1, second.class_f1)
    assert first.f1.shape == (600,)
    assert not np.array_equal(first.f1[:250], first.f1[250:500])


def test_classes_have_their_own_scores_and_differences():
    truth = np.array([0, 0, 0, 1, 1, 2])
    challenger, champion = np.array([0, 0, 0, 1, 0, 2]), np.array([0, 1, 0, 1, 0, 2])
    found = summarize_models(
        truth, {"challenger": challenger, "champion": champion}, ["a", "b", "c"], "champion"
    )
    a, b, c = found["classes"]
    assert (a["label"], a["rows"]) == ("a", 3)
    assert a["challenger"]["precision"]["value"] == pytest.approx(3 / 4)  # by hand, all below
    assert a["challenger"]["recall"]["value"] == 1
    assert a["f1_difference"]["value"] == pytest.approx(6 / 7 - 2 / 3)
    assert b["f1_difference"]["value"] == pytest.approx(2 / 3 - 1 / 2)
    # One row, right in both: at 95% each may yet be wrong in all but 0.025 of such rows.
    assert (c["f1_difference"]["low"], c["f1_difference"]["high"]) == (-0.975, 0.975)


# --- comparisons ----------------------------------------------------------------------------------


def test_mcnemar_is_the_two_sided_binomial_test():
    truth = np.zeros(30, dtype=int)
    challenger, champion = np.zeros(30, dtype=int), np.zeros(30, dtype=int)
    champion[:8] = 1  # only the challenger is right on 8, only the champion on 2, neither on 3
    challenger[8:10] = 1
    challenger[27:], champion[27:] = 1, 1
    found = compare_by_mcnemar(truth, challenger, champion)
    counts = {key: found[key] for key in ("only_challenger", "only_reference", "both", "neither")}
    assert counts == {"only_challenger": 8, "only_reference": 2, "both": 17, "neither": 3}
    # 2 * (C(10,0) + C(10,1) + C(10,2)) / 2^10 = 112 / 1024, by hand
    assert found["p_value"] == pytest.approx(112 / 1024)
    assert found["p_value"] == pytest.approx(binomtest(8, 10).pvalue)


def test_mcnemar_of_equal_models_is_1():
    ids = np.arange(5)
    assert compare_by_mcnemar(ids, ids, ids)["p_value"] == 1


def test_confusions_have_the_true_classes_as_rows():
    truth, predicted = draw(100, 4, 0.7)
    expected = confusion_matrix(truth, predicted, labels=range(4))
    assert np.array_equal(confuse(truth, predicted, 4), expected)


def test_small_slices_are_pooled_and_scored_apart():
    column = pd.Series(["seoul"] * 12 + ["busan"] * 11 + ["jeju"] * 3 + ["ulsan"] * 2)
    truth = np.zeros(28, dtype=int)
    predicted = np.zeros(28, dtype=int)
    predicted[:3] = 1
    parts = score_slices(column, truth, {"challenger": predicted, "reference": truth}, 2)
    assert [(part["value"], part["rows"]) for part in parts] == [
        ("seoul", 12),
        ("busan", 11),
        ("other (2 values)", 5),
    ]
    assert parts[0]["challenger"]["accuracy"] == pytest.approx(9 / 12)
    # class 0: precision 1, recall 3/4, F1 6/7; class 1: 0
    assert parts[0]["challenger"]["f1"] == pytest.approx(3 / 7)
    assert parts[1]["challenger"]["accuracy"] == parts[0]["reference"]["accuracy"] == 1


def test_disagreements_come_by_the_less_sure_of_the_two():
    ids = np.array([70, 71, 72, 73])
    found = find_disagreements(
        ids,
        (np.array([0, 0, 0, 0]), np.array([1, 1, 0, 1])),
        (np.array([0.9, 0.99, 1.0, 0.8]), np.array([0.9, 0.5, 1.0, 0.95])),
    )
    assert [each["row_id"] for each in found] == [70, 73, 71]
    assert found[1]["scores"] == [0.8, 0.95]


def test_at_most_twenty_disagreements_are_named():
    ids = np.arange(50)
    ones = np.ones(50)
    assert len(find_disagreements(ids, (ids, ids + 1), (ones, ones))) == 20


# --- calibration ----------------------------------------------------------------------------------


def test_a_recorded_threshold_is_kept_whatever_these_rows_say():
    scores, correct = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, True, True])
    recorded = {"threshold": 0.75, "target_precision": 0.9, "temperature": 1.3}
    found = measure_reliability(scores, correct, recorded, scores >= 0.75)
    assert (found["threshold"], found["coverage"], found["precision"]) == (0.75, 0.5, 0.5)
    assert (found["temperature"], found["target_precision"]) == (1.3, 0.9)
    # Each score in a bin of its own: mean of .1, .8, .3, .4, by hand
    assert found["expected_calibration_error"] == pytest.approx(0.4)


def test_a_recorded_threshold_may_be_none():
    recorded = {"threshold": None, "target_precision": 0.9, "temperature": 1.0}
    found = measure_reliability(np.array([0.9]), np.array([True]), recorded, np.array([False]))
    assert (found["threshold"], found["coverage"], found["precision"]) == (None, 0, None)


def test_a_long_curve_is_thinned_and_keeps_its_end():
    random = np.random.RandomState(0)
    scores = random.rand(5000)
    recorded = {"threshold": None, "target_precision": 0.9, "temperature": 1.0}
    nobody = np.zeros(5000, dtype=bool)
    curve = measure_reliability(scores, random.rand(5000) < scores, recorded, nobody)["curve"]
    assert 100 < len(curve) < 300
    assert curve[-1]["coverage"] == 1
