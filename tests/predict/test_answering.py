"""The registered model by itself: labels as ever, scores that are calibrated, more where asked."""

import numpy as np
import pandas as pd
import pytest

from account_tax.model.calibration import softmax
from account_tax.model.classifier import needs_review

from .conftest import make_rows

FRAME = pd.DataFrame(make_rows(20))[["memo", "merchant"]]


@pytest.fixture(scope="module")
def model(shop):
    import mlflow

    mlflow.set_tracking_uri(shop.store)
    return shop.model()


@pytest.fixture(scope="module")
def logits(model):
    texts = [" | ".join(filter(None, row)) for row in FRAME.to_numpy()]
    return model.unwrap_python_model().classifier.merge().logits(texts)


def test_by_default_there_are_label_and_score(model, shop, logits):
    answer = model.predict(FRAME)
    assert list(answer.columns) == ["label", "score"]
    assert answer["label"].tolist() == [shop.labels[place] for place in logits.argmax(1)]


def test_a_line_without_text_needs_a_person(model):
    calibration = model.unwrap_python_model().classifier.settings["calibration"]
    kept = calibration["threshold"]
    calibration["threshold"] = 0.0
    try:
        lines = pd.DataFrame({"memo": ["taxi", None, " "], "merchant": [None, "", "\u200b"]})
        answer = model.predict(lines, params={"needs_review": True})
    finally:
        calibration["threshold"] = kept
    assert answer["needs_review"].tolist() == [False, True, True]


def test_a_score_is_the_probability_at_the_versions_temperature(model, logits):
    expected = softmax(logits, 0.02).max(axis=1)  # conftest's
    assert model.predict(FRAME)["score"].tolist() == pytest.approx(expected, abs=1e-9)


def test_a_version_without_calibration_has_plain_scores_and_no_threshold(model, logits):
    classifier = model.unwrap_python_model().classifier
    kept = classifier.settings.pop("calibration")
    try:
        assert model.predict(FRAME, params={"needs_review": True})["needs_review"].all()
        found = classifier.rank(logits)
    finally:
        classifier.settings["calibration"] = kept
    assert found["score"].tolist() == pytest.approx(softmax(logits).max(axis=1), abs=1e-9)
    assert found["label"].equals(classifier.rank(logits)["label"])


@pytest.mark.parametrize(("own", "looked_at"), [(None, True), (0.0, False)])
def test_an_account_has_its_own_threshold(model, own, looked_at):
    account = model.predict(FRAME)["label"][0]
    calibration = model.unwrap_python_model().classifier.settings["calibration"]
    calibration["account_thresholds"] = {account: own}
    try:
        answer = model.predict(FRAME, params={"needs_review": True})
    finally:
        del calibration["account_thresholds"]
    expected = answer["score"].lt(0.8).where(answer["label"] != account, looked_at)
    assert answer["needs_review"].tolist() == expected.tolist()


def test_more_labels_and_the_flag_come_where_they_are_asked_for(model):
    answer = model.predict(FRAME, params={"top_k": 2, "needs_review": True})
    assert list(answer.columns) == ["label", "score", "label_2", "score_2", "needs_review"]
    assert (answer["score"] >= answer["score_2"]).all()
    assert answer["needs_review"].tolist() == (answer["score"] < 0.8).tolist()
    with pytest.raises(ValueError, match="top_k = 4: expected 1 to 3"):
        model.predict(FRAME, params={"top_k": 4})


def test_a_score_that_is_no_number_needs_a_person():
    scores = np.array([0.5, 0.9, np.nan])
    assert needs_review("abc", scores, {"threshold": 0.8}).tolist() == [True, False, True]
    assert needs_review("abc", scores, {"threshold": None}).all()
