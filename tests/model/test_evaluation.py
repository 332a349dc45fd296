"""A split answered and scored, with a real model."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from account_tax.errors import RegistrationError
from account_tax.model.classifier import load_classifier
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


def test_data_with_other_labels_is_refused(trained):
    other = trained.splits["test"].rename_column("labels", "old")
    from datasets import ClassLabel

    other = other.add_column("labels", [0] * 24).cast_column("labels", ClassLabel(names=["a"]))
    write_manifest(trained.folder)
    with pytest.raises(RegistrationError, match="Train on this data"):
        evaluate_test_split(other, [], trained.folder, "macro")
