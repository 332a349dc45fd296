"""A split answered and scored, with a real model."""

import json
import shutil

import numpy as np
import pytest
from sklearn.metrics import f1_score

from account_tax.errors import RegistrationError
from account_tax.model.classifier import SETTINGS_FILE, load_classifier
from account_tax.model.evaluation import evaluate_test_split
from account_tax.pipelines.register.nodes import write_manifest


def test_evaluation_equals_the_classifiers_own_logits(trained):
    test = trained.splits["test"]
    write_manifest(trained.folder)
    evaluation = evaluate_test_split(test, [], trained.folder, "macro")
    # one row at a time: no padding, no sorting
    logits = np.concatenate(
        [load_classifier(trained.folder).logits_of_ids([row]) for row in test["input_ids"]]
    )
    labels = np.asarray(test["labels"])
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(24), labels]
    assert evaluation["metrics"]["test/loss"] == pytest.approx(expected.mean(), rel=1e-5)
    f1 = f1_score(labels, logits.argmax(1), average="macro")
    assert evaluation["metrics"]["test/f1"] == pytest.approx(f1)
    matrix = np.asarray(evaluation["confusion_matrix"])
    assert matrix.sum() == evaluation["rows"] == 24
    assert np.trace(matrix) / 24 == pytest.approx(evaluation["metrics"]["test/accuracy"])
    assert [row["support"] for row in evaluation["per_class"]] == [8, 8, 8]
    json.dumps(evaluation)  # it is a JSON dataset


def test_the_loss_is_that_of_the_scores_a_version_gives(trained, tmp_path):
    folder = shutil.copytree(trained.folder, tmp_path / "classifier")
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    settings["calibration"] = {"temperature": 0.25}
    (folder / SETTINGS_FILE).write_text(json.dumps(settings))
    write_manifest(folder)
    test = trained.splits["test"]
    metrics = evaluate_test_split(test, [], folder, "macro")["metrics"]
    classifier = load_classifier(folder)
    labels = [test.features["labels"].names[label] for label in test["labels"]]
    ranked = classifier.rank(classifier.logits_of_ids(test["input_ids"]), top_k=3)
    places = ("", "_2", "_3")
    own = [
        next(row[f"score{at}"] for at in places if row[f"label{at}"] == label)
        for row, label in zip(ranked.to_dict("records"), labels, strict=True)
    ]
    assert metrics["test/loss"] == pytest.approx(-np.log(own).mean(), rel=1e-3)
    assert metrics["test/loss"] != pytest.approx(metrics["test/loss_uncalibrated"], rel=0.01)


def test_data_with_other_labels_is_refused(trained):
    other = trained.splits["test"].rename_column("labels", "old")
    from datasets import ClassLabel

    other = other.add_column("labels", [0] * 24).cast_column("labels", ClassLabel(names=["a"]))
    write_manifest(trained.folder)
    with pytest.raises(RegistrationError, match="Train on this data"):
        evaluate_test_split(other, [], trained.folder, "macro")
